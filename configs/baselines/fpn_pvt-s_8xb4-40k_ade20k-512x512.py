"""Semantic FPN, PVT-Small, 40k, ADE20K: 39.8 mIoU in PoolFormer's paper (Table 4).

Recipe of whai362/PVT, ``segmentation/configs/sem_fpn``, which PoolFormer follows: AdamW 2e-4,
batch 32. The backbone is mmdet's, so mmdet must be installed, too.

    python tools/train.py configs/baselines/fpn_pvt-s_8xb4-40k_ade20k-512x512.py
"""

_base_ = './fpn_pvt-t_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        num_layers=[3, 4, 6, 3],
        init_cfg=dict(
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth',
        ),
    ),
)
