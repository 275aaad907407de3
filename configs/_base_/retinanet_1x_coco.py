"""RetinaNet, 1x schedule, COCO, AdamW as in PVT and PoolFormer. Add a backbone and a neck."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4),
)
# Restart the workers every epoch, so that a resumed run matches an uninterrupted one.
train_dataloader = dict(persistent_workers=False)
