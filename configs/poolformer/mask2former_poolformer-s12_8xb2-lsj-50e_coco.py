"""Mask2Former for instances, PoolFormer-S12, 50 epochs, COCO: no published number.

The recipe is mmdet's for R50. 31.20 M parameters.

    python tools/train.py configs/poolformer/mask2former_poolformer-s12_8xb2-lsj-50e_coco.py
"""

_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatch.PoolFormer',
        arch='s12',
        init_cfg=dict(type='Pretrained', checkpoint='mmpatch://poolformer-s12_in1k'),
    ),
    panoptic_head=dict(in_channels=[64, 128, 320, 512]),
)
# mmdet's config names folders of panoptic maps, too, which are not read. Restart the workers every
# epoch, so that a resumed run matches an uninterrupted one.
val_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/')))
test_dataloader = val_dataloader
train_dataloader = dict(
    persistent_workers=False, dataset=dict(data_prefix=dict(_delete_=True, img='train2017/'))
)
