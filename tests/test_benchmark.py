"""Tables, picture and forms of tools/analysis: nothing is timed."""

import importlib
import json
import re

import matplotlib as mpl
import pytest
import torch

from support import ROOT

MARKS = re.compile(r'<!-- (\S+) --table (\S+) -->\n(.*?)<!-- end -->', re.DOTALL)
MAKERS = {'benchmark.py': 'make_tables', 'benchmark_models.py': 'make_model_table'}
MACHINE = {'command': 'python a.py', 'threads': 2, 'date': '2026-01-02', 'cpu': 'CPU', 'torch': '2'}
MACHINE['flags'] = ['amx_bf16']
SECONDS = {
    'kept': {
        'timm': 0.2,
        'timm openvino f32': 0.1,
        'mmpatch': 0.15,
        'mmpatch exported openvino f32': 0.05,
        'timm openvino bf16': 0.03,
        'mmpatch exported openvino bf16': 0.02,
    },
    'glibc': {'timm': 0.3, 'timm openvino f32': 0.08, 'mmpatch': 0.01},
}
INFERENCE = {
    'input': [2, 3, 8, 8],
    'missing': {'timm onnxruntime': 'ValueError: no rule'},
    'error': {'mmpatch': 2e-6, 'mmpatch exported openvino bf16': 4e-3},
    'seconds': SECONDS,
    'page_faults': {'kept': dict.fromkeys(SECONDS['kept'], 0), 'glibc': {'timm': 7}},
    'layers': {'timm openvino f32': {'MVN': 0.02, 'Convolution': 0.06, 'Pad': 0.01}},
}
PLAIN = {'mmpatch': 0.4, 'mmpatch plain openvino f32': 0.3, 'mmpatch exported openvino f32': 0.1}
CONTAINER = {**INFERENCE, 'missing': {}, 'seconds': {'kept': PLAIN}}
TRAINING = {
    'input': [2, 3, 8, 8],
    'kept_bytes': {'timm': 3 * 2**20, 'mmpatch': 2**20},
    'seconds': {'kept': {'timm': 4.0, 'mmpatch': 2.0}},
    'page_faults': {'kept': {'timm': 1, 'mmpatch': 2}},
}
NETWORKS = {'net': {'inference': INFERENCE, 'training': TRAINING}, 'own': {'inference': CONTAINER}}
RESULT = {**MACHINE, 'networks': NETWORKS}


@pytest.fixture
def load(monkeypatch):
    """Import a module of the scripts."""
    monkeypatch.syspath_prepend(ROOT / 'tools/analysis')
    return importlib.import_module


@pytest.fixture
def report(load):
    return load('report')


def test_tables_are_computed_from_the_result(report):
    text = report.make_tables(RESULT)
    assert '2026-01-02, CPU, with amx_bf16, 2 threads; torch 2' in text and '`python a.py`' in text
    for row in (
        'net, 2x3x8x8 | timm | 200.0 (1.00) | 300.0 (1.00) | 0 / 7 | -',
        'net, 2x3x8x8 | mmpatch | 150.0 (1.33) | 10.0 (30.00) | 0 / - | 2e-06',
        'net, 2x3x8x8 | timm onnxruntime | - | - | - / - | -',
        'net, 2x3x8x8 | mmpatch exported openvino bf16 | 20.0 (10.00) | - | 0 / - | 4e-03',
        'net, 2x3x8x8 | mmpatch | 2000.0 (2.00) | - | 2 / - | 1',
        'mmpatch (kept) over timm (glibc) | 2.00 | -',
        'mmpatch exported openvino f32 (kept) over timm openvino f32 (kept) | 2.00 | -',
        'mmpatch exported openvino f32 (kept) over mmpatch plain openvino f32 (kept) | - | 3.00',
        'mmpatch exported openvino bf16 (kept) over timm openvino bf16 (kept) | 1.50 | -',
        'net | timm openvino f32 | 60.0 | 0.0 | 20.0 | 0.0 | 0.0 | 0.0 | 0.0 | 10.0 | 90.0',
        # ours with the heap kept only, the others with any, and in this precision only
        'net | mmpatch exported openvino f32 (kept), 50.0 ms | timm openvino f32 (glibc), 80.0 ms'
        ' | 1.60',
    ):
        assert f'| {row} |' in text.splitlines(), row
    bf16 = text.split('Inference, bf16:')[1].split('Times')[0]
    assert bf16.count('net, ') == 2 and 'int8:' not in text


def test_table_of_detectors(report):
    seconds = {'timm PoolFormer-S12': 2.0, 'mmpatch': 1.0, 'mmpatch exported openvino f32': 0.5}
    found = {'seconds': seconds, 'peak_mib': dict.fromkeys(seconds, 123.4)}
    found['error'] = {'mmpatch exported openvino f32': 1e-6}
    text = report.make_model_table({**MACHINE, 'input': [1, 3, 8, 9], 'retinanet': {'use': found}})
    assert '| mmpatch exported openvino f32 | 0.500 | 4.00 | 2.00 | 123 | 1e-06 |' in text
    assert '| mmpatch | 1.000 | 2.00 | 1.00 | 123 | - |' in text and '1x3x8x9' in text


def test_picture_shows_every_form(report, tmp_path):
    with mpl.rc_context({'svg.fonttype': 'none'}):
        report.draw(RESULT, tmp_path / 'picture.svg')
    text = (tmp_path / 'picture.svg').read_text()
    labels = ['net', 'own', 'CPU, 2026-01-02, 2 threads', *SECONDS['kept'], *PLAIN, '0.25', '0.10']
    assert not [label for label in labels if label not in text]
    drawn = {colour.lower() for colour in report.COLOURS.values()}
    assert not [colour for colour in drawn if colour not in text]


def test_tables_are_written_between_marks(report, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('a\n<!-- b.py --table c.json -->\nold\n<!-- end -->\nd\n<!-- end -->\n')
    report.write_tables(page, 'b.py', 'new \\1')
    expected = 'a\n<!-- b.py --table c.json -->\n\nnew \\1\n<!-- end -->\nd\n<!-- end -->\n'
    assert page.read_text() == expected
    with pytest.raises(SystemExit, match=r'^error: .*page\.md has no line <!-- e\.py --table'):
        report.write_tables(page, 'e.py', 'new')


@pytest.mark.parametrize('script', MAKERS)
def test_page_shows_what_was_measured(report, script):
    """No number is typed by hand: each table is that of the file which stands beside it."""
    found = {
        name: rest for name, *rest in MARKS.findall((ROOT / 'docs/performance.md').read_text())
    }
    file, text = found[script]
    if (ROOT / file).exists():
        result = json.loads((ROOT / file).read_text())
        assert text.strip() == getattr(report, MAKERS[script])(result).strip()
    else:
        assert not re.search(r'\d', text)


def test_forms_of_a_network_agree(load, monkeypatch, tmp_path):
    """Ours has timm's weights, also where it is folded; a wrong one is named."""
    networks = load('networks')
    small = networks.CASES['poolformer-s12']._replace(size=(1, 3, 32, 32))
    monkeypatch.setitem(networks.CASES, 'small', small)
    forms = ['timm', 'timm channels_last', 'mmpatch', 'mmpatch deployed']
    assert networks.write_files('small', tmp_path, forms, 1) == {}
    made, errors = networks.inference('small', 'cpu', forms, tmp_path)
    assert list(made) == list(errors) == forms and max(errors.values()) < 1e-5
    torch.save(1.01 * torch.load(tmp_path / 'reference.pt'), tmp_path / 'reference.pt')
    with pytest.raises(ValueError, match=r'^small, timm: relative error 9\.9e-03$'):
        networks.inference('small', 'cpu', forms, tmp_path)


def test_a_file_that_cannot_be_written_is_named(load, monkeypatch, tmp_path):
    networks = load('networks')

    def fail(*_):
        raise RuntimeError('no rule\nfor it')

    small = networks.CASES['poolformer-s12']._replace(size=(1, 3, 32, 32))
    monkeypatch.setitem(networks.CASES, 'small', small)
    monkeypatch.setattr(networks, 'convert_peer', fail)
    missing = networks.write_files('small', tmp_path, ['timm', 'timm openvino f32'], 1)
    assert missing == {'timm openvino f32': 'RuntimeError: no rule'}


def test_comparisons_name_forms_that_exist(load):
    networks, report = load('networks'), load('report')
    assert {form for row in report.COMPARISONS for form in row[:2]} <= set(networks.FORMS)
    own = networks.list_forms(networks.CASES['container-light'], 'cpu', with_compiler=False)
    assert 'mmpatch' in own and not [f for f in own if 'timm' in f or 'compiled' in f]
    gpu = networks.list_forms(networks.CASES['poolformer-s12'], 'cuda', with_compiler=True)
    assert 'timm compiled' in gpu and not [f for f in gpu if networks.get_file(f)]
    files = {networks.get_file(form) for form in networks.FORMS if 'openvino' in form}
    assert len(files) == 9  # timm's two and seven of ours
