"""Semantic FPN, DeiT-S, 80k iterations, ADE20K: 44.6 mIoU for a plain ViT-S in ViT-Adapter's paper.

Recipe of arXiv 2205.08534, Section 4.2, which is PVT's: AdamW 1e-4, weight decay 1e-4, polynomial
decay, batch 16, no warm-up. The paper does not give the drop path rate; here it is 0. The neck
differs from the paper's, whose whole model has 27.8 M parameters: here four taps, one after each
quarter of the blocks, are rescaled to strides 4 to 32 without an FPN.

    python tools/train.py configs/vit/fpn_deit-s_8xb2-80k_ade20k-512x512.py
"""

_base_ = '../_base_/semantic-fpn_sfp_40k_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.VisionTransformer',
        arch='small',
        with_cls_token=False,
        antialias=False,
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://deit-small_in1k'),
    ),
    neck=dict(in_channels=[384, 384, 384, 384], scale_factors=(4, 2, 1, 0.5)),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=80000, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
