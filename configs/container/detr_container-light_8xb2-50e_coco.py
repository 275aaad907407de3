"""DETR, CONTAINER-Light, 50 epochs, COCO: 38.9 box AP in the paper (R50 32.3).

Appendix A.4 follows DETR's settings but names no number of epochs. 50 is a guess: R50's 32.3 is
what PVT reports after 50. Batch norms are frozen. 37.79 M parameters.

The weights are on Google Drive: ``mmpatch://container-light_in1k`` prints the link. Download the
file and give its path as ``model.backbone.init_cfg.checkpoint``.

    python tools/train.py configs/container/detr_container-light_8xb2-50e_coco.py
"""

_base_ = '../_base_/detr_50e_coco.py'

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
