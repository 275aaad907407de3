"""RetinaNet, DeiT-S with windows, 1x, COCO: no published number.

Weight decay and windows as the ViTs of ViT-Adapter's Table (arXiv 2205.08534: AdamW 1e-4, 0.05,
windows of 14 but in every quarter's last block); for RetinaNet they are a guess.

    python tools/train.py configs/vit/retinanet_deit-s_sfp_1x_coco.py
"""

_base_ = '../_base_/retinanet_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.VisionTransformer',
        arch='small',
        out_indices=(3,),
        out_norm=False,
        with_cls_token=False,
        window_size=14,
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://deit-small_in1k'),
    ),
    neck=dict(
        _delete_=True,
        type='mmpatch.SimpleFeaturePyramid',
        in_channels=384,
        out_channels=256,
        scale_factors=(2, 1, 0.5),
        num_outs=5,
    ),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(pos_embed=dict(decay_mult=0.0))),
)
