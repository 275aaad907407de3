"""Every config trains with the recipe that its source published, or says that it guesses.

``guess`` marks a recipe that nobody has published for this backbone and head; it says what the
recipe takes from where. The values of the other rows come from the files or papers in ``source``.
``model`` lists where the model differs from the one of mmdet or mmseg that its config starts from.
"""

import re
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

import mmpatch

FLIP = {'type': 'RandomFlip', 'prob': 0.5}
RESIZE = {'type': 'Resize', 'scale': [1333, 800], 'keep_ratio': True}
NOT_EMPTY = {'filter_empty_gt': True, 'min_size': 32}  # training images; sides in pixels
WARMUP = {'type': 'LinearLR', 'start_factor': 0.001, 'by_epoch': False, 'begin': 0, 'end': 500}
FROZEN = ({'type': 'BN', 'requires_grad': False}, True)  # norm_cfg and norm_eval of the backbone
SYNCHRONIZED = ({'type': 'SyncBN'}, None)
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])  # mean and deviation of pixels
HALF = ([127.5] * 3, [127.5] * 3)
SMALL, MEDIUM = [64, 128, 320, 512], [96, 192, 384, 768]
#: Outputs of a pyramid that RetinaNet's FPN takes.
LAST_THREE = {
    'backbone.out_indices': [1, 2, 3],
    'neck.in_channels': SMALL[1:],
    'neck.start_level': 0,
}
GROUPS = {'backbone.out_norm.num_groups': 32}
DETECTION = 'sail-sg/poolformer, detection/configs'
SEGMENTATION = 'sail-sg/poolformer, segmentation/configs/sem_fpn/PoolFormer'


def multi_step(end, *milestones, by_epoch=True):
    """Learning rate times 0.1 at each milestone."""
    schedule = {'type': 'MultiStepLR', 'by_epoch': by_epoch, 'begin': 0, 'end': end}
    return {**schedule, 'milestones': [*milestones], 'gamma': 0.1}


def poly(end):
    """Polynomial decay to 0."""
    schedule = {'type': 'PolyLR', 'by_epoch': False, 'begin': 0, 'end': end}
    return {**schedule, 'power': 0.9, 'eta_min': 0.0}


def crop(side):
    """Training transforms of Semantic FPN."""
    return [
        {
            'type': 'RandomResize',
            'scale': [2048, 512],
            'ratio_range': [0.5, 2.0],
            'keep_ratio': True,
        },
        {'type': 'RandomCrop', 'crop_size': [side, side], 'cat_max_ratio': 0.75},
        FLIP,
        {'type': 'PhotoMetricDistortion'},
    ]


def short_side(side, divisor):
    """Test transforms of Semantic FPN."""
    return [
        {'type': 'Resize', 'scale': [2048, side], 'keep_ratio': True},
        {'type': 'ResizeToMultiple', 'size_divisor': divisor},
    ]


def without_guess(recipe):
    """A recipe where its source has the same network."""
    return {field: value for field, value in recipe.items() if field != 'guess'}


def pyramid(channels, *scales):
    """Neck of an isotropic backbone."""
    return {'neck.in_channels': channels, 'neck.scale_factors': [*scales]}


#: Last output of an isotropic backbone, without a norm.
LAST = {'backbone.out_indices': [3], 'backbone.out_norm': False}
ADE20K = {'decode_head.num_classes': 150}
CONVMIXER = {'backbone.arch': '768/32', **LAST}
#: One output after each quarter of a ViT's blocks.
FOUR_TAPS = {'backbone.antialias': False, 'backbone.with_cls_token': False, **ADE20K}
WINDOWS = {**LAST, 'backbone.window_size': 14, 'backbone.with_cls_token': False}
#: What a recipe does not mention.
DEFAULTS = {
    'optimizer': 'AdamW',
    'betas': None,
    'constructor': None,
    'decay_rules': None,
    'clip': None,
    'wrapper': 'OptimWrapper',
    'bgr_to_rgb': True,
    'pixels': IMAGENET,
    'filter': None,
    'test_batch': 1,
    'drop_path': 0.0,
    'norms': (None, None),
}
RETINANET = {
    **DEFAULTS,
    'source': DETECTION,
    'lr': 1e-4,
    'weight_decay': 1e-4,
    'length': {'max_epochs': 12, 'val_interval': 1},
    'schedule': [WARMUP, multi_step(12, 8, 11)],
    'batch': (8, 2),
    'filter': NOT_EMPTY,
    'train': [RESIZE, FLIP],
    'test': [RESIZE],
    'pad': 32,
}
MASK_RCNN = {**RETINANET, 'lr': 2e-4}
SEMANTIC_FPN = {
    **DEFAULTS,
    'source': SEGMENTATION,
    'lr': 2e-4,
    'weight_decay': 1e-4,
    'length': {'max_iters': 40_000, 'val_interval': 4000},
    'schedule': [poly(40_000)],
    'batch': (8, 4),
    'train': crop(512),
    'test': short_side(512, 32),
    'pad': [512, 512],
}
DETR = {
    **DEFAULTS,
    'source': 'whai362/PVT, detection/configs/detr_pvt_s_8x2_50ep_coco.py',
    'lr': 1e-4,
    'weight_decay': 1e-4,
    'decay_rules': {'custom_keys': {'backbone': {'lr_mult': 0.1, 'decay_mult': 1.0}}},
    'clip': {'max_norm': 0.1, 'norm_type': 2},
    'length': {'max_epochs': 50, 'val_interval': 1},
    'schedule': [multi_step(50, 33)],
    'batch': (8, 2),
    'filter': NOT_EMPTY,
    'train': [
        FLIP,
        {
            'type': 'RandomChoiceResize',
            'scales': [[1333, side] for side in (640, 672, 704, 736, 768, 800)],
            'keep_ratio': True,
        },
    ],
    'test': [RESIZE],
    'pad': 32,
    'guess': "PVT's recipe for another backbone",
}
SIDES = [[side, 1333] for side in range(480, 801, 32)]


def resize_or_crop(longest):
    """Training transforms of DETR: the image, or a part of it, at a random size."""
    resize = {'type': 'RandomChoiceResize', 'keep_ratio': True}
    crop = {'type': 'RandomCrop', 'crop_type': 'absolute_range', 'crop_size': [384, 600]}
    part = [
        {**resize, 'scales': [[side, longest] for side in (400, 500, 600)]},
        {**crop, 'allow_negative_crop': True},
        {**resize, 'scales': SIDES},
    ]
    return [FLIP, {'type': 'RandomChoice', 'transforms': [[{**resize, 'scales': SIDES}], part]}]


DEFORMABLE_DETR = {
    **DETR,
    'source': 'fundamentalvision/Deformable-DETR; mmdet, deformable-detr_r50_16xb2-50e_coco',
    'lr': 2e-4,
    'decay_rules': {
        'custom_keys': {
            part: {'lr_mult': 0.1} for part in ('backbone', 'sampling_offsets', 'reference_points')
        }
    },
    'schedule': [multi_step(50, 40)],
    'batch': (8, 4),
    'filter': {**NOT_EMPTY, 'filter_empty_gt': False},
    'train': resize_or_crop(4200),
    'pad': 1,
    'guess': 'the recipe of R50, for another backbone',
}
ONE_SCALE = {
    'num_feature_levels': 1,
    'backbone.out_indices': [3],
    'neck.in_channels': [512],
    'neck.num_outs': 1,
    'encoder.layer_cfg.self_attn_cfg.num_levels': 1,
    'decoder.layer_cfg.cross_attn_cfg.num_levels': 1,
}
SMCA = {
    **DETR,
    'source': 'gaopengcuhk/SMCA-DETR, README, main.py and models/detr.py',
    'schedule': [multi_step(50, 40)],
    'filter': {**NOT_EMPTY, 'filter_empty_gt': False},
    'train': resize_or_crop(1333),
    'pad': 1,
    'guess': 'the recipe of R50, for another backbone',
    'model': {
        'neck.in_channels': [512],
        'num_queries': 300,
        'bbox_head.loss_cls.use_sigmoid': True,
        'bbox_head.loss_cls.gamma': 2.0,
        'bbox_head.loss_cls.alpha': 0.25,
        'bbox_head.loss_cls.loss_weight': 2.0,
        'bbox_head.sync_cls_avg_factor': True,
        'train_cfg.assigner.match_costs.0.weight': 2.0,
    },
}
DINO = {
    **DEFORMABLE_DETR,
    'source': 'IDEA-Research/DINO; mmdet, dino-4scale_r50_8xb2-12e_coco',
    'lr': 1e-4,
    'decay_rules': {'custom_keys': {'backbone': {'lr_mult': 0.1}}},
    'length': {'max_epochs': 12, 'val_interval': 1},
    'schedule': [multi_step(12, 11)],
    'batch': (8, 2),
    'model': {
        'backbone.arch': 's12',
        'neck.in_channels': SMALL[1:],
    },
}
EMBEDDING = {'lr_mult': 1.0, 'decay_mult': 0.0}
MASK2FORMER = {
    **DEFAULTS,
    'source': 'facebookresearch/Mask2Former; mmdet, mask2former_r50_8xb2-lsj-50e_coco',
    'lr': 1e-4,
    'betas': [0.9, 0.999],
    'eps': 1e-8,
    'weight_decay': 0.05,
    'decay_rules': {
        'custom_keys': {
            'backbone': {'lr_mult': 0.1, 'decay_mult': 1.0},
            **dict.fromkeys(('query_embed', 'query_feat', 'level_embed'), EMBEDDING),
        },
        'norm_decay_mult': 0.0,
    },
    'clip': {'max_norm': 0.01, 'norm_type': 2},
    'length': {
        'max_iters': 368_750,
        'val_interval': 5000,
        'dynamic_intervals': [[365_001, 368_750]],
    },
    'schedule': multi_step(368_750, 327_778, 355_092, by_epoch=False),
    'batch': (8, 2),
    'filter': NOT_EMPTY,
    'train': [
        FLIP,
        {
            'type': 'RandomResize',
            'scale': [1024, 1024],
            'ratio_range': [0.1, 2.0],
            'resize_type': 'Resize',
            'keep_ratio': True,
        },
        {
            'type': 'RandomCrop',
            'crop_size': [1024, 1024],
            'crop_type': 'absolute',
            'recompute_bbox': True,
            'allow_negative_crop': True,
        },
        {'type': 'FilterAnnotations', 'min_gt_bbox_wh': [1e-5, 1e-5], 'by_mask': True},
    ],
    'test': [RESIZE],
    'pad': 32,
    'guess': 'the recipe of R50, for another backbone',
    'model': {'backbone.arch': 's12', 'panoptic_head.in_channels': SMALL},
}
CONTAINER_RETINANET = {
    **RETINANET,
    'source': 'arXiv 2106.01401, Appendix A.2',
    'weight_decay': 0.05,
    'norms': FROZEN,
}
CONTAINER_MASK_RCNN = {**CONTAINER_RETINANET, 'source': 'arXiv 2106.01401, Appendix A.3'}
PLAIN_VIT_SEMANTIC_FPN = {
    **SEMANTIC_FPN,
    'source': 'arXiv 2205.08534, Section 4.2; whai362/PVT, segmentation/configs/sem_fpn/PVT',
    'lr': 1e-4,
    'length': {'max_iters': 80_000, 'val_interval': 8000},
    'schedule': [poly(80_000)],
    'batch': (8, 2),
}
PLAIN_VIT_RETINANET = {
    **RETINANET,
    'source': 'czczup/ViT-Adapter, detection/configs/mask_rcnn/mask_rcnn_deit_small_fpn_3x_coco.py',
    'weight_decay': 0.05,
    'decay_rules': {
        'norm_decay_mult': 0.0,
        'bias_decay_mult': 0.0,
        'custom_keys': {'pos_embed': {'decay_mult': 0.0}},
    },
    'drop_path': 0.1,
    'guess': 'optimizer, decay rules and drop path of Mask R-CNN, in RetinaNet with a 1x schedule',
}
#: One output with a norm after each quarter of a ViT's blocks, as in ViT-Adapter's plain ViT.
TAPS = {
    'backbone.antialias': False,
    'backbone.with_cls_token': False,
    'backbone.layer_scale': 1.0,
}


def taps_and_fpn(channels, levels):
    """Necks of ViT-Adapter's plain ViT."""
    return {
        'neck.0.in_channels': [channels] * 4,
        'neck.0.scale_factors': [4, 2, 1, 0.5],
        'neck.1.in_channels': [channels] * 4,
        'neck.1.out_channels': 256,
        'neck.1.num_outs': levels,
    }


PLAIN_VIT_MASK_RCNN = {key: v for key, v in PLAIN_VIT_RETINANET.items() if key != 'guess'}
PLAIN_VIT_MASK_RCNN |= {
    'source': 'arXiv 2205.08534, Table 1; czczup/ViT-Adapter, detection/configs/mask_rcnn'
}
VITDET = {
    **DEFAULTS,
    'source': 'detectron2, projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py',
    'lr': 1e-4,
    'betas': [0.9, 0.999],
    'weight_decay': 0.1,
    'constructor': 'mmpatch.LayerDecayOptimWrapperConstructor',
    'decay_rules': {
        'decay_rate': 0.7,
        'norm_decay_mult': 0.0,
        'custom_keys': {'pos_embed': {'decay_mult': 0.0}},
    },
    'wrapper': 'AmpOptimWrapper',
    'length': {'max_iters': 184_375, 'val_interval': 5000},
    'schedule': [
        {**WARMUP, 'end': 250},
        multi_step(184_375, 163_889, 177_546, by_epoch=False),
    ],
    'batch': (16, 4),
    'filter': NOT_EMPTY,
    'train': [
        {
            'type': 'RandomResize',
            'scale': [1024, 1024],
            'ratio_range': [0.1, 2.0],
            'keep_ratio': True,
        },
        {
            'type': 'RandomCrop',
            'crop_type': 'absolute_range',
            'crop_size': [1024, 1024],
            'recompute_bbox': True,
            'allow_negative_crop': True,
        },
        {'type': 'FilterAnnotations', 'min_gt_bbox_wh': [0.01, 0.01]},
        FLIP,
    ],
    'test': [{'type': 'Resize', 'scale': [1024, 1024], 'keep_ratio': True}],
    'pad': 1024,
    'drop_path': 0.1,
    'model': {
        'backbone.arch': 'base',
        **WINDOWS,
        'backbone.rel_pos': True,
        'backbone.img_size': 1024,
        'backbone.antialias': False,
        **pyramid(768, 4, 2, 1, 0.5),
        'rpn_head.num_convs': 2,
        'roi_head.bbox_head.conv_out_channels': 256,
        'roi_head.bbox_head.norm_cfg.eps': 1e-6,
        'roi_head.mask_head.norm_cfg.eps': 1e-6,
        'train_cfg.rcnn.assigner.match_low_quality': False,
    },
}
NO_DECAY = {'decay_mult': 0.0}
DINO_VIT = {
    'lr': 1e-4,
    'weight_decay': 0.05,
    'constructor': 'mmpatch.LayerDecayOptimWrapperConstructor',
    'decay_rules': {
        'decay_rate': 0.7,
        'flat_decay_mult': 0.0,
        'custom_keys': dict.fromkeys(('pos_embed', 'cls_token', 'reg_token'), NO_DECAY),
    },
    'guess': "PoolFormer's schedule, ViTDet's layer decay, for another network",
}
DINOV2 = {
    'backbone.model_name': 'vit_small_patch14_reg4_dinov2',
    'backbone.patch_size': 16,
    'backbone.img_size': 592,
}
DINOV3 = {'backbone.model_name': 'vit_small_patch16_dinov3'}
VITDET_L = {
    **VITDET,
    'source': 'detectron2, projects/ViTDet/configs/COCO/mask_rcnn_vitdet_l_100ep.py',
    'decay_rules': {**VITDET['decay_rules'], 'decay_rate': 0.8},
    'drop_path': 0.4,
    'model': VITDET['model'] | {'backbone.arch': 'large', 'neck.in_channels': 1024},
}
VITDET_H = {
    **VITDET,
    'source': 'detectron2, projects/ViTDet/configs/COCO/mask_rcnn_vitdet_h_75ep.py',
    'decay_rules': {'decay_rate': 0.9},
    'drop_path': 0.5,
    'length': {'max_iters': 138_281, 'val_interval': 5000},
    'schedule': [
        {**WARMUP, 'end': 250},
        multi_step(138_281, 122_916, 133_159, by_epoch=False),
    ],
    'model': VITDET['model']
    | {'backbone.arch': 'huge', 'backbone.patch_size': 16, 'neck.in_channels': 1280},
}


def add_cascade(recipe):
    """Recipe of detectron2's Cascade Mask R-CNN from the one of its Mask R-CNN."""
    model = {k: v for k, v in recipe['model'].items() if 'bbox_head' not in k and 'rcnn' not in k}
    for stage in range(3):
        head = f'roi_head.bbox_head.{stage}'
        model |= {f'{head}.conv_out_channels': 256, f'{head}.norm_cfg.eps': 1e-6}
    model |= {
        'roi_head.bbox_head.2.bbox_coder.target_stds': [1 / 30, 1 / 30, 2 / 30, 2 / 30],
        'roi_head.stage_loss_weights': [1 / 3] * 3,
        'train_cfg.rpn.allowed_border': -1,
        'train_cfg.rpn_proposal.max_per_img': 1000,
    }
    folder, _, file = recipe['source'].rpartition('/')
    return {**recipe, 'source': f'{folder}/cascade_{file}', 'model': model}


UPERNET = {
    **DEFAULTS,
    'source': 'mmseg, configs/vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py',
    'lr': 6e-5,
    'betas': [0.9, 0.999],
    'weight_decay': 0.01,
    'decay_rules': {
        'norm_decay_mult': 0.0,
        'custom_keys': {'pos_embed': {'decay_mult': 0.0}, 'cls_token': {'decay_mult': 0.0}},
    },
    'length': {'max_iters': 80_000, 'val_interval': 8000},
    'schedule': [
        {'type': 'LinearLR', 'start_factor': 1e-6, 'by_epoch': False, 'begin': 0, 'end': 1500},
        {**poly(80_000), 'power': 1.0, 'begin': 1500},
    ],
    'batch': (8, 2),
    'train': crop(512),
    'test': [{'type': 'Resize', 'scale': [2048, 512], 'keep_ratio': True}],
    'pad': [512, 512],
    'model': {
        'backbone.arch': 'base',
        'backbone.pretrain_img_size': 512,
        'backbone.antialias': False,
        'backbone.out_norm': False,
        **ADE20K,
        'auxiliary_head.num_classes': 150,
    },
}
#: Of mmdet's ResNet; mmseg's has synchronized norms that are not frozen.
RESNET_NORMS = ({'type': 'BN', 'requires_grad': True}, True)
RESNET_SEG_NORMS = ({'type': 'SyncBN', 'requires_grad': True}, False)
RESNETS = {
    'r18': {'backbone.depth': 18, 'neck.in_channels': [64, 128, 256, 512]},
    'r50': {},
    'r101': {'backbone.depth': 101},
}
PVTS = {
    name: {'backbone.num_layers': layers, 'neck.in_channels': SMALL}
    for name, layers in (('pvt-t', [2, 2, 2, 2]), ('pvt-s', [3, 4, 6, 3]))
}
PVT_FILES = 'whai362/PVT, detection/configs'
GUESSED_RETINANET = {
    **RETINANET,
    'weight_decay': 0.05,
    'norms': FROZEN,
    'guess': "PoolFormer's recipe; weight decay and frozen norms of CONTAINER",
}
GUESSED_SEMANTIC_FPN = {
    **SEMANTIC_FPN,
    'weight_decay': 0.05,
    'norms': SYNCHRONIZED,
    'guess': "PoolFormer's recipe; weight decay of CONTAINER's detectors",
}
RECIPES = {
    **{
        f'poolformer/retinanet_poolformer-{size}_fpn_1x_coco.py': {
            **RETINANET,
            'source': f'{DETECTION}/retinanet_poolformer_{size}_fpn_1x_coco.py',
            'model': {'backbone.arch': size, **LAST_THREE},
        }
        for size in ('s12', 's24', 's36')
    },
    'poolformer/retinanet_poolformer-s12-ppaa_fpn_1x_coco.py': {
        **RETINANET,
        'guess': "PoolFormer's recipe for another network",
        'model': {'backbone.arch': 's12-ppaa', **LAST_THREE},
    },
    'poolformer/mask-rcnn_poolformer-s12-ppaa_fpn_1x_coco.py': {
        **MASK_RCNN,
        'guess': "PoolFormer's recipe for another network",
        'model': {'backbone.arch': 's12-ppaa', 'neck.in_channels': SMALL},
    },
    'poolformer/fpn_poolformer-s12-ppaa_8xb4-40k_ade20k-512x512.py': {
        **SEMANTIC_FPN,
        'guess': "PoolFormer's recipe for another network",
        'model': {'backbone.arch': 's12-ppaa', 'neck.in_channels': SMALL, **ADE20K},
    },
    **{
        f'poolformer/mask-rcnn_poolformer-{size}_fpn_1x_coco.py': {
            **MASK_RCNN,
            'source': f'{DETECTION}/mask_rcnn_poolformer_{size}_fpn_1x_coco.py',
            'model': {'backbone.arch': size, 'neck.in_channels': SMALL},
        }
        for size in ('s12', 's24', 's36')
    },
    'poolformer/detr_poolformer-s12_8xb2-50e_coco.py': {
        **DETR,
        'model': {'backbone.arch': 's12', 'neck.in_channels': [512]},
    },
    'poolformer/deformable-detr_poolformer-s12_8xb4-50e_coco.py': {
        **DEFORMABLE_DETR,
        'model': {'backbone.arch': 's12', **ONE_SCALE},
    },
    'poolformer/smca-detr_poolformer-s12_8xb2-50e_coco.py': {
        **SMCA,
        'model': {'backbone.arch': 's12', **SMCA['model']},
    },
    'poolformer/dino-4scale_poolformer-s12_8xb2-12e_coco.py': DINO,
    'poolformer/mask2former_poolformer-s12_8xb2-lsj-50e_coco.py': MASK2FORMER,
    **{
        f'poolformer/fpn_poolformer-{size}_8xb4-40k_ade20k-512x512.py': {
            **SEMANTIC_FPN,
            'source': f'{SEGMENTATION}/fpn_poolformer_{size}_ade20k_40k.py',
            'model': {'backbone.arch': size, 'neck.in_channels': channels, **ADE20K},
        }
        for size, channels in (
            ('s12', SMALL),
            ('s24', SMALL),
            ('s36', SMALL),
            ('m36', MEDIUM),
            ('m48', MEDIUM),
        )
    },
    'container/retinanet_container-light_fpn_1x_coco.py': {
        **CONTAINER_RETINANET,
        'model': {'backbone.arch': 'light', **LAST_THREE, **GROUPS},
    },
    'container/mask-rcnn_container-light_fpn_1x_coco.py': {
        **CONTAINER_MASK_RCNN,
        'model': {'backbone.arch': 'light', 'neck.in_channels': SMALL, **GROUPS},
    },
    'container/detr_container-light_8xb2-50e_coco.py': {
        **DETR,
        'norms': FROZEN,
        'guess': "PVT's recipe; arXiv 2106.01401, Appendix A.4 names no epochs",
        'model': {'backbone.arch': 'light', 'neck.in_channels': [512], **GROUPS},
    },
    'container/deformable-detr_container-light_8xb4-50e_coco.py': {
        **without_guess(DEFORMABLE_DETR),
        'source': f'arXiv 2106.01401, Appendix A.4; {DEFORMABLE_DETR["source"]}',
        'norms': FROZEN,
        'model': {'backbone.arch': 'light', **ONE_SCALE, **GROUPS},
    },
    'container/smca-detr_container-light_8xb2-50e_coco.py': {
        **without_guess(SMCA),
        'norms': FROZEN,
        'model': {'backbone.arch': 'light', **SMCA['model'], **GROUPS},
    },
    'container/fpn_container-light_8xb4-40k_ade20k-512x512.py': {
        **GUESSED_SEMANTIC_FPN,
        'model': {'backbone.arch': 'light', 'neck.in_channels': SMALL, **GROUPS, **ADE20K},
    },
    'convmixer/retinanet_convmixer-768-32-p8_sfp_1x_coco.py': {
        **GUESSED_RETINANET,
        'model': {**CONVMIXER, 'backbone.patch_size': 8, **pyramid(768, 1, 0.5, 0.25)},
    },
    'convmixer/retinanet_convmixer-768-32_sfp-native_1x_coco.py': {
        **GUESSED_RETINANET,
        'pad': 56,
        'model': {
            **CONVMIXER,
            'backbone.patch_size': 7,
            **pyramid(768, 1, 0.5, 0.25),
            'bbox_head.anchor_generator.strides': [7, 14, 28, 56, 112],
            'bbox_head.anchor_generator.base_sizes': [8, 16, 32, 64, 128],
        },
    },
    'convmixer/mask-rcnn_convmixer-768-32-p8_sfp_1x_coco.py': {
        **CONTAINER_MASK_RCNN,
        'guess': "CONTAINER's recipe",
        'model': {**CONVMIXER, 'backbone.patch_size': 8, **pyramid(768, 2, 1, 0.5, 0.25)},
    },
    'convmixer/detr_convmixer-1024-20-p16_8xb2-50e_coco.py': {
        **DETR,
        'norms': FROZEN,
        'model': {
            'backbone.arch': '1024/20',
            'backbone.out_norm': False,
            'backbone.patch_size': 16,
            **pyramid(1024, 0.5),
        },
    },
    'convmixer/fpn_convmixer-768-32-p8_8xb4-40k_ade20k-512x512.py': {
        **GUESSED_SEMANTIC_FPN,
        'model': {
            **CONVMIXER,
            'backbone.patch_size': 8,
            **pyramid(768, 2, 1, 0.5, 0.25),
            **ADE20K,
        },
    },
    'convmixer/fpn_convmixer-1024-20_8xb4-40k_ade20k-504x504.py': {
        **GUESSED_SEMANTIC_FPN,
        'train': crop(504),
        'test': short_side(504, 28),
        'pad': [504, 504],
        'model': {
            'backbone.arch': '1024/20',
            'backbone.out_norm': False,
            **pyramid([1024] * 4, 4, 2, 1, 0.5),
            **ADE20K,
        },
    },
    'vit/retinanet_deit-s_sfp_1x_coco.py': {
        **PLAIN_VIT_RETINANET,
        'model': {'backbone.arch': 'small', **WINDOWS, **pyramid(384, 2, 1, 0.5)},
    },
    'vit/retinanet_vit-b-r50_fpn_1x_coco.py': {
        **PLAIN_VIT_RETINANET,
        'pixels': HALF,
        'decay_rules': {
            'norm_decay_mult': 0.0,
            'custom_keys': {'pos_embed': {'decay_mult': 0.0}},
        },
        'drop_path': 0.0,
        'guess': 'as DeiT-S, with weight decay on biases and without drop path',
        'model': {
            'backbone.arch': 'base-r50-s16',
            'backbone.pretrain_img_size': 384,
            'backbone.with_cls_token': False,
            'backbone.window_size': 14,
            'backbone.stem_indices': [1],
            'backbone.out_indices': [3],
            'neck.in_channels': [512, 768],
            'neck.start_level': 0,
        },
    },
    'vit/mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py': VITDET,
    'vit/detr_deit-s_8xb2-50e_coco.py': {
        **DETR,
        'model': {
            'backbone.arch': 'small',
            'backbone.out_norm': False,
            'backbone.window_size': 14,
            'backbone.with_cls_token': False,
            **pyramid(384, 0.5),
        },
    },
    **{
        f'vit/mask-rcnn_deit-{name[0]}_tap-fpn_1x_coco.py': {
            **PLAIN_VIT_MASK_RCNN,
            'model': {
                'backbone.arch': name,
                'backbone.window_size': 14,
                **TAPS,
                **taps_and_fpn(channels, 5),
            },
        }
        for name, channels in (('tiny', 192), ('small', 384), ('base', 768))
    },
    **{
        f'vit/fpn_deit-{name[0]}_tap-fpn_8xb2-80k_ade20k-512x512.py': {
            **PLAIN_VIT_SEMANTIC_FPN,
            'model': {'backbone.arch': name, **TAPS, **taps_and_fpn(channels, 4), **ADE20K},
        }
        for name, channels in (('tiny', 192), ('small', 384), ('base', 768))
    },
    'vit/mask-rcnn_vit-l-mae_sfp_16xb4-lsj-100e_coco.py': VITDET_L,
    'vit/mask-rcnn_vit-h-mae_sfp_16xb4-lsj-75e_coco.py': VITDET_H,
    'vit/cascade-mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py': add_cascade(VITDET),
    'vit/cascade-mask-rcnn_vit-l-mae_sfp_16xb4-lsj-100e_coco.py': add_cascade(VITDET_L),
    'vit/cascade-mask-rcnn_vit-h-mae_sfp_16xb4-lsj-75e_coco.py': add_cascade(VITDET_H),
    'vit/upernet_vit-b_mln_8xb2-80k_ade20k-512x512.py': UPERNET,
    **{
        f'baselines/{task}_{name}_fpn_1x_coco.py': {
            **recipe,
            'norms': RESNET_NORMS,
            'source': "arXiv 2111.11418, Table 3, with mmdet's ResNet",
            'model': model,
        }
        for task, recipe in (('retinanet', RETINANET), ('mask-rcnn', MASK_RCNN))
        for name, model in RESNETS.items()
    },
    **{
        f'baselines/{task}_{name}_fpn_1x_coco.py': {
            **recipe,
            'drop_path': 0.1,
            'source': f'{PVT_FILES}/{task}_{name}_fpn_1x_coco.py'.replace('-', '_'),
            'model': model,
        }
        for task, recipe in (('retinanet', RETINANET), ('mask-rcnn', MASK_RCNN))
        for name, model in PVTS.items()
    },
    **{
        f'baselines/fpn_{name}_8xb4-40k_ade20k-512x512.py': {
            **SEMANTIC_FPN,
            'norms': RESNET_SEG_NORMS,
            'guess': "PoolFormer's recipe; whai362/PVT trains ResNets with SGD",
            'model': {**model, **ADE20K},
        }
        for name, model in RESNETS.items()
    },
    **{
        f'baselines/fpn_{name}_8xb4-40k_ade20k-512x512.py': {
            **SEMANTIC_FPN,
            'drop_path': 0.1,
            'source': 'whai362/PVT, segmentation/configs/sem_fpn/PVT',
            'model': {**model, **ADE20K},
        }
        for name, model in PVTS.items()
    },
    'vit/fpn_deit-s_8xb2-80k_ade20k-512x512.py': {
        **PLAIN_VIT_SEMANTIC_FPN,
        'model': {'backbone.arch': 'small', **FOUR_TAPS, **pyramid([384] * 4, 4, 2, 1, 0.5)},
    },
    'vit/fpn_vit-b_8xb2-80k_ade20k-512x512.py': {
        **PLAIN_VIT_SEMANTIC_FPN,
        'pixels': HALF,
        'guess': "the paper's recipe for DeiT-B, with weights of AugReg",
        'model': {'backbone.arch': 'base', **FOUR_TAPS, **pyramid([768] * 4, 4, 2, 1, 0.5)},
    },
    **{
        f'timm/mask-rcnn_{name}_sfp_1x_coco.py': {
            **MASK_RCNN,
            **DINO_VIT,
            'model': {**model, 'backbone.out_indices': [11], **pyramid(384, 4, 2, 1, 0.5)},
        }
        for name, model in (('dinov2-s-reg4', DINOV2), ('dinov3-s', DINOV3))
    },
    **{
        f'timm/fpn_{name}_8xb4-40k_ade20k-512x512.py': {
            **SEMANTIC_FPN,
            **DINO_VIT,
            'model': {
                **model,
                'backbone.out_indices': [2, 5, 8, 11],
                **pyramid([384] * 4, 4, 2, 1, 0.5),
                **ADE20K,
            },
        }
        for name, model in (('dinov2-s-reg4', DINOV2), ('dinov3-s', DINOV3))
    },
}
#: Models of the hosts from which the configs start, by the detector or the head of the segmentor.
HOSTS = {
    'RetinaNet': 'mmdet::_base_/models/retinanet_r50_fpn.py',
    'MaskRCNN': 'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'CascadeRCNN': 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'DETR': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'mmpatch.SMCADETR': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'DeformableDETR': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'Mask2Former': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'EncoderDecoder': 'mmseg::_base_/models/fpn_r50.py',
    'FPNHead': 'mmseg::_base_/models/fpn_r50.py',
    'UPerHead': 'mmseg::_base_/models/upernet_vit-b16_ln_mln.py',
}
#: Parts of a model that other fields of a recipe hold, or that are not part of a recipe.
ELSEWHERE = re.compile(
    r'data_preprocessor\.(mean|std|bgr_to_rgb|size|pad_size_divisor)|pretrained|.*\btype'
    r'|backbone\.(init_cfg.*|norm_cfg\..+|norm_eval|drop_path_rate)'
)
#: Parts of a config that make a recipe, and numbers in them that have no influence on the result.
PARTS = (
    'model',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'auto_scale_lr',
)
WITHOUT_INFLUENCE = {'num_workers', 'times'}  # sampling is endless, so repetitions do nothing


def to_plain(value):
    """Config value as plain dicts and lists, without the hosts' scopes."""
    if isinstance(value, dict):
        return {key: to_plain(v) for key, v in value.items() if key != '_scope_'}
    return [to_plain(v) for v in value] if isinstance(value, list | tuple) else value


def get_dataset(dataloader):
    """Config of the innermost dataset."""
    dataset = dataloader['dataset']
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def list_transforms(dataloader):
    """Transforms that change images or annotations, between loading and packing."""
    pipeline = get_dataset(dataloader)['pipeline']
    return [t for t in pipeline if not t['type'].startswith(('Load', 'Pack'))]


def flatten(value, path=''):
    """Dotted path -> leaf; a list without dicts is a leaf."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    leaves = {}
    for key, child in items:
        name = f'{path}.{key}' if path else str(key)
        nested = isinstance(child, dict) or (
            isinstance(child, list) and any(isinstance(item, dict) for item in child)
        )
        leaves |= flatten(child, name) if nested else {name: child}
    return leaves


def list_numbers(value, path=()):
    """Container, key and path of each number in a config."""
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(child, dict | list):
            yield from list_numbers(child, (*path, key))
        elif isinstance(child, int | float) and not isinstance(child, bool):
            yield value, key, (*path, key)


@cache
def load(name):
    """Resolved config as plain dicts and lists."""
    return to_plain(Config.fromfile(mmpatch.config_path(name)).to_dict())


@cache
def load_host_model(kind):
    """Leaves of the model from which the configs of a detector or segmentor start."""
    return flatten(to_plain(get_config(HOSTS[kind]).to_dict())['model'])


def read_recipe(cfg):
    """The fields of ``RECIPES`` in a resolved config."""
    optimizer = dict(cfg['optim_wrapper']['optimizer'])
    wrapper, loop = cfg['optim_wrapper'], dict(cfg['train_cfg'])
    backbone, preprocessor = cfg['model']['backbone'], cfg['model']['data_preprocessor']
    per_gpu = cfg['train_dataloader']['batch_size']
    host = load_host_model(cfg['model'].get('decode_head', cfg['model'])['type'])
    loop.pop('type', None)
    return {
        'optimizer': optimizer.pop('type'),
        'betas': optimizer.pop('betas', None),
        **optimizer,
        'constructor': wrapper.get('constructor'),
        'decay_rules': wrapper.get('paramwise_cfg'),
        'clip': wrapper.get('clip_grad'),
        'wrapper': wrapper['type'],
        'bgr_to_rgb': preprocessor['bgr_to_rgb'],
        'pixels': (preprocessor['mean'], preprocessor['std']),
        'length': loop,
        'schedule': cfg['param_scheduler'],
        'batch': (cfg['auto_scale_lr']['base_batch_size'] / per_gpu, per_gpu),
        'filter': get_dataset(cfg['train_dataloader']).get('filter_cfg'),
        'train': list_transforms(cfg['train_dataloader']),
        'test': list_transforms(cfg['test_dataloader']),
        'val': list_transforms(cfg['val_dataloader']),
        'test_batch': cfg['test_dataloader']['batch_size'],
        'val_batch': cfg['val_dataloader']['batch_size'],
        'pad': preprocessor.get('pad_size_divisor') or preprocessor.get('size'),
        'drop_path': backbone.get('drop_path_rate', 0.0),
        'norms': (backbone.get('norm_cfg'), backbone.get('norm_eval')),
        'model': {
            path: leaf
            for path, leaf in flatten(cfg['model']).items()
            if not ELSEWHERE.fullmatch(path) and (path not in host or host[path] != leaf)
        },
    }


def find_differences(name, cfg):
    """Fields of a config that are not as in ``RECIPES``, one line each, with the source."""
    row = dict(RECIPES[name])
    source = f'{row.pop("source")} ({row.pop("guess", "published")})'
    row |= {'val': row['test'], 'val_batch': row['test_batch']}
    found = read_recipe(cfg)
    return [
        f'{name}: {field} is {found.get(field)}, but {row.get(field)} in {source}'
        for field in row.keys() | found.keys()
        if field not in row or field not in found or row[field] != found[field]
    ]


@pytest.mark.parametrize(
    'name', [name for name in mmpatch.list_configs() if not name.startswith('demo/')]
)
def test_config_has_its_published_recipe(name):
    assert name in RECIPES, 'add the recipe of a new config, with its source, to RECIPES'
    differences = find_differences(name, load(name))
    assert not differences, '\n'.join(differences)


@pytest.mark.parametrize('name', RECIPES)
def test_any_other_number_is_reported_with_its_source(name):
    cfg, source = load(name), RECIPES[name]['source']
    unnoticed, count = [], 0
    for container, key, path in list_numbers({part: cfg[part] for part in PARTS}):
        if path[-1] in WITHOUT_INFLUENCE:
            continue
        value, count = container[key], count + 1
        container[key] = value + 1
        differences = find_differences(name, cfg)
        container[key] = value
        if not differences or not all(source in line for line in differences):
            unnoticed.append('.'.join(map(str, path)))
    assert count > 50 and not unnoticed


@pytest.mark.parametrize('name', RECIPES)
def test_config_says_whether_its_recipe_is_a_guess(name):
    docstring = Path(mmpatch.config_path(name)).read_text().split('"""')[1]
    words = ' '.join(docstring.lower().split())
    declared = 'guess' in words or 'no published number' in words
    assert declared == ('guess' in RECIPES[name])
