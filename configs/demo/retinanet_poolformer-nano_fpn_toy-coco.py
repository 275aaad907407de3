"""RetinaNet with a PoolFormer small enough for two CPU cores, on generated COCO data.

``make demo`` trains it. For your own data in COCO format, change ``data_root``, the image size
and the schedule (docs/own-data.md).

    python tools/make_toy_data.py && python tools/train.py \
        configs/demo/retinanet_poolformer-nano_fpn_toy-coco.py
"""

_base_ = '../poolformer/retinanet_poolformer-s12_fpn_1x_coco.py'

data_root = 'data/toy/coco/'
scale = (144, 120)
batch_size = 4
epochs = 20
norm_cfg = dict(type='GN', num_groups=16)  # without norms, heads learn slowly from scratch

model = dict(
    backbone=dict(
        depths=(2, 2, 4, 2),
        dims=(32, 64, 128, 192),
        layer_scale=None,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=[64, 128, 192],
        out_channels=64,
        num_outs=3,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        anchor_generator=dict(
            octave_base_scale=3, scales_per_octave=2, ratios=[0.5, 1.0], strides=[8, 16, 32]
        ),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        filter_cfg=dict(filter_empty_gt=False, min_size=8),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
optim_wrapper = dict(
    optimizer=dict(lr=2e-3, weight_decay=0.05, fused=True), clip_grad=dict(max_norm=10)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        eta_min=2e-5,
        by_epoch=True,
        begin=0,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=epochs, val_interval=5)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=batch_size)
