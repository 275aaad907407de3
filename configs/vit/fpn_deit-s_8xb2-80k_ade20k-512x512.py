"""Semantic FPN, DeiT-S, 80k iterations, ADE20K: 44.6 mIoU for a ViT-S in ViT-Adapter's paper.

arXiv 2205.08534 has 27.8 M parameters with another neck; here four taps, one after each quarter of
the blocks, are rescaled to strides 4 to 32. Batch 16; rates and weight decay are a guess.

    python tools/train.py configs/vit/fpn_deit-s_8xb2-80k_ade20k-512x512.py
"""

_base_ = '../_base_/semantic-fpn_40k_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.VisionTransformer',
        arch='small',
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://deit-small_in1k'),
    ),
    neck=dict(
        _delete_=True,
        type='mmpatch.SimpleFeaturePyramid',
        in_channels=[384, 384, 384, 384],
        out_channels=256,
        scale_factors=(4, 2, 1, 0.5),
    ),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(decay_mult=0.0), cls_token=dict(decay_mult=0.0)),
    ),
)
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=1500, end=80000, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
