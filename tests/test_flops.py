"""What networks are called, and what tools/analysis/get_flops.py counts of them."""

import csv
import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mmpatch
from mmpatch.backbones import (
    Container,
    ConvMixer,
    MetaFormer,
    PoolFormer,
    VisionTransformer,
    names,
)
from mmpatch.engine.build import build_empty, build_network, read_network
from mmpatch.engine.count import Count, count
from mmpatch.registry import MODELS

from support import call_tool

TOOL = 'tools/analysis/get_flops.py'
BASELINES = 'baselines/{}_fpn_1x_coco.py'


def count_total(name, size, options=None):
    return sum(count(build_empty(read_network(name, options)), size).values(), Count())


def run(monkeypatch, file, *arguments):
    call_tool(monkeypatch, TOOL, *arguments, '--out', file)
    with file.open() as rows:
        return {(row['network'], row['part']): row for row in csv.DictReader(rows)}


@pytest.mark.parametrize(
    ('pattern', 'found'),
    [
        ('poolformer-s12-p*', ['pppa', 'ppaa', 'pppf', 'ppff']),
        ('poolformer-s12', ['']),
        ('POOLFORMER-S12', []),
        ('s12', []),
        ('convmixer-768*', None),
        ('vit-base', None),
    ],
)
def test_models_are_listed_by_pattern(pattern, found):
    listed = mmpatch.list_models(pattern)
    assert listed == sorted(listed) and set(listed) <= set(mmpatch.list_models())
    if found is not None:
        assert listed == sorted(f'poolformer-s12{"-" * bool(x)}{x}' for x in found)
    assert bool(listed) == (found != [])


def test_every_listed_model_is_built_from_its_name():
    listed = mmpatch.list_models()
    families = (Container, ConvMixer, PoolFormer, VisionTransformer)
    assert len(listed) == sum(len(family.ARCHS) for family in families)
    for name in listed:
        with torch.device('meta'):
            model = build_network(read_network(name))
        assert isinstance(model, MetaFormer), name
    assert names.find_network('convmixer-768-32') == names.find_network('mmpatch.ConvMixer:768/32')
    assert names.find_network('PoolFormer:s12') == {'type': 'mmpatch.PoolFormer', 'arch': 's12'}


def test_weights_and_configs_are_listed_by_pattern():
    listed = mmpatch.list_weights('deit-*')
    assert 'deit-tiny_in1k' in listed and all(x.startswith('deit-') for x in listed)
    assert mmpatch.list_weights('mmpatch://deit-*') == listed
    assert set(mmpatch.list_weights()) == set(mmpatch.checkpoint.PUBLISHED)
    assert mmpatch.list_weights('none*') == mmpatch.list_configs('none*') == []
    listed = mmpatch.list_configs('poolformer/*s24*')
    assert len(listed) == 3 and set(listed) < set(mmpatch.list_configs())


def test_published_names_are_networks_with_their_weights():
    found = names.find_network('mmpatch://vit-base-p32_in21k')
    weights = found.pop('init_cfg')['checkpoint']
    assert weights == 'mmpatch://vit-base-p32_in21k'
    assert found == {'type': 'mmpatch.VisionTransformer', 'arch': 'base', 'patch_size': 32}


def test_networks_of_timm_have_their_stages_or_quarters():
    assert names.find_network('timm://resnet18')['out_indices'] == (0, 1, 2, 3, 4)
    assert names.find_network('timm://vit_tiny_patch16_224')['out_indices'] == (2, 5, 8, 11)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('poolformer-s13', '.*nearest: .*poolformer-s12'),
        ('convmixer-768/31', '.*nearest: .*convmixer-768-32'),
        ('PoolFormer:s13', '.*nearest: .*mmpatch.PoolFormer:s12'),
        ('mmpatch://deit-tini_in1k', '.*nearest: deit-tiny_in1k'),
        ('retinanet_poolformer.py', '.*nearest: .*poolformer/retinanet'),
    ],
)
def test_unknown_networks_get_the_nearest_name(name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_network(name)
    assert len(str(error.value)) < 400


def test_unknown_networks_of_timm_get_the_nearest_name(monkeypatch):
    with pytest.raises(SystemExit, match='error: timm://resnet51 .*near: .*resnet50'):
        call_tool(monkeypatch, TOOL, 'timm://resnet51')


@pytest.mark.parametrize(
    ('name', 'macs', 'activations'),
    [  # of timm's results/benchmark-infer-*.csv, less the classifier
        ('poolformer-s12', 1.82, 5.53),
        ('vit-small', 4.61, 11.95),
        ('timm://vit_small_patch16_224', 4.61, 11.95),
        ('timm://resnet50', 4.11, 11.11),
    ],
)
def test_published_multiply_adds_and_activations(name, macs, activations):
    total = count_total(name, (224, 224))
    assert total.macs / 1e9 == pytest.approx(macs, rel=0.01)
    assert total.activations / 1e6 == pytest.approx(activations, rel=0.01)


@pytest.mark.parametrize(
    ('name', 'macs'),  # of the authors, without depthwise convolutions and with the classifier
    [('convmixer-1536-20', 48.68), ('convmixer-768-32', 19.55), ('convmixer-1024-20', 5.55)],
)
def test_depthwise_convolutions_are_counted_apart(name, macs):
    total = count_total(name, (224, 224))
    assert (total.macs - total.depthwise_macs) / 1e9 == pytest.approx(macs, rel=0.01)
    assert total.depthwise_macs / total.macs > 0.04


def test_other_convolutions_are_not_depthwise():
    assert count_total('poolformer-s12', (64, 64)).depthwise_macs == 0
    assert count_total('timm://resnext50_32x4d', (64, 64)).depthwise_macs == 0


@pytest.mark.hosts
@pytest.mark.parametrize(
    ('name', 'macs'),
    [
        # What mmengine's get_model_complexity_info counts of them, which mmdet's get_flops.py calls
        # (mmdet 3.3, mmengine 0.10.7); the last as in Swin's Table 2 (arXiv 2103.14030).
        ('retinanet_r50', 238.99),
        ('retinanet_pvt-t', 221.25),
        ('mask-rcnn_r50', 260),
    ],
)
def test_multiply_adds_of_detectors(name, macs):
    total = count_total(BASELINES.format(name), (800, 1280))
    assert total.macs / 1e9 == pytest.approx(macs, rel=0.02)


def make_windowed(**kwargs):
    windows = {'window_size': 3, 'rel_pos': True, 'with_cls_token': False}
    return {'type': 'mmpatch.VisionTransformer', 'arch': 'tiny', **windows, **kwargs}


def test_windows_and_relative_positions_are_counted():
    """By hand: a ViT of width 192 with 3 heads on 7 x 7 tokens, in windows of 3 x 3."""
    with torch.device('meta'):
        plain, windowed = (
            count(MODELS.build(make_windowed(pretrain_img_size=112, **kwargs)), (112, 112))
            for kwargs in ({'window_size': None, 'rel_pos': False}, {'global_blocks': []})
        )
    linear, tokens, padded = 192 * 192, 49, 81
    attention = 2 * 49 * 49 * 192
    assert plain['stage 1'].macs == 3 * (12 * linear * tokens + attention)
    in_windows = 2 * 9 * 81 * 192  # queries with keys, affinities with values
    positions = 2 * 3 * 81 * 192  # queries with vectors of 3 rows, and of 3 columns
    block = 4 * linear * padded + 8 * linear * tokens + in_windows + positions
    assert windowed['stage 1'].macs == 3 * block


def test_parts_sum_to_what_torch_counts():
    with torch.device('meta'):
        model = PoolFormer('s12-ppaa')
        x = torch.empty(1, 3, 64, 96)
    parts = count(model, (64, 96))
    assert list(parts) == ['stem', 'stage 1', 'stage 2', 'stage 3', 'stage 4']
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x)
    total = sum(parts.values(), Count())
    assert 2 * total.macs == counter.get_total_flops()
    assert total.parameters == sum(p.numel() for p in model.parameters())
    assert parts['stem'].parameters == sum(p.numel() for p in model.stem.parameters())


@pytest.mark.hosts
@pytest.mark.parametrize(
    'name',
    [
        'poolformer/deformable-detr_poolformer-s12_8xb4-50e_coco.py',  # whose encoder reads numbers
        'vit/upernet_vit-b_mln_8xb2-80k_ade20k-512x512.py',
        'vit/cascade-mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py',
    ],
)
def test_heads_are_counted(name):
    cfg = read_network(name, {'model.backbone.depths': (1, 1, 1, 1)})
    counts = count(build_empty(cfg), (128, 128))
    assert counts['head'].macs and counts['head'].parameters and counts['neck'].macs
    if 'upernet' in name:
        assert counts['auxiliary head'].parameters and not counts['auxiliary head'].macs


@pytest.mark.hosts
def test_table_and_files(monkeypatch, tmp_path, capsys):
    name = 'retinanet_poolformer-s12_fpn_1x_coco'
    options = ('--shape', 64, 96, '--cfg-options', 'model.backbone.depths=(1,1,1,1)')
    rows = run(monkeypatch, tmp_path / 'flops.csv', 'poolformer-s12', name, *options)
    table = capsys.readouterr().out
    parts = [part for network, part in rows if network == name]
    assert parts == ['stem', *(f'stage {i}' for i in range(1, 5)), 'neck', 'head', 'all']
    for key in ('parameters', 'macs', 'depthwise_macs', 'activations'):
        whole = sum(int(rows[name, part][key]) for part in parts[:-1])
        assert int(rows[name, 'all'][key]) == whole
        assert (whole > 0) == (key != 'depthwise_macs')
    assert (rows[name, 'all']['height'], rows[name, 'all']['width']) == ('64', '96')
    lines = table.splitlines()
    assert len(lines) == 2 + 3 * 2 and len({len(line) for line in lines}) == 1
    assert f'{int(rows[name, "all"]["macs"]) / 1e9:.2f} |' in table
    call_tool(monkeypatch, TOOL, 'poolformer-s12', '--out', tmp_path / 'flops.md')
    assert (tmp_path / 'flops.md').read_text() == capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--out', 'a.txt'), 'write a .csv or a .md file'),
        (('--out', 'none/a.md'), 'there is no folder none'),
        (('--shape', 1, 2, 3), 'give height and width'),
        (('--cfg-options', 'model.depth'), 'write KEY=VALUE'),
        (('--cfg-options', 'model.depth=1'), 'settings of a config, and there is none'),
    ],
)
def test_wrong_arguments_get_one_line(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        call_tool(monkeypatch, TOOL, 'poolformer-s12', *arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_images_that_are_too_small_get_one_line(monkeypatch):
    with pytest.raises(SystemExit, match='error: vit-base at 8x8: ValueError: .*smaller'):
        call_tool(monkeypatch, TOOL, 'vit-base', '--shape', 8)


@pytest.mark.hosts
def test_configs_of_the_same_name_are_both_listed(monkeypatch, tmp_path):
    base = "_base_ = 'mmpatch::demo/fpn_poolformer-nano_toy-ade20k.py'\n"
    for folder, depth in (('a', 1), ('b', 2)):
        (tmp_path / folder).mkdir()
        change = f'model = dict(backbone=dict(depths=(1, 1, 1, {depth})))\n'
        (tmp_path / folder / 'mine.py').write_text(base + change)
    files = tmp_path / 'a/mine.py', tmp_path / 'b/mine.py'
    rows = run(monkeypatch, tmp_path / 'a.csv', *files, '--shape', 64)
    first, second = rows['mine', 'all'], rows[str(files[1]), 'all']
    assert int(first['parameters']) < int(second['parameters'])


@pytest.mark.parametrize(
    'content',
    [
        '{"type": "os.system", "command": "touch ran"}',
        '{"type": "mmpatch.PoolFormer", "norm": {"type": "os.system"}}',
    ],
)
def test_configs_of_strangers_call_nothing(monkeypatch, tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(SystemExit, match="^error: .*json has type='os.system', no known class"):
        call_tool(monkeypatch, TOOL, tmp_path)


def test_folders_with_a_config_are_networks(tmp_path):
    settings = {'type': 'mmpatch.PoolFormer', 'depths': [1, 1, 1, 1]}
    (tmp_path / 'config.json').write_text(json.dumps(settings))
    found = names.find_network(str(tmp_path))
    assert found == {**settings, 'init_cfg': {'type': 'Pretrained', 'checkpoint': str(tmp_path)}}
