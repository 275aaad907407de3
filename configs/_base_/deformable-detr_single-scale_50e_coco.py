"""Single-scale Deformable DETR, 50 epochs, COCO: mmdet's recipe on one map of stride 32.

Add a backbone and a neck. The authors' code has this as ``--num_feature_levels 1``, without box
refinement and second stage. Four images on each of eight GPUs.
"""

_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    num_feature_levels=1,
    neck=dict(num_outs=1),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=1))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=1))),
)
# Restart the workers every epoch, so that a resumed run matches an uninterrupted one.
train_dataloader = dict(batch_size=4, persistent_workers=False)
