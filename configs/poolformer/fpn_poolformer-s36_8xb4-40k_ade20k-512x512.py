"""Semantic FPN, PoolFormer-S36, 40k iterations, ADE20K: 42.0 mIoU in the paper (Table 4).

34.62 M parameters.

    python tools/train.py configs/poolformer/fpn_poolformer-s36_8xb4-40k_ade20k-512x512.py
"""

_base_ = './fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='s36',
        init_cfg=dict(checkpoint='mmpatch://poolformer-s36_in1k'),
    ),
)
