"""RetinaNet, ConvMixer-768/32 with its patch resampled from 7 to 8, 1x, COCO: no published number.

The recipe is a guess: PoolFormer's with weight decay 0.05 and frozen batch norms. The levels start
at strides 8, 16 and 32, so the head keeps mmdet's settings.

    python tools/train.py configs/convmixer/retinanet_convmixer-768-32-p8_sfp_1x_coco.py
"""

_base_ = '../_base_/retinanet_sfp_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.ConvMixer',
        arch='768/32',
        patch_size=8,
        out_indices=(3,),
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        out_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://convmixer-768-32_in1k'),
    ),
    neck=dict(in_channels=768, scale_factors=(1, 0.5, 0.25)),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
