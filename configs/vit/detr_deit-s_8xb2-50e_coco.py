"""DETR, DeiT-S with windows, 50 epochs, COCO: no published number.

The recipe is the one of PVT's DETR.

    python tools/train.py configs/vit/detr_deit-s_8xb2-50e_coco.py
"""

_base_ = '../_base_/detr_sfp_50e_coco.py'

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
    neck=dict(in_channels=384),
)
