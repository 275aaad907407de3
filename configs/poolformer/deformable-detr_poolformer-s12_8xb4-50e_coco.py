"""Single-scale Deformable DETR, PoolFormer-S12, 50 epochs, COCO: no published number.

The recipe is the one of R50. 21.62 M parameters.

    python tools/train.py configs/poolformer/deformable-detr_poolformer-s12_8xb4-50e_coco.py
"""

_base_ = '../_base_/deformable-detr_single-scale_50e_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.PoolFormer',
        arch='s12',
        out_indices=(3,),
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://poolformer-s12_in1k'),
    ),
    neck=dict(in_channels=[512]),
)
