"""Mask R-CNN, DINOv2-S with registers, 1x, COCO: no published number.

The backbone is timm's. Its patches of 14 are resampled to 16, its 37x37 positions stay, so that the
pyramid has the strides that heads assume. Attention runs over all tokens: 4,200 at 800x1344. The
recipe is a guess: PoolFormer's schedule, the layer decay of ViTDet. Licence of the weights:
Apache-2.0.

    python tools/train.py configs/timm/mask-rcnn_dinov2-s-reg4_sfp_1x_coco.py
"""

_base_ = '../_base_/mask-rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.TimmBackbone',
        model_name='vit_small_patch14_reg4_dinov2',
        out_indices=(11,),
        patch_size=16,
        img_size=592,
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_small_patch14_reg4_dinov2.lvd142m'),
    ),
    neck=dict(
        _delete_=True,
        type='mmpatch.SimpleFeaturePyramid',
        in_channels=384,
        out_channels=256,
        scale_factors=(4, 2, 1, 0.5),
        num_outs=5,
    ),
)
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    constructor='mmpatch.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        decay_rate=0.7,
        flat_decay_mult=0.0,
        custom_keys=dict(pos_embed=no_decay, cls_token=no_decay, reg_token=no_decay),
    ),
    optimizer=dict(lr=1e-4, weight_decay=0.05),
)
