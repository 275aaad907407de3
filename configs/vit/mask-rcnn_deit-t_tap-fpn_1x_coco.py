"""Mask R-CNN, DeiT-T with windows, 1x, COCO: 35.5 box AP, 33.5 mask AP in ViT-Adapter's paper.

Plain ViT-T of arXiv 2205.08534, Table 1, 26.1 M parameters: four taps with a norm each, transposed
convolutions and an FPN. Network, optimizer and drop path are those of czczup/ViT-Adapter,
``detection/configs/mask_rcnn/mask_rcnn_deit_tiny_fpn_3x_coco.py``, the schedule is the paper's 1x,
as in ``mask_rcnn_deit_adapter_tiny_fpn_1x_coco.py``. One detail differs: tokens that fill up
windows have keys and values of zero there, here those of a zero token.

    python tools/train.py configs/vit/mask-rcnn_deit-t_tap-fpn_1x_coco.py
"""

_base_ = '../_base_/mask-rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.VisionTransformer',
        arch='tiny',
        with_cls_token=False,
        window_size=14,
        layer_scale=1.0,
        antialias=False,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://deit-tiny_in1k'),
    ),
    neck=[
        dict(type='mmpatch.TapPyramid', in_channels=[192] * 4, scale_factors=(4, 2, 1, 0.5)),
        dict(type='FPN', in_channels=[192] * 4, out_channels=256, num_outs=5),
    ],
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(decay_mult=0.0)),
    ),
)
