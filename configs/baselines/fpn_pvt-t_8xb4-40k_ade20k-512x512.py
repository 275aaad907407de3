"""Semantic FPN, PVT-Tiny, 40k, ADE20K: 35.7 mIoU in PoolFormer's paper (Table 4).

Recipe of whai362/PVT, ``segmentation/configs/sem_fpn``, which PoolFormer follows: AdamW 2e-4,
batch 32. The backbone is mmdet's, so mmdet must be installed, too.

    python tools/train.py configs/baselines/fpn_pvt-t_8xb4-40k_ade20k-512x512.py
"""

_base_ = '../_base_/semantic-fpn_40k_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.PyramidVisionTransformer',
        num_layers=[2, 2, 2, 2],
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
