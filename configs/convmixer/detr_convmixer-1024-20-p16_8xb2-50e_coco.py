"""DETR, ConvMixer-1024/20 with its patch resampled from 14 to 16, 50 epochs, COCO.

No published number. The recipe is the one of PVT's DETR, with frozen batch norms.

    python tools/train.py configs/convmixer/detr_convmixer-1024-20-p16_8xb2-50e_coco.py
"""

_base_ = '../_base_/detr_sfp_50e_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.ConvMixer',
        arch='1024/20',
        patch_size=16,
        out_indices=(3,),
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        out_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://convmixer-1024-20_in1k'),
    ),
    neck=dict(in_channels=1024),
)
