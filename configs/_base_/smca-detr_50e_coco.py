"""Single-scale SMCA-DETR, 50 epochs, COCO, as its authors train it. Add a backbone and a neck.

The command in the README of gaopengcuhk/SMCA-DETR has ``--num_queries 300 --epochs 50 --lr_drop 40
--dynamic_scale type3``; its code has focal loss with weight 2 and matches by it.
"""

_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'

model = dict(
    type='mmpatch.SMCADETR',
    num_queries=300,
    bbox_head=dict(
        type='ConditionalDETRHead',  # DETR's, with boxes that start from reference points
        sync_cls_avg_factor=True,  # the authors average over the boxes of all GPUs
        loss_cls=dict(
            _delete_=True,
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=2.0,
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ]
        )
    ),
)
# Images without objects count, too. Restart the workers every epoch, so that a resumed run matches
# an uninterrupted one.
train_dataloader = dict(
    persistent_workers=False, dataset=dict(filter_cfg=dict(filter_empty_gt=False))
)
train_cfg = dict(max_epochs=50)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[40], gamma=0.1),
]
