"""RetinaNet, ConvMixer-768/32 at its native stride of 7, 1x, COCO: no published number.

Nobody has published a dense ConvMixer: the recipe is a guess, PoolFormer's with weight decay 0.05.
Levels of strides 7 to 112 with anchors of the usual sizes; images are padded to multiples of 56, so
that all but the last level cover them exactly. Batch norms are frozen.

    python tools/train.py configs/convmixer/retinanet_convmixer-768-32_sfp-native_1x_coco.py
"""

_base_ = '../_base_/retinanet_1x_coco.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=56),
    backbone=dict(
        _delete_=True,
        type='mmpatch.ConvMixer',
        arch='768/32',
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
        scale_factors=(1, 0.5, 0.25),
        num_outs=5,
    ),
    bbox_head=dict(
        anchor_generator=dict(strides=[7, 14, 28, 56, 112], base_sizes=[8, 16, 32, 64, 128])
    ),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
