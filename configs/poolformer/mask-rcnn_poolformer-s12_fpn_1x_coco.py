"""Mask R-CNN, PoolFormer-S12, 1x, COCO: 37.3 box AP, 34.6 mask AP in the paper (Table 3).

Recipe of sail-sg/poolformer, ``detection/configs/mask_rcnn_poolformer_s12_fpn_1x_coco.py``: AdamW
2e-4 (the paper's text says 1e-4), weight decay 1e-4, batch 16. 31.57 M parameters.

    python tools/train.py configs/poolformer/mask-rcnn_poolformer-s12_fpn_1x_coco.py
"""

_base_ = '../_base_/mask-rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.PoolFormer',
        arch='s12',
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://poolformer-s12_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
