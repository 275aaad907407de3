"""Semantic FPN, ResNet-50, 40k, ADE20K, with PoolFormer's optimizer instead of the published SGD.

The recipe of PoolFormer's Semantic FPN is a guess for a ResNet: the paper's numbers for ResNets are
PVT's, whose files (whai362/PVT, ``segmentation/configs/sem_fpn``) train them with SGD.

    python tools/train.py configs/baselines/fpn_r50_8xb4-40k_ade20k-512x512.py
"""

_base_ = '../_base_/semantic-fpn_40k_ade20k.py'

model = dict(pretrained='open-mmlab://resnet50_v1c')
