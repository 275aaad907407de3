"""DETR, CONTAINER-Light, 50 epochs, COCO: 38.9 box AP in the paper (R50 32.3).

Appendix A.4 trains as DETR does, without naming epochs; R50's 32.3 is that of PVT's 50 epochs, so
they are taken here (a guess). Batch norms are frozen. 37.79 M parameters.

The weights lie on Google Drive: ``mmpatch://container-light_in1k`` says where; give the path of the
downloaded file as ``model.backbone.init_cfg.checkpoint``.

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
