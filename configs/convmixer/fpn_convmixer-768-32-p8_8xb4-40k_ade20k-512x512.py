"""Semantic FPN, ConvMixer-768/32 with its patch resampled from 7 to 8, 40k iterations, ADE20K.

No published number. The recipe is a guess: PoolFormer's with weight decay 0.05 and synchronized
batch norms.

    python tools/train.py configs/convmixer/fpn_convmixer-768-32-p8_8xb4-40k_ade20k-512x512.py
"""

_base_ = '../_base_/semantic-fpn_sfp_40k_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.ConvMixer',
        arch='768/32',
        patch_size=8,
        out_indices=(3,),
        norm_cfg=dict(type='SyncBN'),
        out_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://convmixer-768-32_in1k'),
    ),
    neck=dict(in_channels=768, scale_factors=(2, 1, 0.5, 0.25)),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
