"""DINO with four scales, PoolFormer-S12, 12 epochs, COCO: no published number.

The recipe is mmdet's for R50. 31.39 M parameters.

    python tools/train.py configs/poolformer/dino-4scale_poolformer-s12_8xb2-12e_coco.py
"""

_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.PoolFormer',
        arch='s12',
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://poolformer-s12_in1k'),
    ),
    neck=dict(in_channels=[128, 320, 512]),
)
# Restart the workers every epoch, so that a resumed run matches an uninterrupted one.
train_dataloader = dict(persistent_workers=False)
