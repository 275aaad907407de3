"""Mask R-CNN, ViT-B of MAE with windows, 100 epochs, COCO: ViTDet, 51.6 box AP, 45.9 mask AP.

Recipe and numbers of detectron2, ``projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py`` and
its README: AdamW 1e-4 with layer decay 0.7, weight decay 0.1, batch 64, 184375 iterations,
large-scale jitter at 1024, mixed precision. Gradients are exchanged in float32; detectron2
compresses them to float16. The licence of MAE's weights forbids commercial use.

    torchrun --nproc_per_node 16 tools/train.py \
        configs/vit/mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py --launcher pytorch
"""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::common/lsj-100e_coco-instance.py',
]

image_size = (1024, 1024)
norm_cfg = dict(type='mmpatch.LN2d', eps=1e-6)  # mmcv's default is 1e-5
model = dict(
    # Images of at most 1024 x 1024 become 1024 x 1024, padded with zeros after normalization.
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        _delete_=True,
        type='mmpatch.VisionTransformer',
        arch='base',
        with_cls_token=False,
        window_size=14,
        rel_pos=True,
        img_size=1024,
        antialias=False,
        drop_path_rate=0.1,
        out_indices=(3,),
        out_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://mae-base_in1k'),
    ),
    neck=dict(
        _delete_=True,
        type='mmpatch.SimpleFeaturePyramid',
        in_channels=768,
        out_channels=256,
        scale_factors=(4, 2, 1, 0.5),
        num_outs=5,
    ),
    rpn_head=dict(num_convs=2),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),
    roi_head=dict(
        bbox_head=dict(
            type='mmdet.Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg
        ),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=4, num_workers=8, sampler=dict(type='InfiniteSampler', shuffle=True)
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
max_iters = 184375
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    constructor='mmpatch.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        decay_rate=0.7, norm_decay_mult=0.0, custom_keys=dict(pos_embed=dict(decay_mult=0.0))
    ),
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[163889, 177546],
        gamma=0.1,
    ),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000))
log_processor = dict(by_epoch=False)
