"""Every config trains with the recipe that its source published, or says that it guesses.

``guess`` marks a recipe that nobody has published for this backbone and head; it says what the
recipe takes from where. The values of the other rows come from the files or papers in ``source``.
"""

from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

import mmpatch

FLIP = {'type': 'RandomFlip', 'prob': 0.5}
RESIZE = {'type': 'Resize', 'scale': [1333, 800], 'keep_ratio': True}
WARMUP = {'type': 'LinearLR', 'start_factor': 0.001, 'by_epoch': False, 'begin': 0, 'end': 500}
FROZEN = ({'type': 'BN', 'requires_grad': False}, True)  # norm_cfg and norm_eval of the backbone
SYNCHRONIZED = ({'type': 'SyncBN'}, None)


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


#: What a recipe does not mention.
DEFAULTS = {
    'optimizer': 'AdamW',
    'betas': None,
    'constructor': None,
    'decay_rules': None,
    'clip': None,
    'wrapper': 'OptimWrapper',
    'bgr_to_rgb': True,
    'drop_path': 0.0,
    'norms': (None, None),
}
RETINANET = {
    **DEFAULTS,
    'source': 'sail-sg/poolformer, detection/configs/retinanet_poolformer_s12_fpn_1x_coco.py',
    'lr': 1e-4,
    'weight_decay': 1e-4,
    'length': {'max_epochs': 12},
    'schedule': [WARMUP, multi_step(12, 8, 11)],
    'batch': (8, 2),
    'train': [RESIZE, FLIP],
    'test': [RESIZE],
    'pad': 32,
}
MASK_RCNN = {
    **RETINANET,
    'source': 'sail-sg/poolformer, detection/configs/mask_rcnn_poolformer_s12_fpn_1x_coco.py',
    'lr': 2e-4,
}
SEMANTIC_FPN = {
    **DEFAULTS,
    'source': 'sail-sg/poolformer, segmentation/configs/sem_fpn/PoolFormer',
    'lr': 2e-4,
    'weight_decay': 1e-4,
    'length': {'max_iters': 40_000},
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
    'clip': 0.1,
    'length': {'max_epochs': 50},
    'schedule': [multi_step(50, 33)],
    'batch': (8, 2),
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
    'length': {'max_iters': 80_000},
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
    'length': {'max_iters': 184_375},
    'schedule': [
        {**WARMUP, 'end': 250},
        multi_step(184_375, 163_889, 177_546, by_epoch=False),
    ],
    'batch': (16, 4),
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
}
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
    'poolformer/retinanet_poolformer-s12_fpn_1x_coco.py': RETINANET,
    'poolformer/retinanet_poolformer-s24_fpn_1x_coco.py': RETINANET,
    'poolformer/retinanet_poolformer-s36_fpn_1x_coco.py': RETINANET,
    'poolformer/retinanet_poolformer-s12-ppaa_fpn_1x_coco.py': {
        **RETINANET,
        'guess': "PoolFormer's recipe for another network",
    },
    'poolformer/mask-rcnn_poolformer-s12-ppaa_fpn_1x_coco.py': {
        **MASK_RCNN,
        'guess': "PoolFormer's recipe for another network",
    },
    'poolformer/fpn_poolformer-s12-ppaa_8xb4-40k_ade20k-512x512.py': {
        **SEMANTIC_FPN,
        'guess': "PoolFormer's recipe for another network",
    },
    'poolformer/mask-rcnn_poolformer-s12_fpn_1x_coco.py': MASK_RCNN,
    'poolformer/mask-rcnn_poolformer-s24_fpn_1x_coco.py': MASK_RCNN,
    'poolformer/mask-rcnn_poolformer-s36_fpn_1x_coco.py': MASK_RCNN,
    'poolformer/detr_poolformer-s12_8xb2-50e_coco.py': DETR,
    'poolformer/fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py': SEMANTIC_FPN,
    'poolformer/fpn_poolformer-s24_8xb4-40k_ade20k-512x512.py': SEMANTIC_FPN,
    'poolformer/fpn_poolformer-s36_8xb4-40k_ade20k-512x512.py': SEMANTIC_FPN,
    'poolformer/fpn_poolformer-m36_8xb4-40k_ade20k-512x512.py': SEMANTIC_FPN,
    'poolformer/fpn_poolformer-m48_8xb4-40k_ade20k-512x512.py': SEMANTIC_FPN,
    'container/retinanet_container-light_fpn_1x_coco.py': CONTAINER_RETINANET,
    'container/mask-rcnn_container-light_fpn_1x_coco.py': CONTAINER_MASK_RCNN,
    'container/detr_container-light_8xb2-50e_coco.py': {
        **DETR,
        'norms': FROZEN,
        'guess': "PVT's recipe; arXiv 2106.01401, Appendix A.4 names no epochs",
    },
    'container/fpn_container-light_8xb4-40k_ade20k-512x512.py': GUESSED_SEMANTIC_FPN,
    'convmixer/retinanet_convmixer-768-32-p8_sfp_1x_coco.py': GUESSED_RETINANET,
    'convmixer/retinanet_convmixer-768-32_sfp-native_1x_coco.py': {
        **GUESSED_RETINANET,
        'pad': 56,
    },
    'convmixer/mask-rcnn_convmixer-768-32-p8_sfp_1x_coco.py': {
        **CONTAINER_MASK_RCNN,
        'guess': "CONTAINER's recipe",
    },
    'convmixer/detr_convmixer-1024-20-p16_8xb2-50e_coco.py': {**DETR, 'norms': FROZEN},
    'convmixer/fpn_convmixer-768-32-p8_8xb4-40k_ade20k-512x512.py': GUESSED_SEMANTIC_FPN,
    'convmixer/fpn_convmixer-1024-20_8xb4-40k_ade20k-504x504.py': {
        **GUESSED_SEMANTIC_FPN,
        'train': crop(504),
        'test': short_side(504, 28),
        'pad': [504, 504],
    },
    'vit/retinanet_deit-s_sfp_1x_coco.py': PLAIN_VIT_RETINANET,
    'vit/retinanet_vit-b-r50_fpn_1x_coco.py': {
        **PLAIN_VIT_RETINANET,
        'decay_rules': {
            'norm_decay_mult': 0.0,
            'custom_keys': {'pos_embed': {'decay_mult': 0.0}},
        },
        'drop_path': 0.0,
        'guess': 'as DeiT-S, with weight decay on biases and without drop path',
    },
    'vit/mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py': VITDET,
    'vit/detr_deit-s_8xb2-50e_coco.py': DETR,
    'vit/fpn_deit-s_8xb2-80k_ade20k-512x512.py': PLAIN_VIT_SEMANTIC_FPN,
    'vit/fpn_vit-b_8xb2-80k_ade20k-512x512.py': {
        **PLAIN_VIT_SEMANTIC_FPN,
        'guess': "the paper's recipe for DeiT-B, with weights of AugReg",
    },
}


def to_plain(value):
    """Config value as plain dicts and lists, without the hosts' scopes."""
    if isinstance(value, dict):
        return {key: to_plain(v) for key, v in value.items() if key != '_scope_'}
    return [to_plain(v) for v in value] if isinstance(value, list | tuple) else value


def list_transforms(dataloader):
    """Transforms that change images or annotations, between loading and packing."""
    dataset = dataloader['dataset']
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return [t for t in dataset['pipeline'] if not t['type'].startswith(('Load', 'Pack'))]


@cache
def load(name):
    """Resolved config as plain dicts and lists."""
    return to_plain(Config.fromfile(mmpatch.config_path(name)).to_dict())


def read_recipe(cfg):
    """The fields of ``RECIPES`` in a resolved config."""
    optimizer = dict(cfg['optim_wrapper']['optimizer'])
    wrapper, loop = cfg['optim_wrapper'], cfg['train_cfg']
    backbone, preprocessor = cfg['model']['backbone'], cfg['model']['data_preprocessor']
    per_gpu = cfg['train_dataloader']['batch_size']
    return {
        'optimizer': optimizer.pop('type'),
        'betas': optimizer.pop('betas', None),
        **optimizer,
        'constructor': wrapper.get('constructor'),
        'decay_rules': wrapper.get('paramwise_cfg'),
        'clip': (wrapper.get('clip_grad') or {}).get('max_norm'),
        'wrapper': wrapper['type'],
        'bgr_to_rgb': preprocessor['bgr_to_rgb'],
        'length': {key: loop[key] for key in ('max_epochs', 'max_iters') if key in loop},
        'schedule': cfg['param_scheduler'],
        'batch': (cfg['auto_scale_lr']['base_batch_size'] / per_gpu, per_gpu),
        'train': list_transforms(cfg['train_dataloader']),
        'test': list_transforms(cfg['test_dataloader']),
        'pad': preprocessor.get('pad_size_divisor') or preprocessor.get('size'),
        'drop_path': backbone.get('drop_path_rate', 0.0),
        'norms': (backbone.get('norm_cfg'), backbone.get('norm_eval')),
    }


@pytest.mark.parametrize(
    'name', [name for name in mmpatch.list_configs() if not name.startswith('demo/')]
)
def test_config_has_its_published_recipe(name):
    assert name in RECIPES, 'add the recipe of a new config, with its source, to RECIPES'
    cfg = load(name)
    about = {'source', 'guess'}
    assert read_recipe(cfg) == {k: v for k, v in RECIPES[name].items() if k not in about}
    assert list_transforms(cfg['val_dataloader']) == list_transforms(cfg['test_dataloader'])


@pytest.mark.parametrize('name', RECIPES)
def test_config_says_whether_its_recipe_is_a_guess(name):
    docstring = Path(mmpatch.config_path(name)).read_text().split('"""')[1]
    words = ' '.join(docstring.lower().split())
    declared = 'guess' in words or 'no published number' in words
    assert declared == ('guess' in RECIPES[name])
