"""DETR, 50 epochs, COCO, as PVT trains it (README of whai362/PVT); a backbone and neck to add.

Against mmdet's DETR: 50 epochs with a step at 33, short sides 640 to 800 only, images padded to 32.
"""

_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'

model = dict(data_preprocessor=dict(pad_size_divisor=32))
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, side) for side in range(640, 801, 32)],
        keep_ratio=True,
    ),
    dict(type='PackDetInputs'),
]
# Workers start anew each epoch, so that a resumed run equals one that was never interrupted.
train_dataloader = dict(persistent_workers=False, dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=50)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[33], gamma=0.1),
]
