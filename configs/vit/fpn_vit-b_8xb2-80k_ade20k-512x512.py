"""Semantic FPN, ViT-B/16 of AugReg (ImageNet-21k), 80k iterations, ADE20K: no published number.

ViT-Adapter's paper (arXiv 2205.08534) has 46.4 mIoU for a ViT-B with DeiT's weights and another
neck. Google's weights expect pixels as (x - 127.5) / 127.5.

    python tools/train.py configs/vit/fpn_vit-b_8xb2-80k_ade20k-512x512.py
"""

_base_ = './fpn_deit-s_8xb2-80k_ade20k-512x512.py'

model = dict(
    data_preprocessor=dict(
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
    ),
    backbone=dict(arch='base', init_cfg=dict(checkpoint='mmpatch://vit-base-p16_in21k')),
    neck=dict(in_channels=[768, 768, 768, 768]),
)
