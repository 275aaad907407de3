"""Cascade Mask R-CNN, ViT-H of MAE, 75 epochs, COCO: ViTDet, 58.7 box AP, 51.0 mask AP.

The cascade with ViT-B, with the backbone, rates and schedule of Mask R-CNN with ViT-H (detectron2,
``cascade_mask_rcnn_vitdet_h_75ep.py``).

    torchrun --nproc_per_node 16 tools/train.py \
        configs/vit/cascade-mask-rcnn_vit-h-mae_sfp_16xb4-lsj-75e_coco.py --launcher pytorch
"""

_base_ = './cascade-mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py'

model = dict(
    backbone=dict(
        arch='huge',
        patch_size=16,
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='mmpatch://mae-huge_in1k'),
    ),
    neck=dict(in_channels=1280),
)
max_iters = 138281
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, decay_rate=0.9))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[122916, 133159],
        gamma=0.1,
    ),
]
