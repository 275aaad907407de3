"""Ablation tables against their sources, and tools/ablate.py, which trains their rows."""

import json
import re
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmpatch.registry import MODELS

from support import ROOT, child_environment

TOOL = runpy.run_path(str(ROOT / 'tools/ablate.py'))
TABLES = {name: TOOL['read_table'](name) for name in TOOL['TABLES']}
ROWS = [(name, row) for name, table in TABLES.items() for row in table['rows']]
#: Settings that make the networks small, and the side of the images.
TINY = {
    'poolformer': ({'depths': (1, 1, 1, 1), 'dims': (8, 8, 32, 32)}, 64),
    'convmixer': ({'depths': (1, 1, 1, 1), 'dims': 8}, 16),
    'vit': ({'arch': 'tiny', 'depths': (1, 1, 1, 1), 'dims': 24}, 64),
}
SEGMENTOR = 'configs/demo/fpn_poolformer-nano_toy-ade20k.py'
CONVMIXER = 'configs/convmixer/fpn_convmixer-768-32-p8_8xb4-40k_ade20k-512x512.py'


def find(name, row):
    return TABLES[name], TABLES[name]['rows'][row]


def test_tables_hold_what_the_papers_vary():
    assert {name: len(table['rows']) for name, table in TABLES.items()} == {
        'poolformer': 18,  # Table 5 of arXiv 2111.11418 has 17 beside the baseline
        'convmixer': 12,
        'vit': 5,  # the rows of Table 8 of arXiv 2010.11929, and fixed sines and cosines
    }
    for table in TABLES.values():
        assert next(iter(table['rows'])) == 'baseline'
        assert 'changes' not in table['rows']['baseline']


@pytest.mark.parametrize(('name', 'row'), ROWS)
def test_published_numbers_are_those_counted(name, row):
    table, row = find(name, row)
    told = dict(row.get('published', {}))
    if told:
        assert re.match(r'arXiv \d{4}\.\d{5}, ', table['source'])
        assert set(told) <= {'parameters', 'frozen', 'macs', 'result'}
    size = TOOL['count'](TOOL['build_published'](table, row), table['image'], table['classes'])
    for key, unit in (('parameters', 1e6), ('frozen', 1e6), ('macs', 1e9)):
        if key in told or (key == 'frozen' and told):
            digits = len(str(told.get(key, 0)).partition('.')[2])
            assert f'{size[key] / unit:.{digits}f}' == str(told.get(key, 0))


@pytest.mark.parametrize('name', TABLES)
def test_no_two_rows_are_the_same_network(name):
    networks = {
        row: TOOL['describe'](TOOL['build_published'](*find(name, row)))
        for row in TABLES[name]['rows']
    }
    assert len(set(networks.values())) == len(networks)


@pytest.mark.parametrize(('name', 'row'), ROWS)
def test_every_row_learns(name, row, device, torch_seed):
    table, row = find(name, row)
    settings, side = TINY[name]
    cfg = {'type': table['type'], **table['arguments'], **settings, **row.get('changes', {})}
    model = MODELS.build(cfg).to(device)
    outputs = model(torch.randn(2, 3, side, side, device=device))
    sum(out.square().mean() for out in outputs).backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    frozen = any(not parameter.requires_grad for parameter in model.parameters())
    assert frozen == ('frozen' in row.get('published', {}))


def test_readme_shows_the_tables():
    """``python tools/ablate.py --list`` prints them."""
    readme = (ROOT / 'configs/ablation/README.md').read_text()
    for table in TABLES.values():
        assert TOOL['list_rows'](table) in readme


def call(monkeypatch, *arguments):
    """What the tool prints as it ends."""
    monkeypatch.setattr(sys, 'argv', ['ablate.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        TOOL['main']()
    return end.value.code


@pytest.mark.hosts
def test_wrong_arguments_end_in_one_line(toy, tmp_path, monkeypatch):
    tail = ('--work-dir', tmp_path / 'out', '--cfg-options', f'data_root={toy}/ade')
    error = call(monkeypatch, SEGMENTOR, '--rows', 'identify', *tail)
    assert error.startswith("error: no row 'identify'; did you mean identity? There are baseline,")
    error = call(monkeypatch, SEGMENTOR, '--table', 'convmixer', *tail)
    assert 'model.backbone is mmpatch.PoolFormer, the tables are for mmpatch.ConvMixer' in error
    error = call(monkeypatch, SEGMENTOR, '--cfg-options', 'data_root=none')
    assert 'none does not exist' in error and 'make_toy_data.py' in error
    error = call(monkeypatch, SEGMENTOR, *tail, 'model.backbone.type=ResNet')
    assert error == f'error: {SEGMENTOR}: model.backbone is not one of mmpatch'
    assert not (tmp_path / 'out').exists()


@pytest.mark.hosts
def test_norms_that_a_config_freezes_learn_from_scratch(toy, capsys):
    config = ROOT / 'configs/convmixer/retinanet_convmixer-768-32-p8_sfp_1x_coco.py'
    args = SimpleNamespace(config=config, cfg_options={'data_root': f'{toy}/coco'})
    backbone = TOOL['read_config'](args).model.backbone
    assert backbone.norm_cfg == {'type': 'BN', 'requires_grad': True}
    assert not backbone.norm_eval and backbone.init_cfg is None
    assert 'norm_eval, norm_cfg of the backbone are set to learn' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ('rows: [', 'is no YAML: '),
        ('', 'has no `rows`'),
        ('rows: {baseline: null}', 'lacks title, type, .*, baseline.what;'),
    ],
)
def test_a_table_that_lacks_something_is_named(tmp_path, monkeypatch, text, error):
    (tmp_path / 'mine.yml').write_text(text)
    message = call(monkeypatch, '--list', '--table', tmp_path / 'mine.yml')
    assert re.match(rf'error: \S+mine.yml {error}', message)


@pytest.mark.hosts
def test_a_row_changes_the_backbone_and_what_the_neck_takes():
    cfg = Config.fromfile(ROOT / CONVMIXER)
    cfg.merge_from_dict({'model.backbone.arch': '256/8', 'model.neck.in_channels': 256})
    make = TOOL['make_changes']
    model, backbone = make(cfg, find('convmixer', 'wider')[1]['changes'])
    assert model['neck'] == {'in_channels': 288} and backbone.out_channels[-1] == 288
    model, _ = make(cfg, find('convmixer', 'relu')[1]['changes'])
    assert model == {'backbone': {'act': 'ReLU'}}
    with pytest.raises(ValueError, match='kernel_size: nothing changes in this config'):
        make(cfg, {'kernel_size': 5})
    cfg.model.backbone.norm_cfg = {'type': 'GN', 'num_groups': 4}
    model, backbone = make(cfg, {'norm_cfg': {'type': 'BN'}})
    assert model['backbone']['norm_cfg'] == {'type': 'BN', '_delete_': True}
    assert isinstance(backbone.stages[0].blocks[0].norm1, torch.nn.BatchNorm2d)


def find_processes(path):
    """Processes of which an argument holds a path."""
    found = []
    for file in Path('/proc').glob('[0-9]*/cmdline'):
        with suppress(OSError):  # it has just ended
            found += [file] if str(path) in file.read_text() else []
    return found


@pytest.mark.hosts
@pytest.mark.process
def test_killed_between_rows_and_continued(toy, tmp_path, monkeypatch):
    rows = ['--rows', 'baseline', 'no-mlp', '--work-dir', str(tmp_path)]
    options = [
        f'data_root={toy}/ade',
        'model.backbone.depths=(1,1,1,1)',
        'train_dataloader.batch_size=2',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'val_dataloader.dataset.indices=2',
    ]
    command = ['tools/ablate.py', SEGMENTOR, *rows, '--cfg-options', *options]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=child_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith('baseline'):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'no-mlp/result.json').exists()
    first = (tmp_path / 'baseline/result.json').read_text()
    deadline = time.monotonic() + 20
    while find_processes(tmp_path):  # the training that was going on ends, too
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = (tmp_path / 'baseline/last_checkpoint').stat().st_mtime_ns

    assert call(monkeypatch, *command[1:]) == 0
    assert (tmp_path / 'baseline/last_checkpoint').stat().st_mtime_ns == before
    results = json.loads((tmp_path / 'table.json').read_text())
    assert list(results) == ['baseline', 'no-mlp'] and results['baseline'] == json.loads(first)
    assert results['no-mlp']['parameters'] < results['baseline']['parameters'] / 2
    assert '| `no-mlp` | without channel MLPs |' in (tmp_path / 'table.md').read_text()
    assert (tmp_path / 'table.png').read_bytes()[:4] == b'\x89PNG'
    state = torch.load(tmp_path / 'no-mlp/iter_2.pth', weights_only=True)['state_dict']
    assert not [key for key in state if key.startswith('backbone') and 'mlp' in key]

    error = call(monkeypatch, *command[1:], 'randomness.seed=7')
    assert error == f'error: {tmp_path}/base.py holds other settings; give another --work-dir'
