"""Mask R-CNN, ViT-L of MAE with windows, 100 epochs, COCO: ViTDet, 55.5 box AP, 49.2 mask AP.

As ViT-B, but for drop path 0.4 and layer decay 0.8.

    torchrun --nproc_per_node 16 tools/train.py \
        configs/vit/mask-rcnn_vit-l-mae_sfp_16xb4-lsj-100e_coco.py --launcher pytorch
"""

_base_ = './mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py'

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint='mmpatch://mae-large_in1k'),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
