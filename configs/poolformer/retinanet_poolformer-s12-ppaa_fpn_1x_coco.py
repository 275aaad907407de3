"""RetinaNet, PoolFormer-S12 with attention in its last two stages, 1x, COCO: no published number.

The hybrid of the paper's Table 5 ([Pool, Pool, Attention, Attention], 81.0 on ImageNet). Its
weights were not published: train them, or start from scratch. The recipe is PoolFormer's.

    python tools/train.py configs/poolformer/retinanet_poolformer-s12-ppaa_fpn_1x_coco.py
"""

_base_ = './retinanet_poolformer-s12_fpn_1x_coco.py'

attention = dict(type='Attention', num_heads=8, qkv_bias=False)
model = dict(
    backbone=dict(token_mixers=['Pooling', 'Pooling', attention, attention], init_cfg=None)
)
