"""Semantic FPN, DeiT-B, 80k iterations, ADE20K: 46.4 mIoU in ViT-Adapter's paper.

As DeiT-T; 98.0 M parameters in the paper.

    python tools/train.py configs/vit/fpn_deit-b_tap-fpn_8xb2-80k_ade20k-512x512.py
"""

_base_ = './fpn_deit-t_tap-fpn_8xb2-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='mmpatch://deit-base_in1k')),
    neck=[
        dict(type='mmpatch.TapPyramid', in_channels=[768] * 4, scale_factors=(4, 2, 1, 0.5)),
        dict(type='FPN', in_channels=[768] * 4, out_channels=256, num_outs=4),
    ],
)
