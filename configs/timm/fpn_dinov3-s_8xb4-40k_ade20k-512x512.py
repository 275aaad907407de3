"""Semantic FPN, DINOv3-S, 40k iterations, ADE20K: no published number.

The backbone is timm's, with patches of 16, four registers and rotary positions, tapped after each
quarter of its blocks. The recipe is a guess: PoolFormer's schedule, the layer decay of ViTDet. The
weights are under the DINOv3 License, Meta's own
(https://ai.meta.com/resources/models-and-libraries/dinov3-license/): read it before use.

    python tools/train.py configs/timm/fpn_dinov3-s_8xb4-40k_ade20k-512x512.py
"""

_base_ = './fpn_dinov2-s-reg4_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.TimmBackbone',
        model_name='vit_small_patch16_dinov3',
        out_indices=(2, 5, 8, 11),
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_small_patch16_dinov3.lvd1689m'),
    ),
)
