"""RetinaNet, PVT-Tiny, 1x, COCO: 36.7 box AP in PoolFormer's paper (Table 3).

Recipe of whai362/PVT, ``detection/configs``, which PoolFormer follows: AdamW 1e-4, batch 16.

    python tools/train.py configs/baselines/retinanet_pvt-t_fpn_1x_coco.py
"""

_base_ = '../_base_/retinanet_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='PyramidVisionTransformer',
        num_layers=[2, 2, 2, 2],
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
