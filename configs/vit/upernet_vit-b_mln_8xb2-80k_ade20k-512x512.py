"""UPerNet, ViT-B/16, 80k iterations, ADE20K: 47.7 mIoU for mmseg's own ViT.

Recipe and number of mmseg, ``configs/vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py`` and
its metafile: AdamW 6e-5, weight decay 0.01 but for norms, positions and class token, warm-up of
1500 iterations, linear decay, batch 16. Positions are resampled for 32 x 32 tokens when the weights
are loaded. Pixels are normalised as for ImageNet, although Google's weights were trained with
(x - 127.5) / 127.5. The patch embedding has its bias, which mmseg's leaves out.

    python tools/train.py configs/vit/upernet_vit-b_mln_8xb2-80k_ade20k-512x512.py
"""

_base_ = [
    'mmseg::_base_/models/upernet_vit-b16_ln_mln.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_80k.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type='mmpatch.VisionTransformer',
        arch='base',
        pretrain_img_size=512,
        antialias=False,
        out_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://vit-base-p16_in1k'),
    ),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(decay_mult=0.0), cls_token=dict(decay_mult=0.0)),
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=80000, by_epoch=False),
]
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(enable=False, base_batch_size=16)
