"""Mask R-CNN, DINOv3-S, 1x, COCO: no published number.

The backbone is timm's, with patches of 16, four registers and rotary positions. Attention runs over
all tokens: 4,200 at 800x1344. The recipe is a guess: PoolFormer's schedule, the layer decay of
ViTDet. The weights are under the DINOv3 License, Meta's own
(https://ai.meta.com/resources/models-and-libraries/dinov3-license/): read it before use.

    python tools/train.py configs/timm/mask-rcnn_dinov3-s_sfp_1x_coco.py
"""

_base_ = './mask-rcnn_dinov2-s-reg4_sfp_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.TimmBackbone',
        model_name='vit_small_patch16_dinov3',
        out_indices=(11,),
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_small_patch16_dinov3.lvd1689m'),
    ),
)
