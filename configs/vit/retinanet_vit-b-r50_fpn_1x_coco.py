"""RetinaNet, hybrid R50+ViT-B/16, 1x, COCO: no published number.

The FPN takes the ResNet's map of stride 8 and the ViT's of stride 16, and adds three levels by
convolution. Google's weights, pre-trained on ImageNet-21k and fine-tuned on ImageNet-1k, expect
pixels as (x - 127.5) / 127.5. The recipe is a guess: that of ViT-Adapter's plain ViTs, but without
drop path and with weight decay on biases.

    python tools/train.py configs/vit/retinanet_vit-b-r50_fpn_1x_coco.py
"""

_base_ = '../_base_/retinanet_1x_coco.py'

model = dict(
    data_preprocessor=dict(
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
    ),
    backbone=dict(
        _delete_=True,
        type='mmpatch.VisionTransformer',
        arch='base-r50-s16',
        pretrain_img_size=384,
        with_cls_token=False,
        window_size=14,
        stem_indices=(1,),
        out_indices=(3,),
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://vit-base-r50-s16_in1k'),
    ),
    neck=dict(in_channels=[512, 768], start_level=0),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(pos_embed=dict(decay_mult=0.0))),
)
