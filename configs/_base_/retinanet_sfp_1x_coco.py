"""RetinaNet, 1x schedule, COCO, with a simple feature pyramid. Add a backbone and its scales."""

_base_ = './retinanet_1x_coco.py'

model = dict(
    neck=dict(_delete_=True, type='mmpatch.SimpleFeaturePyramid', out_channels=256, num_outs=5)
)
