"""Semantic FPN with a PoolFormer small enough for two CPU cores, on generated ADE20K data.

``make demo`` trains it. For your own data in ADE20K format, change ``data_root``, the image size
and the schedule (docs/own-data.md).

    python tools/make_toy_data.py && python tools/train.py \
        configs/demo/fpn_poolformer-nano_toy-ade20k.py
"""

_base_ = '../poolformer/fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'

data_root = 'data/toy/ade/'
scale = (208, 176)
crop_size = (160, 160)
batch_size = 8
iters = 200
norm_cfg = dict(type='GN', num_groups=16)  # batches are too small for batch norm

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(depths=(2, 2, 4, 2), dims=(32, 64, 128, 192), layer_scale=None, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64], channels=64, norm_cfg=norm_cfg, dropout_ratio=0.0
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=scale, ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
optim_wrapper = dict(
    optimizer=dict(lr=2e-3, weight_decay=0.05, fused=True), clip_grad=dict(max_norm=10)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=30, end=iters, by_epoch=False),
]
train_cfg = dict(max_iters=iters, val_interval=100)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100, max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=batch_size)
