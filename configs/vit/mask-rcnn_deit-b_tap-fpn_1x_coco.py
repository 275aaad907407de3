"""Mask R-CNN, DeiT-B with windows, 1x, COCO: 42.9 box AP, 39.4 mask AP in ViT-Adapter's paper.

As DeiT-T; 113.6 M parameters in the paper.

    python tools/train.py configs/vit/mask-rcnn_deit-b_tap-fpn_1x_coco.py
"""

_base_ = './mask-rcnn_deit-t_tap-fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='mmpatch://deit-base_in1k')),
    neck=[
        dict(type='mmpatch.TapPyramid', in_channels=[768] * 4, scale_factors=(4, 2, 1, 0.5)),
        dict(type='FPN', in_channels=[768] * 4, out_channels=256, num_outs=5),
    ],
)
