"""Semantic FPN, 40k, ADE20K, with a simple feature pyramid. Add a backbone and its scales."""

_base_ = './semantic-fpn_40k_ade20k.py'

model = dict(neck=dict(_delete_=True, type='mmpatch.SimpleFeaturePyramid', out_channels=256))
