"""Mask R-CNN, PoolFormer-S24, 1x, COCO: 40.1 box AP, 37.0 mask AP in the paper (Table 3).

41.04 M parameters.

    python tools/train.py configs/poolformer/mask-rcnn_poolformer-s24_fpn_1x_coco.py
"""

_base_ = './mask-rcnn_poolformer-s12_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        arch='s24',
        init_cfg=dict(checkpoint='mmpatch://poolformer-s24_in1k'),
    ),
)
