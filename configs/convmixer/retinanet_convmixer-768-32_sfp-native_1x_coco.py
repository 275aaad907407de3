"""RetinaNet, ConvMixer-768/32 at its native stride of 7, 1x, COCO: no published number.

The recipe is a guess: PoolFormer's with weight decay 0.05 and frozen batch norms. The levels have
strides 7 to 112, and the anchors keep their usual sizes. Images are padded to multiples of 56, so
that every level but the last covers them exactly.

    python tools/train.py configs/convmixer/retinanet_convmixer-768-32_sfp-native_1x_coco.py
"""

_base_ = './retinanet_convmixer-768-32-p8_sfp_1x_coco.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=56),
    backbone=dict(patch_size=7),
    bbox_head=dict(
        anchor_generator=dict(strides=[7, 14, 28, 56, 112], base_sizes=[8, 16, 32, 64, 128])
    ),
)
