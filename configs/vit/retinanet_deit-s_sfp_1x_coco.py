"""RetinaNet, DeiT-S with windows, 1x, COCO: no published number.

Windows of 14 except in the last block of each quarter, AdamW 1e-4, weight decay 0.05 on weights
only and drop path 0.1: ViT-Adapter's settings for plain ViTs in Mask R-CNN (arXiv 2205.08534). That
they suit RetinaNet and this neck is a guess. Theirs is an FPN over four taps with a norm each; here
all levels come from the last map.

    python tools/train.py configs/vit/retinanet_deit-s_sfp_1x_coco.py
"""

_base_ = '../_base_/retinanet_sfp_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.VisionTransformer',
        arch='small',
        out_indices=(3,),
        out_norm=False,
        with_cls_token=False,
        window_size=14,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://deit-small_in1k'),
    ),
    neck=dict(in_channels=384, scale_factors=(2, 1, 0.5)),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(decay_mult=0.0)),
    ),
)
