"""Semantic FPN, PoolFormer-S24, 40k iterations, ADE20K: 40.3 mIoU in the paper (Table 4).

25.14 M parameters. The paper prints 23.2 M, but the authors' code builds 25.14 M.

    python tools/train.py configs/poolformer/fpn_poolformer-s24_8xb4-40k_ade20k-512x512.py
"""

_base_ = './fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='s24',
        init_cfg=dict(checkpoint='mmpatch://poolformer-s24_in1k'),
    ),
)
