"""DETR, 50 epochs, COCO, on a stride-16 backbone. Add a backbone and its channels.

The pyramid has one level, of stride 32: stride 16 would give the encoder four times the tokens.
"""

_base_ = './detr_50e_coco.py'

model = dict(
    neck=dict(
        _delete_=True,
        type='mmpatch.SimpleFeaturePyramid',
        out_channels=256,
        scale_factors=(0.5,),
    )
)
