"""RetinaNet, ResNet-50, 1x, COCO: 36.3 box AP in PoolFormer's paper (Table 3).

PoolFormer's recipe for mmdet's network: AdamW 1e-4, weight decay 1e-4, batch 16. The first stage
and batch statistics are frozen, as in mmdet. The paper takes the number from PVT's.

    python tools/train.py configs/baselines/retinanet_r50_fpn_1x_coco.py
"""

_base_ = '../_base_/retinanet_1x_coco.py'
