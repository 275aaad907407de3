"""Mask R-CNN, PoolFormer-S12 with attention in its last two stages, 1x, COCO: no published number.

The backbone is the hybrid of the paper's Table 5 ([Pool, Pool, Attention, Attention], 81.0 top-1 on
ImageNet) with its published weights. The recipe is PoolFormer's.

    python tools/train.py configs/poolformer/mask-rcnn_poolformer-s12-ppaa_fpn_1x_coco.py
"""

_base_ = './mask-rcnn_poolformer-s12_fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='s12-ppaa', init_cfg=dict(checkpoint='mmpatch://metaformer-ppaa-s12_in1k'))
)
