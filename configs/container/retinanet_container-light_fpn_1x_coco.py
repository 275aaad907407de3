"""RetinaNet, CONTAINER-Light, 1x, COCO: 43.8 box AP in the paper (arXiv 2106.01401).

Appendix A.2: AdamW 1e-4, weight decay 0.05, batch 16, batch norms frozen. The detector's code was
not published: group norms on the outputs are those of a third party's port, the neck is mmdet's.
30.37 M parameters.

The weights lie on Google Drive: ``mmpatch://container-light_in1k`` says where; give the path of the
downloaded file as ``model.backbone.init_cfg.checkpoint``.

    python tools/train.py configs/container/retinanet_container-light_fpn_1x_coco.py
"""

_base_ = '../_base_/retinanet_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.Container',
        arch='light',
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        out_norm=dict(type='GN', num_groups=32),
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://container-light_in1k'),
    ),
    neck=dict(in_channels=[128, 320, 512], start_level=0),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
