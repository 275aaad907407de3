"""Single-scale SMCA-DETR, PoolFormer-S12, 50 epochs, COCO: no published number.

The recipe is the one of R50. 29.31 M parameters.

    python tools/train.py configs/poolformer/smca-detr_poolformer-s12_8xb2-50e_coco.py
"""

_base_ = '../_base_/smca-detr_50e_coco.py'

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
