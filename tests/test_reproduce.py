"""tools/reproduce.py: files with the published names and shapes load whole, wrong ones are named.

The names are those of the authors' code and of mmdet 2.19 and mmseg 0.x, written out here, not
taken from our models.
"""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.runner import Runner

import mmpatch
from mmpatch.engine.build import build_model
from mmpatch.engine.data import replace_data_root

import golden
from support import ROOT, child_environment

pytestmark = pytest.mark.hosts
ARCHS = {
    's12': ((2, 2, 6, 2), (64, 128, 320, 512)),
    's24': ((4, 4, 12, 4), (64, 128, 320, 512)),
    's36': ((6, 6, 18, 6), (64, 128, 320, 512)),
    'm36': ((6, 6, 18, 6), (96, 192, 384, 768)),
    'm48': ((8, 8, 24, 8), (96, 192, 384, 768)),
}
#: Size of test images.
SCALE = (96, 80)
RELEASED = yaml.safe_load((ROOT / 'configs/released.yml').read_text())


@pytest.fixture
def reproduce(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    return importlib.import_module('reproduce')


def conv(name, out, into, side, bias=True):
    return {f'{name}.weight': (out, into, side, side), **({f'{name}.bias': (out,)} if bias else {})}


def affine(name, dim):
    return {f'{name}.weight': (dim,), f'{name}.bias': (dim,)}


def linear(name, out, into):
    return {f'{name}.weight': (out, into), f'{name}.bias': (out,)}


def list_backbone(arch, first_norm):
    """Names and shapes of sail-sg/poolformer, models/poolformer.py, with ``fork_feat``."""
    depths, dims = ARCHS[arch]
    shapes = conv('patch_embed.proj', dims[0], 3, 7)
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        if i:
            shapes |= conv(f'network.{2 * i - 1}.proj', dim, dims[i - 1], 3)
        for j in range(depth):
            block = f'network.{2 * i}.{j}'
            shapes |= affine(f'{block}.norm1', dim) | affine(f'{block}.norm2', dim)
            shapes |= conv(f'{block}.mlp.fc1', 4 * dim, dim, 1)
            shapes |= conv(f'{block}.mlp.fc2', dim, 4 * dim, 1)
            shapes |= {f'{block}.layer_scale_{k}': (dim,) for k in (1, 2)}
        if i >= first_norm:
            shapes |= affine(f'norm{2 * i}', dim)
    return {f'backbone.{name}': shape for name, shape in shapes.items()}


def list_fpn(channels, extra=0):
    shapes = {}
    for i, c in enumerate(channels):
        shapes |= conv(f'neck.lateral_convs.{i}.conv', 256, c, 1)
        shapes |= conv(f'neck.fpn_convs.{i}.conv', 256, 256, 3)
    for i in range(extra):  # on the last input
        into = 256 if i else channels[-1]
        shapes |= conv(f'neck.fpn_convs.{len(channels) + i}.conv', 256, into, 3)
    return shapes


def list_retinanet(arch):
    shapes = list_backbone(arch, 1) | list_fpn(ARCHS[arch][1][1:], 2)
    for kind in ('cls', 'reg'):
        for i in range(4):
            shapes |= conv(f'bbox_head.{kind}_convs.{i}.conv', 256, 256, 3)
    return (
        shapes
        | conv('bbox_head.retina_cls', 9 * 80, 256, 3)
        | conv('bbox_head.retina_reg', 9 * 4, 256, 3)
    )


def list_mask_rcnn(arch):
    shapes = list_backbone(arch, 0) | list_fpn(ARCHS[arch][1])
    shapes |= conv('rpn_head.rpn_conv', 256, 256, 3)
    shapes |= conv('rpn_head.rpn_cls', 3, 256, 1) | conv('rpn_head.rpn_reg', 12, 256, 1)
    shapes |= linear('roi_head.bbox_head.shared_fcs.0', 1024, 256 * 49)
    shapes |= linear('roi_head.bbox_head.shared_fcs.1', 1024, 1024)
    shapes |= linear('roi_head.bbox_head.fc_cls', 81, 1024)
    shapes |= linear('roi_head.bbox_head.fc_reg', 320, 1024)
    for i in range(4):
        shapes |= conv(f'roi_head.mask_head.convs.{i}.conv', 256, 256, 3)
    shapes |= conv('roi_head.mask_head.upsample', 256, 256, 2)
    return shapes | conv('roi_head.mask_head.conv_logits', 80, 256, 1)


def list_semantic_fpn(arch):
    shapes = list_backbone(arch, 0) | list_fpn(ARCHS[arch][1])
    # convolutions of each level; upsampling has no tensors, but counts
    for level, places in enumerate(((0,), (0,), (0, 2), (0, 2, 4))):
        for i, place in enumerate(places):
            name = f'decode_head.scale_heads.{level}.{place}'
            shapes |= conv(f'{name}.conv', 128, 128 if i else 256, 3, bias=False)
            shapes |= affine(f'{name}.bn', 128)
            shapes |= {f'{name}.bn.{stat}': (128,) for stat in ('running_mean', 'running_var')}
            shapes |= {f'{name}.bn.num_batches_tracked': ()}
    return shapes | conv('decode_head.conv_seg', 150, 128, 1)


LISTS = {'retinanet': list_retinanet, 'mask-rcnn': list_mask_rcnn, 'fpn': list_semantic_fpn}


def list_published(name):
    kind, arch = name.removesuffix('_mmseg').split('_poolformer-')
    return LISTS[kind](arch)


def make_file(path, shapes, random=True, **changes):
    """A file of mmdet 2 or mmseg 0, of zeros if not random; a change of None drops a tensor."""
    value = golden.value if random else (lambda _, shape: np.zeros(shape, np.float32))
    state = {k: torch.from_numpy(np.array(value(k, shape))) for k, shape in shapes.items()}
    state = {key: value for key, value in (state | changes).items() if value is not None}
    torch.save({'meta': {'mmdet_version': '2.19.0', 'epoch': 12}, 'state_dict': state}, path)
    return str(path)


def build(name, device='meta'):
    cfg = Config.fromfile(mmpatch.config_path(RELEASED[name]['config']))
    with torch.device(device):
        return build_model(cfg)


@pytest.mark.parametrize('name', [name for name in RELEASED if 'poolformer' in name])
def test_files_with_the_published_names_load_whole(reproduce, tmp_path, name):
    shapes = list_published(name)
    file = make_file(tmp_path / 'a.pth', shapes, random='s12' in name)
    if 's12' not in name:
        assert len(reproduce.fit_whole(build(name), file)[1].matched) == len(shapes)
        return
    model = build(name, 'cpu')
    assert len(reproduce.load_whole(model, file).matched) == len(shapes)
    state = golden.rename_to_published(model.state_dict())
    loaded = torch.load(file)['state_dict']
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[key], loaded[key]) for key in loaded)


@pytest.mark.parametrize(
    ('key', 'named'),
    [
        ('backbone.network.0.1.mlp.fc1.weight', 'backbone.stages.0.blocks.1.mlp.fc1.weight'),
        ('neck.lateral_convs.2.conv.bias',) * 2,
        ('decode_head.scale_heads.3.2.bn.running_mean',) * 2,
    ],
)
def test_wrong_tensors_are_named(reproduce, tmp_path, key, named):
    name = 'fpn_poolformer-s12_mmseg'
    model, shapes = build(name), list_published(name)
    file = tmp_path / 'a.pth'
    with pytest.raises(ValueError, match=f'the file lacks: {named}$'):
        reproduce.load_whole(model, make_file(file, shapes, **{key: None}))
    with pytest.raises(ValueError, match=f'model has no tensor for: {key}_2$'):
        reproduce.load_whole(model, make_file(file, shapes, **{f'{key}_2': torch.zeros(2)}))
    wrong = torch.zeros(7, *shapes[key][1:])
    with pytest.raises(ValueError, match=rf'wrong shapes: {named}: \(7,.*\) in the file'):
        reproduce.load_whole(model, make_file(file, shapes, **{key: wrong}))
    spoiled = torch.full(shapes[key], torch.nan)
    with pytest.raises(ValueError, match=f'not finite in: {named}$'):
        reproduce.load_whole(model, make_file(file, shapes, **{key: spoiled}))


def test_a_file_of_another_network_is_refused(reproduce, tmp_path):
    file = make_file(tmp_path / 'a.pth', list_retinanet('s24'))
    with pytest.raises(ValueError, match=r'does not fit this RetinaNet; .*no tensor for: '):
        reproduce.load_whole(build('retinanet_poolformer-s12'), file)


def test_the_table_names_our_configs_and_the_metafiles_results(reproduce):
    """Each reported metric is in the metafile of the config, with the same source."""
    titles = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP', 'mIoU': 'mIoU'}
    rows = reproduce.read_table(reproduce.TABLE)
    assert len(rows) == 24
    for name, row in rows.items():
        assert mmpatch.config_path(row['config']) and row['page'].startswith('https://'), name
        folder, file = row['config'].split('/')
        meta = yaml.safe_load((ROOT / f'configs/{folder}/metafile.yml').read_text())
        model = next(m for m in meta['Models'] if m['Config'].endswith(f'/{file}'))
        told = {}
        for result in model['Results']:
            if result['Source'] == row['by']:
                told |= result['Metrics']
        assert told == {titles[key]: value for key, value in row['metrics'].items()}, name


def run(*arguments):
    result = subprocess.run(
        [sys.executable, 'tools/reproduce.py', *map(str, arguments)],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout, result.stderr


def make_table(folder, name, **metrics):
    file = folder / 'table.yml'
    row = {**RELEASED[name], 'url': 'https://example.org/a', 'metrics': metrics}
    file.write_text(yaml.safe_dump({name: row}))
    return file


def predict(reproduce, name, file, folder):
    """Predictions of a released model, one after the other, at the size that OPTIONS say."""
    model, cfg = (
        build(name, 'cpu').eval(),
        Config.fromfile(ROOT / 'configs' / RELEASED[name]['config']),
    )
    reproduce.load_whole(model, file)
    replace_data_root(cfg, str(folder))
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.test_dataloader.dataset.pipeline[1].scale = SCALE
    with torch.no_grad():
        for batch in Runner.build_dataloader(cfg.test_dataloader):
            yield from model.test_step(batch)


def answer_detector(samples, folder):
    """Make boxes that a detector predicts the ground truth."""
    from mmdet.datasets import CocoDataset

    file = folder / 'annotations/instances_val2017.json'
    content = json.loads(file.read_text())
    names = {c['name']: c['id'] for c in content['categories']}
    classes = [names[name] for name in CocoDataset.METAINFO['classes']]
    content['annotations'] = []
    for sample in samples:
        found = sample.pred_instances
        for (x, y, x2, y2), label in zip(found.bboxes.tolist(), found.labels, strict=True):
            box, count = [x, y, x2 - x, y2 - y], len(content['annotations'])
            entry = {'id': count + 1, 'image_id': sample.img_id, 'category_id': classes[label]}
            entry |= {'bbox': box, 'area': box[2] * box[3], 'iscrowd': 0}
            content['annotations'].append(entry)
    assert content['annotations']
    file.write_text(json.dumps(content))


def answer_segmentor(samples, folder):
    """Make classes that a segmentor predicts the ground truth; 0 is unlabelled there."""
    for sample in samples:
        labels = sample.pred_sem_seg.data[0].numpy() + 1
        name = Path(sample.img_path).with_suffix('.png').name
        assert cv2.imwrite(str(folder / 'annotations/validation' / name), labels.astype(np.uint8))


@pytest.mark.process
@pytest.mark.parametrize(
    ('name', 'data', 'key', 'answer'),
    [
        ('retinanet_poolformer-s12', 'coco', 'coco/bbox_mAP', answer_detector),
        ('fpn_poolformer-s12_mmseg', 'ade', 'mIoU', answer_segmentor),
    ],
)
def test_the_command_evaluates_and_exits_by_its_comparison(
    toy, reproduce, tmp_path, name, data, key, answer
):
    """On pictures whose ground truth is what the model predicts, so the metric is 100."""
    file, folder = make_file(tmp_path / 'a.pth', list_published(name)), tmp_path / data
    shutil.copytree(toy / data, folder)
    where = ['--file', file, '--data-root', folder, '--work-dir', tmp_path / 'out']
    options = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    where += [
        '--cfg-options',
        *options,
        f'test_dataloader.dataset.pipeline.1.scale=({SCALE[0]},{SCALE[1]})',
    ]
    code, text, errors = run(name, '--table', make_table(tmp_path, name, **{key: 99.95}), *where)
    line = next((line for line in text.splitlines() if line.startswith('FAILED: ')), errors)
    assert code == 1 and float(line.split(',')[0].split()[-1]) < 50, line
    answer(predict(reproduce, name, file, folder), folder)
    code, text, errors = run(name, '--table', make_table(tmp_path, name, **{key: 99.95}), *where)
    assert code == 0 and f'equal: {key} 100.00, reported 99.95, +0.05' in text, text + errors


@pytest.mark.process
def test_without_data_names_and_shapes_are_checked(tmp_path):
    name = 'mask-rcnn_poolformer-s12'
    shapes = list_published(name)
    code, text, errors = run(name, '--file', make_file(tmp_path / 'a.pth', shapes))
    assert code == 0 and f'all {len(shapes)} tensors of ' in text, errors
    wrong = make_file(tmp_path / 'b.pth', shapes, **{'rpn_head.rpn_cls.bias': None})
    code, _, errors = run(name, '--file', wrong)
    assert code == 1 and errors.strip().endswith('the file lacks: rpn_head.rpn_cls.bias')


def test_metrics_are_compared_in_percent(reproduce):
    metrics = {'coco/bbox_mAP': 36.2, 'mIoU': 36.68}
    lines = reproduce.compare(metrics, {'coco/bbox_mAP': 0.361, 'mIoU': 36.79})
    assert lines[0] == 'equal: coco/bbox_mAP 36.10, reported 36.2, -0.10'
    assert lines[1] == 'FAILED: mIoU 36.79, reported 36.68, +0.11'
    (line,) = reproduce.compare({'coco/bbox_mAP': 36.2}, {})
    assert line == 'FAILED: coco/bbox_mAP was not measured, reported 36.2; nothing was found'


def test_files_that_are_not_there_or_not_the_published_ones_are_named(reproduce, tmp_path):
    with pytest.raises(ValueError, match=r'^fetch https://drive.* give the file: --file PATH$'):
        reproduce.find_file(RELEASED['retinanet_poolformer-s12'], None)
    (tmp_path / 'a.pth').write_bytes(b'another')
    with pytest.raises(ValueError, match=r'a\.pth is not the file .* not b5aa2f49$'):
        reproduce.find_file(RELEASED['fpn_poolformer-s12_mmseg'], str(tmp_path / 'a.pth'))
    (tmp_path / 'table.yml').write_text('a: {config: b}')
    with pytest.raises(ValueError, match=r'table\.yml: a must have by, config, metrics, page, url'):
        reproduce.read_table(tmp_path / 'table.yml')
    (tmp_path / 'table.yml').write_text('a: {b: ')
    with pytest.raises(ValueError, match=r'table\.yml: while parsing'):
        reproduce.read_table(tmp_path / 'table.yml')
    with pytest.raises(ValueError, match=r'table\.yml: a: metrics must be names with numbers'):
        row = dict.fromkeys(['config', 'url', 'page', 'by']) | {'metrics': {'mIoU': '36.2'}}
        (tmp_path / 'table.yml').write_text(yaml.safe_dump({'a': row}))
        reproduce.read_table(tmp_path / 'table.yml')
