"""Semantic FPN, PoolFormer-M36, 40k iterations, ADE20K: 42.4 mIoU in the paper (Table 4).

59.78 M parameters.

    python tools/train.py configs/poolformer/fpn_poolformer-m36_8xb4-40k_ade20k-512x512.py
"""

_base_ = './fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='m36',
        init_cfg=dict(checkpoint='mmpatch://poolformer-m36_in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
