"""Semantic FPN, CONTAINER-Light, 40k iterations, ADE20K: no published number.

The recipe is a guess: PoolFormer's, with the weight decay of CONTAINER's detectors and synchronized
batch norms. 24.39 M parameters.

The weights are on Google Drive: ``mmpatch://container-light_in1k`` prints the link. Download the
file and give its path as ``model.backbone.init_cfg.checkpoint``.

    python tools/train.py configs/container/fpn_container-light_8xb4-40k_ade20k-512x512.py
"""

_base_ = '../_base_/semantic-fpn_40k_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.Container',
        arch='light',
        norm_cfg=dict(type='SyncBN'),
        out_norm=dict(type='GN', num_groups=32),
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://container-light_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
