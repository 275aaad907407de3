"""RetinaNet, PoolFormer-S12 with attention in its last two stages, 1x, COCO: no published number.

A hybrid like the one in Table 5 of the paper ([Pool, Pool, Attention, Attention]), but not equal to
it. The authors' network has layer norms, attention heads of 32 channels and a position embedding
before stage 3, so the weights that they published for it do not fit this one, which trains from
scratch. The recipe is PoolFormer's.

    python tools/train.py configs/poolformer/retinanet_poolformer-s12-ppaa_fpn_1x_coco.py
"""

_base_ = './retinanet_poolformer-s12_fpn_1x_coco.py'

attention = dict(type='Attention', num_heads=8, qkv_bias=False)
model = dict(
    backbone=dict(token_mixers=['Pooling', 'Pooling', attention, attention], init_cfg=None)
)
