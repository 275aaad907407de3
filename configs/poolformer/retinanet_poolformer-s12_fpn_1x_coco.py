"""RetinaNet, PoolFormer-S12, 1x, COCO: 36.2 box AP in the paper (arXiv 2111.11418, Table 3).

Recipe of sail-sg/poolformer, ``detection/configs/retinanet_poolformer_s12_fpn_1x_coco.py``: AdamW
1e-4, weight decay 1e-4, batch 16. 21.65 M parameters.

    python tools/train.py configs/poolformer/retinanet_poolformer-s12_fpn_1x_coco.py
"""

_base_ = '../_base_/retinanet_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.PoolFormer',
        arch='s12',
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://poolformer-s12_in1k'),
    ),
    neck=dict(in_channels=[128, 320, 512], start_level=0),
)
