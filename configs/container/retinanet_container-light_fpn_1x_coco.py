"""RetinaNet, CONTAINER-Light, 1x, COCO: 43.8 box AP in the paper (arXiv 2106.01401).

Appendix A.2: AdamW 1e-4, weight decay 0.05, batch 16, frozen batch norms. The authors did not
publish this detector's code: the neck is mmdet's, and the group norms on the backbone's outputs
follow a third-party port. 30.37 M parameters.

The weights are on Google Drive: ``mmpatch://container-light_in1k`` prints the link. Download the
file and give its path as ``model.backbone.init_cfg.checkpoint``.

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
