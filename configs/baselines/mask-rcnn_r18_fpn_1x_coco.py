"""Mask R-CNN, ResNet-18, 1x, COCO: 34.0 box AP, 31.2 mask AP in PoolFormer's paper (Table 3).

PoolFormer's recipe for mmdet's network: AdamW 2e-4, weight decay 1e-4, batch 16. The first stage
and batch statistics are frozen, as in mmdet. The paper takes the number from PVT's.

    python tools/train.py configs/baselines/mask-rcnn_r18_fpn_1x_coco.py
"""

_base_ = '../_base_/mask-rcnn_1x_coco.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
