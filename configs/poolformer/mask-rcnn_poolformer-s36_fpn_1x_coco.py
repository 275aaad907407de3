"""Mask R-CNN, PoolFormer-S36, 1x, COCO: 41.0 box AP, 37.7 mask AP in the paper (Table 3).

50.52 M parameters.

    python tools/train.py configs/poolformer/mask-rcnn_poolformer-s36_fpn_1x_coco.py
"""

_base_ = './mask-rcnn_poolformer-s12_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        arch='s36',
        init_cfg=dict(checkpoint='mmpatch://poolformer-s36_in1k'),
    ),
)
