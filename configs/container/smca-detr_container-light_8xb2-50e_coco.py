"""Single-scale SMCA-DETR, CONTAINER-Light, 50 epochs, COCO: 44.2 box AP (R50 41.0).

Both figures and the recipe are in the README of gaopengcuhk/SMCA-DETR. Batch norms are frozen, as
in DETR. 38.03 M parameters.

The weights are on Google Drive: ``mmpatch://container-light_in1k`` prints the link. Download the
file and give its path as ``model.backbone.init_cfg.checkpoint``.

    python tools/train.py configs/container/smca-detr_container-light_8xb2-50e_coco.py
"""

_base_ = '../_base_/smca-detr_50e_coco.py'

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
