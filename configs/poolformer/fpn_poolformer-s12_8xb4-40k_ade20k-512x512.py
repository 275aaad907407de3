"""Semantic FPN, PoolFormer-S12, 40k iterations, ADE20K: 37.2 mIoU in the paper (Table 4).

Recipe of sail-sg/poolformer, ``segmentation/configs/sem_fpn/PoolFormer``. 15.67 M parameters.

    python tools/train.py configs/poolformer/fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py
"""

_base_ = '../_base_/semantic-fpn_40k_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.PoolFormer',
        arch='s12',
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://poolformer-s12_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
