"""Mask R-CNN, 1x, COCO, with AdamW as PVT and PoolFormer train it; a backbone and neck to add."""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4),
)
# Workers start anew each epoch, so that a resumed run equals one that was never interrupted.
train_dataloader = dict(persistent_workers=False)
