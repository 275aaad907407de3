"""RetinaNet, PoolFormer-S36, 1x, COCO: 39.5 box AP in the paper (Table 3).

40.60 M parameters.

    python tools/train.py configs/poolformer/retinanet_poolformer-s36_fpn_1x_coco.py
"""

_base_ = './retinanet_poolformer-s12_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        arch='s36',
        init_cfg=dict(checkpoint='mmpatch://poolformer-s36_in1k'),
    ),
)
