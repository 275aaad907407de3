"""Mask R-CNN, CONTAINER-Light, 1x, COCO: 45.1 box AP, 41.3 mask AP in the paper.

Appendix A: AdamW 1e-4, weight decay 0.05, batch 16, batch norms frozen. The detector's code was not
published: group norms on the outputs are those of a third party's port, the neck is mmdet's.
40.29 M parameters.

The weights lie on Google Drive: ``mmpatch://container-light_in1k`` says where; give the path of the
downloaded file as ``model.backbone.init_cfg.checkpoint``.

    python tools/train.py configs/container/mask-rcnn_container-light_fpn_1x_coco.py
"""

_base_ = '../_base_/mask-rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.Container',
        arch='light',
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        out_norm=dict(type='GN', num_groups=32),
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://container-light_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
