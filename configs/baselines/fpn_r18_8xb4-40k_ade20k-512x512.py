"""Semantic FPN, ResNet-18, 40k, ADE20K, with PoolFormer's optimizer instead of the published SGD.

The recipe of PoolFormer's Semantic FPN is a guess for a ResNet: the paper's numbers for ResNets are
PVT's, whose files (whai362/PVT, ``segmentation/configs/sem_fpn``) train them with SGD.

    python tools/train.py configs/baselines/fpn_r18_8xb4-40k_ade20k-512x512.py
"""

_base_ = '../_base_/semantic-fpn_40k_ade20k.py'

model = dict(
    pretrained='open-mmlab://resnet18_v1c',
    backbone=dict(depth=18),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
