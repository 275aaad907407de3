"""Mask R-CNN, ConvMixer-768/32 with its patch resampled from 7 to 8, 1x, COCO: no published number.

The recipe is a guess: CONTAINER's, with AdamW 1e-4, weight decay 0.05 and frozen batch norms.

    python tools/train.py configs/convmixer/mask-rcnn_convmixer-768-32-p8_sfp_1x_coco.py
"""

_base_ = '../_base_/mask-rcnn_1x_coco.py'

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
    neck=dict(
        _delete_=True,
        type='mmpatch.SimpleFeaturePyramid',
        in_channels=768,
        out_channels=256,
        scale_factors=(2, 1, 0.5, 0.25),
        num_outs=5,
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
