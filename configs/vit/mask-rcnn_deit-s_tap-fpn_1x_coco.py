"""Mask R-CNN, DeiT-S with windows, 1x, COCO: 40.2 box AP, 37.1 mask AP in ViT-Adapter's paper.

As DeiT-T; 43.8 M parameters in the paper.

    python tools/train.py configs/vit/mask-rcnn_deit-s_tap-fpn_1x_coco.py
"""

_base_ = './mask-rcnn_deit-t_tap-fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='mmpatch://deit-small_in1k')),
    neck=[
        dict(type='mmpatch.TapPyramid', in_channels=[384] * 4, scale_factors=(4, 2, 1, 0.5)),
        dict(type='FPN', in_channels=[384] * 4, out_channels=256, num_outs=5),
    ],
)
