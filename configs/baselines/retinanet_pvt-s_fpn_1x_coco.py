"""RetinaNet, PVT-Small, 1x, COCO: 40.4 box AP in PoolFormer's paper (Table 3).

Recipe of whai362/PVT, ``detection/configs``, which PoolFormer follows: AdamW 1e-4, batch 16.

    python tools/train.py configs/baselines/retinanet_pvt-s_fpn_1x_coco.py
"""

_base_ = './retinanet_pvt-t_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        num_layers=[3, 4, 6, 3],
        init_cfg=dict(
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth',
        ),
    ),
)
