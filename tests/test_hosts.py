"""In mmdet and mmseg: types resolve by themselves, configs build, train and predict."""

from copy import deepcopy
from functools import cache
from math import ceil

import pytest
import timm
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmpatch
import mmpatch.checkpoint
from mmpatch.engine import check_model
from mmpatch.engine.build import build_empty, build_model
from mmpatch.engine.count import count as count_network
from mmpatch.registry import MODELS

from support import IS_FORK, ROOT, make_detector_data, make_segmentor_data

pytestmark = pytest.mark.hosts
CONFIGS = [name for name in mmpatch.list_configs() if not name.startswith('demo/')]
#: Baselines and timm's networks have no families here.
OWN = [n for n in CONFIGS if not n.startswith(('baselines/', 'timm/'))]
#: Configs whose published recipe normalises pixels in another way than their weights expect.
OTHER_PIXELS = {'vit/upernet_vit-b_mln_8xb2-80k_ade20k-512x512.py'}
FOLDERS = sorted({name.split('/')[0] for name in CONFIGS})
DINO = 'poolformer/dino-4scale_poolformer-s12_8xb2-12e_coco.py'
#: Parameters of whole models in millions: computed with the authors' code and the hosts' heads.
PARAMETERS = {
    'poolformer/retinanet_poolformer-s12_fpn_1x_coco.py': 21.65,
    'poolformer/retinanet_poolformer-s24_fpn_1x_coco.py': 31.13,
    'poolformer/retinanet_poolformer-s36_fpn_1x_coco.py': 40.60,
    'poolformer/mask-rcnn_poolformer-s12_fpn_1x_coco.py': 31.57,
    'poolformer/mask-rcnn_poolformer-s24_fpn_1x_coco.py': 41.04,
    'poolformer/mask-rcnn_poolformer-s36_fpn_1x_coco.py': 50.52,
    'poolformer/detr_poolformer-s12_8xb2-50e_coco.py': 29.08,
    'poolformer/deformable-detr_poolformer-s12_8xb4-50e_coco.py': 21.62,
    'poolformer/smca-detr_poolformer-s12_8xb2-50e_coco.py': 29.31,
    DINO: 31.52 if IS_FORK else 31.39,
    'poolformer/mask2former_poolformer-s12_8xb2-lsj-50e_coco.py': 31.20,
    'poolformer/fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py': 15.67,
    'poolformer/fpn_poolformer-s24_8xb4-40k_ade20k-512x512.py': 25.14,
    'poolformer/fpn_poolformer-s36_8xb4-40k_ade20k-512x512.py': 34.62,
    'poolformer/fpn_poolformer-m36_8xb4-40k_ade20k-512x512.py': 59.78,
    'poolformer/fpn_poolformer-m48_8xb4-40k_ade20k-512x512.py': 77.08,
    'container/retinanet_container-light_fpn_1x_coco.py': 30.37,
    'container/mask-rcnn_container-light_fpn_1x_coco.py': 40.29,
    'container/detr_container-light_8xb2-50e_coco.py': 37.79,
    'container/deformable-detr_container-light_8xb4-50e_coco.py': 30.34,
    'container/smca-detr_container-light_8xb2-50e_coco.py': 38.03,
    'container/fpn_container-light_8xb4-40k_ade20k-512x512.py': 24.39,
}
#: Millions of parameters in PoolFormer's paper; without frozen ones, as the figures show.
BASELINES = {
    'baselines/retinanet_r18_fpn_1x_coco.py': 21.3,
    'baselines/retinanet_r50_fpn_1x_coco.py': 37.7,
    'baselines/retinanet_r101_fpn_1x_coco.py': 56.7,
    'baselines/mask-rcnn_r18_fpn_1x_coco.py': 31.2,
    'baselines/mask-rcnn_r50_fpn_1x_coco.py': 44.2,
    'baselines/mask-rcnn_r101_fpn_1x_coco.py': 63.2,
    'baselines/fpn_r50_8xb4-40k_ade20k-512x512.py': 28.5,
    'baselines/fpn_pvt-s_8xb4-40k_ade20k-512x512.py': 28.2,
}


@cache
def parse(name):
    return Config.fromfile(mmpatch.config_path(name))


def load(name):
    return deepcopy(parse(name))


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameters_of_whole_models(name):
    with torch.device('meta'):
        model = build_model(load(name))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(PARAMETERS[name], abs=0.015)


@pytest.mark.parametrize('name', BASELINES)
def test_parameters_of_baselines(name):
    learning = sum(p.numel() for p in load_empty(name).parameters() if p.requires_grad)
    assert learning / 1e6 == pytest.approx(BASELINES[name], abs=0.06)


def load_empty(name):
    return build_empty(load(name))


def count(part):
    return sum(p.numel() for p in part.parameters())


VITDET = {
    'base': ('b-mae_sfp_16xb4-lsj-100e', 768, 12, 64),
    'large': ('l-mae_sfp_16xb4-lsj-100e', 1024, 24, 64),
    'huge': ('h-mae_sfp_16xb4-lsj-75e', 1280, 32, 80),
}
CONV, NORMED_CONV = 256 * 256 * 9 + 256, 256 * 256 * 9 + 2 * 256
MASK_HEAD = 256 * 256 * 4 + 256 + 257 * 80  # behind its four convolutions


@pytest.mark.parametrize('task', ['mask-rcnn', 'cascade-mask-rcnn'])
@pytest.mark.parametrize('arch', VITDET)
def test_parameters_of_vitdet(arch, task):
    """As detectron2's configuration has it, added up from its layers."""
    name, dim, depth, head_dim = VITDET[arch]
    model = load_empty(f'vit/{task}_vit-{name}_coco.py')
    grid = 14 * 14
    block = 12 * dim * dim + 13 * dim  # qkv, proj, two MLP layers and two norms, with biases
    relative = head_dim * 2 * ((depth - 4) * 27 + 4 * 127)  # windows of 14, four maps of 64
    # d2 also stores the class token's position, which it never uses; dim more than here
    vit = depth * block + relative + dim * (3 * 256 + 1) + dim * grid
    assert count(model.backbone) == vit

    def level(channels):
        return channels * 256 + 256 * 256 * 9 + 2 * 512

    four = dim * dim // 2 * 4 + dim // 2 + dim + (dim // 2) * (dim // 4) * 4 + dim // 4
    two = dim * dim // 2 * 4 + dim // 2
    neck = four + two + level(dim // 4) + level(dim // 2) + 2 * level(dim)
    assert count(model.neck) == neck
    assert len(model.rpn_head.rpn_conv) == 2
    assert count(model.rpn_head) == 2 * CONV + 257 * (3 + 12)
    cascade = task != 'mask-rcnn'
    heads = model.roi_head.bbox_head if cascade else [model.roi_head.bbox_head]
    for head in heads:
        assert len(head.shared_convs) == 4 and len(head.shared_fcs) == 1
        assert head.shared_convs[0].norm.eps == 1e-6
        boxes = 4 if cascade else 320
        assert count(head) == 4 * NORMED_CONV + (256 * 49 + 1) * 1024 + 1025 * (81 + boxes)
    # detectron2's cascade has one mask head, mmdet's has three
    masks = model.roi_head.mask_head if cascade else [model.roi_head.mask_head]
    assert len(heads) == len(masks) == (3 if cascade else 1)
    for mask in masks:
        assert mask.convs[0].norm.eps == 1e-6
        assert count(mask) == 4 * NORMED_CONV + MASK_HEAD


@pytest.mark.parametrize(
    ('size', 'dim', 'published'),
    # of the last one the paper says 98.0, which its layers do not add up to
    [('t', 192, (26.1, 10.2)), ('s', 384, (43.8, 27.8)), ('b', 768, (113.6, 97.7))],
)
def test_parameters_of_plain_vits(size, dim, published):
    """Added up from the layers of ViT-Adapter's ``ViTBaseline``, FPN and heads."""
    block = 12 * dim * dim + 13 * dim + 2 * dim  # with the scales of both residual branches
    vit = 12 * block + dim * (3 * 256 + 1) + dim * 197 + 4 * 2 * dim
    vit -= dim  # theirs stores the position of the class token, which it does not use
    scaling = 3 * (dim * dim * 4 + dim) + 2 * dim
    fpn = 4 * (dim * 256 + 256) + 4 * CONV
    rpn = CONV + 257 * (3 + 12)
    boxes = (256 * 49 + 1) * 1024 + 1025 * 1024 + 1025 * (81 + 320)
    mask = 4 * CONV + MASK_HEAD
    detector = load_empty(f'vit/mask-rcnn_deit-{size}_tap-fpn_1x_coco.py')
    total = vit + scaling + fpn + rpn + boxes + mask
    assert count(detector) == total
    first, later = 256 * 128 * 9 + 256, 128 * 128 * 9 + 256  # with their batch norms
    semantic = 4 * first + 3 * later + 129 * 150
    segmentor = load_empty(f'vit/fpn_deit-{size}_tap-fpn_8xb2-80k_ade20k-512x512.py')
    assert count(segmentor) == vit + scaling + fpn + semantic
    millions = total / 1e6, (vit + scaling + fpn + semantic) / 1e6
    assert millions == pytest.approx(published, abs=0.06)


def test_parameters_of_upernet_are_those_of_mmseg():
    """But for the bias of the patch embedding, which mmseg leaves out."""
    from mmengine.hub import get_config

    ours = load_empty('vit/upernet_vit-b_mln_8xb2-80k_ade20k-512x512.py')
    name = 'mmseg::vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py'
    theirs = build_model(get_config(name))
    assert count(ours) - count(theirs) == 768
    assert count(ours.decode_head) == count(theirs.decode_head)
    assert count(ours.neck) == count(theirs.neck)


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
def test_type_resolves_without_custom_imports(host):
    import importlib

    registry = importlib.import_module(f'{host}.registry').MODELS
    init_default_scope(host)
    cfg = {'type': 'mmpatch.PoolFormer', 'depths': (1, 1), 'dims': 8, 'strides': (4, 2)}
    model = registry.build({**cfg, 'out_indices': (0, 1)})
    assert type(model) is mmpatch.backbones.PoolFormer


def test_unknown_arch_is_named_through_the_host():
    from mmdet.registry import MODELS

    with pytest.raises(ValueError, match="PoolFormer has no arch 's13'; choose from.*'s12'"):
        MODELS.build({'type': 'mmpatch.PoolFormer', 'arch': 's13'})


def test_every_family_has_every_task():
    types = {name: load(name).model.backbone.type for name in OWN}
    used = {MODELS.get(type_) for type_ in types.values()}  # the first one fills the registry
    assert used == {cls for cls in MODELS.module_dict.values() if getattr(cls, 'ARCHS', None)}
    for folder in {name.split('/')[0] for name in OWN}:
        mine = [name for name in OWN if name.startswith(f'{folder}/')]
        assert len({types[name] for name in mine}) == 1, folder
        for task in ('retinanet_', 'mask-rcnn_', 'detr_', 'fpn_'):
            assert [name for name in mine if name.startswith(f'{folder}/{task}')], (folder, task)


@pytest.mark.filterwarnings('error:model.backbone')  # outputs that no head reads
@pytest.mark.parametrize('name', mmpatch.list_configs())
def test_config_parses_and_its_parts_fit(name):
    cfg = load(name)
    assert cfg.default_scope in ('mmdet', 'mmseg')
    assert cfg.auto_scale_lr.base_batch_size > 0
    check_model(cfg.model, cfg.default_scope)
    mean = list(cfg.model.data_preprocessor.mean)
    init = cfg.model.backbone.get('init_cfg')
    if init and init.checkpoint.startswith('timm://'):
        told = timm.get_pretrained_cfg(init.checkpoint.removeprefix('timm://'))
        assert told.architecture == cfg.model.backbone.model_name
        assert mean == pytest.approx([255 * value for value in told.mean])
        std = cfg.model.data_preprocessor.std
        assert list(std) == pytest.approx([255 * value for value in told.std])
    elif init and init.checkpoint.startswith('mmpatch://'):
        entry = mmpatch.checkpoint.PUBLISHED[init.checkpoint.removeprefix('mmpatch://')]
        pixels = (mean, list(cfg.model.data_preprocessor.std))
        expected = tuple(map(list, entry.normalisation))
        assert (pixels == expected) == (name not in OTHER_PIXELS)
        backbone = cfg.model.backbone
        assert (backbone.type, backbone.arch) == (f'mmpatch.{entry.family}', entry.settings['arch'])


@pytest.mark.parametrize('name', CONFIGS)
def test_levels_have_the_strides_that_heads_assume(name):
    """Measured on maps: the real strides against anchors and RoI extractors."""
    cfg = tiny(load(name))
    model = build_model(cfg)
    side = 448  # a multiple of 28 and of 64
    with torch.no_grad():
        levels = model.eval().extract_feat(torch.zeros(1, 3, side, side))
    if hasattr(model, 'bbox_head') and hasattr(model.bbox_head, 'prior_generator'):
        wanted = [s[0] for s in model.bbox_head.prior_generator.strides]
    elif hasattr(model, 'rpn_head'):
        wanted = [s[0] for s in model.rpn_head.prior_generator.strides]
        extractors = model.roi_head.bbox_roi_extractor
        for part in extractors if isinstance(extractors, torch.nn.ModuleList) else [extractors]:
            assert list(part.featmap_strides) == wanted[: len(part.featmap_strides)]
    elif hasattr(model, 'decode_head'):
        first = side / levels[0].shape[3]  # only ratios count
        wanted = [first * s / 4 for s in (4, 8, 16, 32)]
        if hasattr(model.decode_head, 'scale_heads'):
            lengths = [len(head) for head in model.decode_head.scale_heads]
            assert lengths == [1, 2, 4, 6]  # a convolution, then one and an upsampling an octave
    elif hasattr(model, 'panoptic_head'):
        wanted = list(cfg.model.panoptic_head.strides)
    elif cfg.model.type == 'DINO':
        wanted = [8, 16, 32, 64]
    else:
        wanted = [32]
    assert [level.shape[3] for level in levels] == [ceil(side / stride) for stride in wanted]


@pytest.mark.parametrize(
    ('name', 'change', 'culprit'),
    [
        (
            'poolformer/retinanet_poolformer-s12_fpn_1x_coco.py',
            {'model.backbone.arch': 'm36'},
            r'neck.in_channels=\[128, 320, 512\], but the backbone gives \[192, 384, 768\]',
        ),
        (
            'poolformer/mask-rcnn_poolformer-s12_fpn_1x_coco.py',
            {'model.backbone.out_indices': (3, 2, 1, 0)},
            r'out_indices=\(3, 2, 1, 0\) must increase',
        ),
        (
            'convmixer/retinanet_convmixer-768-32_sfp-native_1x_coco.py',
            {'model.data_preprocessor.pad_size_divisor': 32},
            r'pad_size_divisor=32 is not a multiple of 28.*\[7, 14, 28\].*use 56',
        ),
        (
            'convmixer/retinanet_convmixer-768-32-p8_sfp_1x_coco.py',
            {'model.neck.scale_factors': (1, 0.3)},
            '0.3 is not a power of two',
        ),
        (
            'convmixer/retinanet_convmixer-768-32-p8_sfp_1x_coco.py',
            {'model.backbone.patch_size': 16},
            r'anchor_generator.strides=\[8, 16, 32, 64, 128\].*\[16, 32, 64, 128, 256\]',
        ),
        (
            'vit/mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py',
            {'model.neck.scale_factors': (2, 1, 0.5, 0.25)},
            r'strides=\[4, 8, 16, 32, 64\]',
        ),
        (
            'vit/fpn_deit-s_8xb2-80k_ade20k-512x512.py',
            {'model.neck.scale_factors': (4, 2, 1, 0.25)},
            r'feature_strides=\[4, 8, 16, 32\] do not grow',
        ),
        (
            'poolformer/mask2former_poolformer-s12_8xb2-lsj-50e_coco.py',
            {'model.backbone.arch': 'm36'},
            r'panoptic_head.in_channels=\[64, 128, 320, 512\].*levels have \[96, 192, 384, 768\]',
        ),
        (
            'vit/mask-rcnn_deit-t_tap-fpn_1x_coco.py',
            {'model.backbone.arch': 'small'},
            r'neck.in_channels=\[192, 192, 192, 192\], but the backbone gives \[384',
        ),
        (
            'vit/mask-rcnn_deit-t_tap-fpn_1x_coco.py',
            {'model.backbone.patch_size': 8},
            r'anchor_generator.strides=\[4, 8, 16, 32, 64\].*\[2, 4, 8, 16, 32\]',
        ),
        (
            'vit/upernet_vit-b_mln_8xb2-80k_ade20k-512x512.py',
            {'model.decode_head.in_channels': [768, 768, 768, 512]},
            r'decode_head.in_channels=.*levels have \[768, 768, 768, 768\]',
        ),
        (
            'convmixer/fpn_convmixer-768-32-p8_8xb4-40k_ade20k-512x512.py',
            {'model.decode_head.in_channels': [128] * 4},
            r'decode_head.in_channels=.*levels have \[256, 256, 256, 256\]',
        ),
    ],
)
def test_parts_that_do_not_fit_are_named_before_building(name, change, culprit):
    cfg = load(name)
    cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=culprit):
        check_model(cfg.model, cfg.default_scope)


def test_unknown_config_is_named():
    with pytest.raises(ValueError, match=r"no config 'poolformer/none\.py'.*retinanet"):
        mmpatch.config_path('poolformer/none.py')


@pytest.mark.parametrize(
    'base',
    [
        "'mmpatch::poolformer/retinanet_poolformer-s12_fpn_1x_coco.py'",
        "[__import__('mmpatch').config_path('poolformer/retinanet_poolformer-s12_fpn_1x_coco.py')]",
    ],
)
def test_configs_are_inherited_from_anywhere(tmp_path, base):
    (tmp_path / 'mine.py').write_text(
        f'_base_ = {base}\nmodel = dict(backbone=dict(depths=(1, 1, 1, 1)))\n'
    )
    model = build_model(Config.fromfile(tmp_path / 'mine.py'))
    assert [len(stage.blocks) for stage in model.backbone.stages] == [1, 1, 1, 1]


def tiny(cfg):
    """The same model with one block a stage; ResNets and networks of timm stay."""
    kind = cfg.model.backbone.type
    if kind.endswith('PyramidVisionTransformer'):
        cfg.model.backbone.num_layers = (1, 1, 1, 1)
    elif kind.startswith('mmpatch.') and kind != 'mmpatch.TimmBackbone':
        cfg.model.backbone.depths = (1, 1, 1, 1)
    return small(cfg)


def small(cfg):
    """The same model with few proposals, its images not padded to the full size of the recipe."""
    if 'roi_head' in cfg.model:
        few = {'nms_pre': 100, 'max_per_img': 20}
        test = {'rpn': few, 'rcnn': {'max_per_img': 5}}
        cfg.merge_from_dict({'model': {'train_cfg': {'rpn_proposal': few}, 'test_cfg': test}})
        stages = cfg.model.train_cfg.rcnn  # of a cascade
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 32
    if cfg.model.get('as_two_stage'):  # its queries are places of the maps
        cfg.model.num_queries = 50
    if 'panoptic_head' in cfg.model:
        cfg.model.train_cfg.num_points = 500
    preprocessor = cfg.model.data_preprocessor
    preprocessor.pop('batch_augments', None)
    if 'pad_size_divisor' in preprocessor:
        preprocessor.pad_size_divisor = min(preprocessor.pad_size_divisor, 64)
    if 'size' in preprocessor:
        preprocessor.size = (140, 140)
    return cfg


@pytest.mark.parametrize('name', mmpatch.list_configs())
def test_learns_and_predicts_on_odd_sizes(name, torch_seed):
    """Every parameter gets a gradient, so that distributed training needs no search for others."""
    cfg = tiny(load(name))
    model = build_model(cfg).train()
    model.init_weights()  # some parameters of mmdet's are memory as it was
    if cfg.default_scope == 'mmdet':
        data = make_detector_data('roi_head' in cfg.model or 'panoptic_head' in cfg.model)
    else:
        data = make_segmentor_data()
    padded = model.data_preprocessor(deepcopy(data), True)
    losses, _ = model.parse_losses(model(**padded, mode='loss'))
    losses.backward()
    assert torch.isfinite(losses)
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        data = model.eval().data_preprocessor(data, False)
        assert len(model(**data, mode='predict')) == 2


@pytest.mark.parametrize('family', FOLDERS)
def test_metafiles_and_readmes_tell_the_truth(family):
    """Every config is in both; parameters and multiply-adds are recomputed."""
    meta = yaml.safe_load((ROOT / f'configs/{family}/metafile.yml').read_text())
    readme = (ROOT / f'configs/{family}/README.md').read_text()
    models = {m['Config'].removeprefix('configs/'): m for m in meta['Models']}
    assert set(models) == {n for n in CONFIGS if n.startswith(f'{family}/')}
    assert f'configs/{family}/metafile.yml' in (ROOT / 'model-index.yml').read_text()
    for name, entry in models.items():
        if name == DINO and IS_FORK:
            continue
        cfg = load(name)
        model = load_empty(name)
        size = (512, 512) if cfg.default_scope == 'mmseg' else (800, 1344)
        parameters = f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M'
        counts = count_network(model, size, with_heads=False)
        macs = f'{sum(x.macs for x in counts.values()) / 1e9:.1f} G'
        told = entry['Metadata']
        assert (told['Parameters'], told['Backbone and neck MACs']) == (parameters, macs), name
        row = next(line for line in readme.splitlines() if f'({name.split("/")[1]})' in line)
        assert parameters in row and macs in row, name


@pytest.mark.parametrize('folder', FOLDERS)
def test_results_of_metafiles_are_those_of_the_readme(folder):
    """The first source of each; a config without results has none in the README either."""
    meta = yaml.safe_load((ROOT / f'configs/{folder}/metafile.yml').read_text())
    readme = (ROOT / f'configs/{folder}/README.md').read_text().splitlines()
    for model in meta['Models']:
        row = next(line for line in readme if f'({model["Name"]}.py)' in line)
        published = row.split('|')[4]
        results = model.get('Results', [])
        assert bool(results) == (published.strip() != 'none'), model['Name']
        for result in results:
            if result['Source'] == results[0]['Source']:
                ((metric, value),) = result['Metrics'].items()
                assert f'{value} {metric}' in published, model['Name']


def test_mim_folder_links_to_the_project():
    for link in ('configs', 'tools', 'model-index.yml'):
        assert (ROOT / 'mmpatch/.mim' / link).resolve() == ROOT / link
