"""Cascade Mask R-CNN, ViT-L of MAE, 100 epochs, COCO: ViTDet, 57.6 box AP, 50.0 mask AP.

The cascade with ViT-B, with the backbone, rates and schedule of Mask R-CNN with ViT-L (detectron2,
``cascade_mask_rcnn_vitdet_l_100ep.py``).

    torchrun --nproc_per_node 16 tools/train.py \
        configs/vit/cascade-mask-rcnn_vit-l-mae_sfp_16xb4-lsj-100e_coco.py --launcher pytorch
"""

_base_ = './cascade-mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py'

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint='mmpatch://mae-large_in1k'),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
