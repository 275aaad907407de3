"""Semantic FPN, DeiT-T, 80k iterations, ADE20K: 39.4 mIoU in ViT-Adapter's paper.

Plain ViT-T of arXiv 2205.08534, Table 4, 10.2 M parameters: four taps with a norm each, transposed
convolutions and an FPN (czczup/ViT-Adapter, ``segmentation/mmseg_custom/models/backbones/
vit_baseline.py``). The recipe is PVT's, as the paper says in Section 4.2: AdamW 1e-4, weight decay
1e-4, polynomial decay, batch 16, no warm-up. The paper does not give the drop path rate; here it
is 0.

    python tools/train.py configs/vit/fpn_deit-t_tap-fpn_8xb2-80k_ade20k-512x512.py
"""

_base_ = './fpn_deit-s_8xb2-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='tiny', layer_scale=1.0, init_cfg=dict(checkpoint='mmpatch://deit-tiny_in1k')
    ),
    neck=[
        dict(type='mmpatch.TapPyramid', in_channels=[192] * 4, scale_factors=(4, 2, 1, 0.5)),
        dict(type='FPN', in_channels=[192] * 4, out_channels=256, num_outs=4),
    ],
)
