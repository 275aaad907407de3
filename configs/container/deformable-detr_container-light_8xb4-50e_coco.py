"""Single-scale Deformable DETR, CONTAINER-Light, 50 epochs, COCO: 43.0 box AP, second hand.

Appendix A.4 follows the settings of Deformable DETR, without multi-scale, on 8 x 4 images. Batch
norms are frozen. 30.34 M parameters.

The weights are on Google Drive: ``mmpatch://container-light_in1k`` prints the link. Download the
file and give its path as ``model.backbone.init_cfg.checkpoint``.

    python tools/train.py configs/container/deformable-detr_container-light_8xb4-50e_coco.py
"""

_base_ = '../_base_/deformable-detr_single-scale_50e_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.Container',
        arch='light',
        out_indices=(3,),
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        out_norm=dict(type='GN', num_groups=32),
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://container-light_in1k'),
    ),
    neck=dict(in_channels=[512]),
)
