"""DETR, 50 epochs, COCO, as PVT trains it (whai362/PVT). Add a backbone and a neck.

Differs from mmdet's 150-epoch DETR in three ways: the learning rate drops after epoch 33 of 50, the
short side is 640 to 800 without crops, and images are padded to a multiple of 32.
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
# Restart the workers every epoch, so that a resumed run matches an uninterrupted one.
train_dataloader = dict(persistent_workers=False, dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=50)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[33], gamma=0.1),
]
