"""RetinaNet, PoolFormer-S24, 1x, COCO: 38.9 box AP in the paper (Table 3).

31.13 M parameters.

    python tools/train.py configs/poolformer/retinanet_poolformer-s24_fpn_1x_coco.py
"""

_base_ = './retinanet_poolformer-s12_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        arch='s24',
        init_cfg=dict(checkpoint='mmpatch://poolformer-s24_in1k'),
    ),
)
