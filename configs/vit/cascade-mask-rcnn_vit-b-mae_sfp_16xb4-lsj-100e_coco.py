"""Cascade Mask R-CNN, ViT-B of MAE, 100 epochs, COCO: ViTDet, 54.0 box AP, 46.7 mask AP.

Recipe and numbers of detectron2, ``projects/ViTDet``, ``cascade_mask_rcnn_vitdet_b_100ep.py`` and
README: three box heads for overlaps of 0.5, 0.6 and 0.7. mmdet has a mask head for each stage and
averages their masks, detectron2 has one head; so this model has 5.3 M parameters more. detectron2
adds up the losses of the stages and passes a third of their gradient on to the maps; with AdamW,
weights of a third do the same.

    torchrun --nproc_per_node 16 tools/train.py \
        configs/vit/cascade-mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py --launcher pytorch
"""

_base_ = './mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py'

bbox_heads = [
    dict(
        type='mmdet.Shared4Conv1FCBBoxHead',
        in_channels=256,
        conv_out_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=80,
        norm_cfg=dict(type='mmpatch.LN2d', eps=1e-6),
        bbox_coder=dict(
            type='mmdet.DeltaXYWHBBoxCoder',
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[1 / weight, 1 / weight, 2 / weight, 2 / weight],
        ),
        reg_class_agnostic=True,
        loss_cls=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type='mmdet.L1Loss', loss_weight=1.0),
    )
    for weight in (10, 20, 30)
]
samples = [
    dict(
        assigner=dict(
            type='mmdet.MaxIoUAssigner',
            pos_iou_thr=overlap,
            neg_iou_thr=overlap,
            min_pos_iou=overlap,
            match_low_quality=False,
            ignore_iof_thr=-1,
        ),
        sampler=dict(
            type='mmdet.RandomSampler',
            num=512,
            pos_fraction=0.25,
            neg_pos_ub=-1,
            add_gt_as_proposals=True,
        ),
        mask_size=28,
        pos_weight=-1,
        debug=False,
    )
    for overlap in (0.5, 0.6, 0.7)
]
model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1 / 3, 1 / 3, 1 / 3],
        bbox_head=bbox_heads,
    ),
    train_cfg=dict(rcnn=samples),
)
