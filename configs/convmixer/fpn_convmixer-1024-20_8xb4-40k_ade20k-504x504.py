"""Semantic FPN, ConvMixer-1024/20 at its native stride of 14, 40k iterations, ADE20K.

No published number. The recipe is a guess: PoolFormer's with weight decay 0.05 and synchronized
batch norms. The backbone is tapped after each quarter of its blocks; the pyramid turns the taps
into levels of strides 3.5, 7, 14 and 28. The head keeps 4, 8, 16 and 32: it uses only their ratios,
and mmseg's FPNHead rounds the logarithms of the true ones down, which would leave out a step of
upsampling. Crops and test images are multiples of 28.

    python tools/train.py configs/convmixer/fpn_convmixer-1024-20_8xb4-40k_ade20k-504x504.py
"""

_base_ = '../_base_/semantic-fpn_sfp_40k_ade20k.py'

crop_size = (504, 504)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        _delete_=True,
        type='mmpatch.ConvMixer',
        arch='1024/20',
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN'),
        out_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://convmixer-1024-20_in1k'),
    ),
    neck=dict(in_channels=[1024, 1024, 1024, 1024], scale_factors=(4, 2, 1, 0.5)),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 504), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=28),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
