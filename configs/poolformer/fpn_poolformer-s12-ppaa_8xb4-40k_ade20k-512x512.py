"""Semantic FPN, PoolFormer-S12 with attention in two stages, 40k, ADE20K: no published number.

The backbone is the hybrid of the paper's Table 5 ([Pool, Pool, Attention, Attention], 81.0 top-1 on
ImageNet) with its published weights. The recipe is PoolFormer's.

    python tools/train.py configs/poolformer/fpn_poolformer-s12-ppaa_8xb4-40k_ade20k-512x512.py
"""

_base_ = './fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='s12-ppaa', init_cfg=dict(checkpoint='mmpatch://metaformer-ppaa-s12_in1k'))
)
