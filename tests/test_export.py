"""Exported files compute what torch computes, at other sizes too, or are not written."""

import copy
import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_families import TINY
from torch import nn

import mmpatch
from mmpatch import deploy
from mmpatch.backbones import PoolFormer, VisionTransformer
from mmpatch.deployment import ExportedBackbone, ExportError
from mmpatch.deployment.files import FORMATS, get_core, read_file
from mmpatch.deployment.forms import BETTER, NEEDED, use_engine_forms
from mmpatch.engine.model import check_model
from mmpatch.layers import PositionEmbed
from mmpatch.registry import MODELS

import golden
from support import call_tool, child_environment, relative_error

NETWORKS = (
    'PoolFormer with attention',
    'Container',
    'ConvMixer of patch 7',
    'ViT',
    'ViTDet',
)
#: Fewer stages of networks whose export takes long.
SHORT = {
    'PoolFormer with attention': {'out_indices': (0, 2)},
    'PoolFormer with spatial FC': {'out_indices': (0, 2)},
    'Container': {'out_indices': (0, 1)},
    'ConvMixer of patch 7': {'out_indices': (0, 1)},
    'ViT': {'out_indices': (0,)},
}
SIZE = (2, 3, 64, 96)
#: Sizes that are no multiple of a stride, and other batches.
SIZES = ((2, 3, 64, 96), (1, 3, 97, 70), (3, 3, 56, 131))
FREE = ('batch', 'height', 'width')
OLD_TORCH = torch.__version__.startswith('2.6.')
#: Runs files of one format in a process without mmpatch, and compares with kept outputs.
CHILD = """
import json, sys, torch
kind, names = sys.argv[1], sys.argv[2:]
for name in names:
    pairs = torch.load(name + '.pairs')
    if kind == '.onnx':
        import onnxruntime
        session = onnxruntime.InferenceSession(name + kind)
        run = lambda x: session.run(None, {'image': x.numpy()})
    elif kind == '.xml':
        import openvino
        settings = {'INFERENCE_PRECISION_HINT': 'f32'}
        compiled = openvino.Core().compile_model(name + kind, 'CPU', settings)
        run = lambda x: [out for out in compiled(x.numpy()).values()]
    else:
        run = torch.export.load(name + kind).module()
    for x, expected in pairs:
        outs = [torch.as_tensor(out) for out in run(x)]
        assert [y.shape for y in outs] == [y.shape for y in expected], (name, x.shape)
        errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(outs, expected)]
        assert max(errors) < 1e-4, (name, x.shape, errors)
        print(name, max(errors))
assert not any(module.split('.')[0] == 'mmpatch' for module in sys.modules)
"""


def make(name='PoolFormer', **kwargs):
    return golden.randomize(TINY[name](**kwargs)).eval()


def need(suffix):
    for package in FORMATS[suffix].packages:
        pytest.importorskip(package)


def run_child(code, *words):
    """Run code that may import this file in a process of its own."""
    env = child_environment()
    env['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent), env['PYTHONPATH']])
    command = [sys.executable, '-c', code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def write(file, model=None, **kwargs):
    model = model or make(out_indices=(0,))
    return mmpatch.export(model, file, **{'input_size': SIZE, **kwargs})


@pytest.mark.process
@pytest.mark.parametrize('suffix', FORMATS)
def test_files_run_without_mmpatch_at_other_sizes(suffix, tmp_path, torch_seed):
    need(suffix)
    names = []
    for name in NETWORKS:
        model = make(name, **SHORT.get(name, {}))
        for kind in ('free', 'fixed') if name == 'ViTDet' else ('free',):
            dynamic = FREE if kind == 'free' else ()
            if name == 'ViTDet':
                dynamic = dynamic[:1]
            if suffix == '.onnx' and OLD_TORCH:
                dynamic = ()
            file = tmp_path / f'{name}-{kind}{suffix}'
            assert write(file, model, dynamic=dynamic)['error'] < 1e-4
            free = [name in dynamic for name in ('batch', 'channels', 'height', 'width')]
            rows = [zip(free, size, SIZE, strict=True) for size in SIZES]
            xs = [torch.randn([n if f else fixed for f, n, fixed in row]) for row in rows]
            with torch.no_grad():
                pairs = [(x, model(x)) for x in xs]
            names.append(str(file.with_suffix('')))
            torch.save(pairs, names[-1] + '.pairs')
    result = run_child(CHILD, suffix, *names)
    assert not result.returncode, result.stderr[-2000:]
    assert len(result.stdout.splitlines()) == 3 * len(names)


def test_what_a_file_says_of_itself(tmp_path):
    model = make(out_indices=(1, 3))
    said = write(tmp_path / 'a.pt2', model, dynamic=['batch'])
    assert (said['kind'], said['outputs']) == ('backbone', ['map0', 'map1'])
    assert (said['out_channels'], said['out_strides']) == ([16, 32], [8, 32])
    assert (said['dynamic'], said['input_size'], said['precision']) == (['batch'], [*SIZE], 'f32')
    kept, _ = read_file(tmp_path / 'a.pt2')
    assert kept == {key: value for key, value in said.items() if key != 'error'}
    assert [path.name for path in tmp_path.iterdir()] == ['a.pt2']


def test_openvino_gets_one_operator_for_each_norm(tmp_path):
    need('.xml')
    write(tmp_path / 'a.xml', make('PoolFormer', out_norm=False), dynamic=())
    graph = (tmp_path / 'a.xml').read_text()
    blocks = 5
    assert graph.count('type="MVN"') == 2 * blocks
    assert 'GroupNormalization' not in graph and 'type="Transpose"' not in graph
    assert graph.count('type="AvgPool"') == blocks
    write(tmp_path / 'b.xml', make('PoolFormer', out_norm=False), dynamic=(), fold=False)
    assert 'GroupNormalization' in (tmp_path / 'b.xml').read_text()


@pytest.mark.parametrize('antialias', [True, False])
@pytest.mark.parametrize('interpolation', ['bicubic', 'linear'])
def test_positions_by_products_equal_interpolation(interpolation, antialias, torch_seed):
    kwargs = {'interpolation': interpolation, 'antialias': antialias}
    layer = PositionEmbed(8, (14, 9), **kwargs)
    positions = torch.randn(1, 8, 14, 9)
    for size in ((14, 20), (1, 40), (7, 3), (33, 50), (14, 9), (97, 1)):
        expected = layer.resample(positions, torch.Size(size))
        changed = use_engine_forms(copy.deepcopy(layer), '.xml')
        assert type(changed) is NEEDED[PositionEmbed]
        ours = changed.resample(positions, size)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('suffix', BETTER)
@pytest.mark.parametrize('name', TINY)
def test_engine_forms_equal_the_layers(name, suffix, torch_seed):
    model = make(name)
    changed = use_engine_forms(deploy(model), suffix)
    x = torch.randn(2, 3, 70, 96)
    with torch.no_grad():
        for a, b in zip(changed(x), model(x), strict=True):
            assert relative_error(a, b) < 1e-5


def test_stages_of_one_output_are_joined():
    deployed = deploy(make('ViT', out_indices=(1, 3)))
    assert [len(stage.blocks) for stage in deployed.stages] == [4, 4]
    assert deployed.out_indices == (0, 1) and list(deployed.out_norms) == ['0', '1']
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(deployed(x), make('ViT', out_indices=(1, 3))(x), strict=True):
            assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize(
    ('suffix', 'precision'), [('.pt2', 'bf16'), ('.xml', 'bf16'), ('.xml', 'int8')]
)
def test_lower_precisions(suffix, precision, tmp_path, torch_seed):
    need(suffix)
    calibration = None
    if precision == 'int8':
        pytest.importorskip('nncf')
        calibration = [torch.randn(1, 3, 64, 96) for _ in range(2)]
    file = tmp_path / f'a{suffix}'
    said = write(file, precision=precision, calibration=calibration)
    assert said['precision'] == precision
    assert said['error'] > 1e-4 or precision == 'bf16'  # a CPU without bfloat16 runs float32
    assert ('FakeQuantize' in file.read_bytes().decode(errors='ignore')) == (precision == 'int8')


REFUSALS = {
    'suffix': ({'file': 'a.pth'}, 'a.pth: the suffix must be one of .onnx, .xml, .pt2'),
    'folder': ({'file': 'nowhere/a.pt2'}, 'there is no folder'),
    'mode': ({'train': True}, 'PoolFormer is in training mode; call eval'),
    'name': ({'dynamic': ('depth',)}, "choose from .'batch', 'height', 'width'."),
    'size': ({'input_size': (64, 96)}, 'four positive integers'),
    'channels': ({'input_size': (2, 4, 64, 96)}, r'takes \(B, 3, H, W\), got'),
    'small': ({'input_size': (2, 3, 2, 2)}, 'smaller than the stride'),
    'precision': ({'precision': 'int8'}, "precision='int8': .pt2 files have f32, bf16"),
    'calibration': ({'calibration': []}, 'required for int8 and not allowed otherwise'),
    'pixels': ({'normalize': True}, 'normalize=True needs a preprocessor'),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_bad_arguments_are_named(case, tmp_path):
    arguments, message = REFUSALS[case]
    arguments = dict(arguments)
    file = tmp_path / arguments.pop('file', 'a.pt2')
    model = make().train(arguments.pop('train', False))
    with pytest.raises(ExportError, match=message) as caught:
        write(file, model, **arguments)
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_windows_have_fixed_sizes(tmp_path):
    deployed = deploy(make('ViT', out_indices=(0,)))  # attention without windows
    assert write(tmp_path / 'b.pt2', deployed)['error'] < 1e-4
    with pytest.raises(ExportError, match='height and width must be fixed'):
        write(tmp_path / 'a.pt2', make('ViTDet'))


@pytest.mark.parametrize(
    ('name', 'suffix'), [('ViT', '.xml'), ('PoolFormer with spatial FC', '.pt2')]
)
def test_files_run_at_the_grid_of_the_pre_training_too(name, suffix, tmp_path, torch_seed):
    """A comparison of grids in a trace would exclude one of them."""
    need(suffix)
    model, side = make(name, **SHORT[name]), 224
    for size in ((1, 3, 96, 128), (1, 3, side, side)):
        file = tmp_path / f'a{suffix}'
        write(file, model, input_size=size, dynamic=['height', 'width'])
        _, run = read_file(file)
        for shape in ((1, 3, side, side), (1, 3, side, 96), (1, 3, 100, 133)):
            x = torch.randn(shape)
            with torch.no_grad():
                for a, b in zip(run(x), model(x), strict=True):
                    assert relative_error(a, b) < 1e-4


@pytest.mark.parametrize('suffix', FORMATS)
def test_fixed_sizes_stay_fixed(suffix, tmp_path):
    need(suffix)
    write(tmp_path / f'a{suffix}', make('ViT', out_indices=(0,)), dynamic=())
    backbone = ExportedBackbone(str(tmp_path / f'a{suffix}')).eval()
    for shape in ((1, *SIZE[1:]), (2, 3, 96, 64)):
        with pytest.raises(ExportError, match='all dimensions fixed.*is fixed to'):
            backbone(torch.zeros(shape))
    if suffix == '.xml':
        import openvino

        shape = get_core().read_model(tmp_path / 'a.xml').inputs[0].partial_shape
        assert shape == openvino.PartialShape(SIZE)


def test_weights_of_another_precision_are_written_in_float32(tmp_path, torch_seed):
    model = make(out_indices=(0,))
    x = torch.randn(1, 3, 70, 96)
    for dtype in (torch.float64, torch.bfloat16):
        other = make(out_indices=(0,)).to(dtype)
        write(tmp_path / 'a.pt2', other)
        backbone = ExportedBackbone(str(tmp_path / 'a.pt2')).eval()
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            outs = backbone(x.to(dtype))
        with torch.no_grad():
            for a, b in zip(outs, other.float()(x), strict=True):
                assert a.dtype == dtype
                assert relative_error(a, b) < 1e-2
        assert all(p.dtype == torch.float32 for p in model.parameters())


def test_images_of_other_channels(tmp_path):
    model = PoolFormer(depths=(1,), dims=(8,), strides=(4,), in_channels=4, out_indices=(0,)).eval()
    said = write(tmp_path / 'a.pt2', golden.randomize(model), input_size=(2, 4, 64, 96))
    assert said['out_channels'] == [8] and said['error'] < 1e-4


def test_openvino_files_belong_together(tmp_path):
    need('.xml')
    write(tmp_path / 'a.xml', dynamic=())
    ExportedBackbone(str(tmp_path / 'a.xml'))
    content = bytearray((tmp_path / 'a.bin').read_bytes())
    content[-1] ^= 1
    (tmp_path / 'a.bin').write_bytes(content)
    with pytest.raises(ExportError, match='a.bin is of another export'):
        ExportedBackbone(str(tmp_path / 'a.xml'))


@pytest.mark.parametrize('suffix', FORMATS)
def test_a_backbone_serves_several_threads(suffix, tmp_path):
    need(suffix)
    write(tmp_path / f'a{suffix}', dynamic=())
    backbone = ExportedBackbone(str(tmp_path / f'a{suffix}')).eval()
    xs = [torch.randn(SIZE) for _ in range(4)]
    expected = [backbone(x)[-1] for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for a, b in zip(pool.map(backbone, xs), expected, strict=True):
                torch.testing.assert_close(a[-1], b)


class NotFinite(nn.Module):
    """A network whose second output is not a number."""

    def forward(self, x):
        return x, 0 * x / 0


def test_outputs_that_are_no_numbers_are_refused(tmp_path):
    with pytest.raises(ExportError, match='differs from torch by nan'):
        write(tmp_path / 'a.pt2', NotFinite().eval())


@pytest.mark.process
def test_a_disk_that_is_full_does_not_end_the_process(tmp_path):
    """As an error of writing does where torch writes the file itself."""
    code = (
        'import resource, sys, signal; from test_export import write, make, ExportError\n'
        'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n'
        'try: write(sys.argv[1])\n'
        'except ExportError as error: print(error)\n'
    )
    result = run_child(code, tmp_path / 'a.pt2')
    assert 'a.pt2 cannot be written' in result.stdout, result.stderr[-2000:]
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_a_signal_does_not_end_a_process_that_has_closed_files(tmp_path):
    """As it did on CPUs with AMX, where each openvino.Core sets a stack for signals."""
    need('.xml')
    code = (
        'import signal, sys; from test_export import make, read_file, write\n'
        'write(sys.argv[1], make("ViT", out_indices=(0,)), dynamic=())\n'
        'first, second = read_file(sys.argv[1]), read_file(sys.argv[1])\n'
        'del first\n'
        'del second\n'
        'signal.signal(signal.SIGUSR1, lambda *_: print("handled"))\n'
        'signal.raise_signal(signal.SIGUSR1)\n'
    )
    result = run_child(code, tmp_path / 'a.xml')
    assert (result.returncode, result.stdout[-8:]) == (0, 'handled\n'), result.stderr[-2000:]


CALIBRATIONS = {
    'none': [],
    'no batch': [torch.zeros(3, 64, 96)],
    'other size': [torch.zeros(2, 3, 32, 32)],
}


@pytest.mark.parametrize('case', CALIBRATIONS)
def test_calibration_images_must_fit(case, tmp_path):
    need('.xml')
    pytest.importorskip('nncf')
    settings = {'precision': 'int8', 'calibration': CALIBRATIONS[case], 'dynamic': ()}
    with pytest.raises(ExportError, match='one or more images .* that fit input_size'):
        write(tmp_path / 'a.xml', **settings)


class Frozen(nn.Module):
    """A network whose trace keeps the size of its example."""

    def forward(self, x):
        return (nn.functional.interpolate(x, size=(int(x.shape[2]), 8)),)


def test_a_network_that_freezes_its_sizes_is_refused(tmp_path):
    with pytest.raises(ExportError, match='dynamic'):
        write(tmp_path / 'a.pt2', Frozen().eval())
    assert write(tmp_path / 'a.pt2', Frozen().eval(), dynamic=())['error'] == 0


def test_a_file_that_differs_from_torch_is_not_kept(tmp_path, monkeypatch):
    file = tmp_path / 'a.pt2'
    write(file)
    before = file.read_bytes()
    read = FORMATS['.pt2'].read

    def read_wrongly(path):
        said, run = read(path)
        return said, lambda x: [y + 1e-3 * y.abs().max() for y in run(x)]

    monkeypatch.setattr(FORMATS['.pt2'], 'read', staticmethod(read_wrongly))
    with pytest.raises(ExportError, match='a.pt2 differs from torch by 1.0e-03'):
        write(file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize('suffix', FORMATS)
def test_a_full_disk_leaves_the_older_file(suffix, tmp_path, monkeypatch):
    need(suffix)
    file = tmp_path / f'a{suffix}'
    file.write_text('older')

    def fill(part, *_):
        part.write_text('half')
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(FORMATS[suffix], 'write', staticmethod(fill))
    with pytest.raises(ExportError, match='cannot be written.*No space left'):
        write(file, dynamic=())
    assert file.read_text() == 'older' and list(tmp_path.iterdir()) == [file]


def test_a_missing_engine_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ExportError, match=r'pip install "mmpatch\[openvino\]"'):
        write(tmp_path / 'a.xml')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A network and its file."""
    folder = tmp_path_factory.mktemp('exported')
    model = make(out_indices=(1, 2, 3))
    mmpatch.export(model, folder / 'a.pt2', input_size=SIZE, dynamic=['batch'])
    return model, folder / 'a.pt2'


def test_an_exported_backbone_is_a_backbone(files):
    model, file = files
    backbone = MODELS.build({'type': 'mmpatch.ExportedBackbone', 'file': str(file)}).eval()
    assert isinstance(backbone, ExportedBackbone)
    assert backbone.out_channels == model.out_channels
    assert backbone.out_strides == model.out_strides
    backbone.init_weights()
    x = torch.randn(3, 3, *SIZE[2:])
    outs = backbone(x)
    with torch.no_grad():
        for a, b in zip(outs, model(x), strict=True):
            assert relative_error(a, b) < 1e-5
    kept = [y.clone() for y in outs]
    backbone(torch.zeros_like(x))  # engines may reuse memory
    assert all(torch.equal(a, b) for a, b in zip(outs, kept, strict=True))


def test_an_exported_backbone_says_what_it_cannot_do(files, tmp_path):
    model, file = files
    backbone = ExportedBackbone(str(file))
    with pytest.raises(ExportError, match='inference only'):
        backbone.train()(torch.zeros(SIZE))
    with pytest.raises(ExportError, match=r'1x3x32x32.*exported at 2x3x64x96, with batch dynamic'):
        backbone.eval()(torch.zeros(1, 3, 32, 32))
    detector = nn.Module()
    detector.backbone = backbone
    state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    detector.load_state_dict(state)
    state['backbone.stages.0.blocks.0.mlp.fc1.bias'] = torch.ones(32)
    with pytest.raises(ExportError, match="the checkpoint's backbone weights differ"):
        detector.load_state_dict(state)
    with pytest.raises(ExportError, match='takes no init_cfg'):
        ExportedBackbone(str(file), init_cfg={'type': 'Pretrained'})
    with pytest.raises(ExportError, match='no such file'):
        ExportedBackbone(str(tmp_path / 'b.pt2'))
    (tmp_path / 'b.pt2').write_text('nothing')
    with pytest.raises(ExportError, match='cannot be read'):
        ExportedBackbone(str(tmp_path / 'b.pt2'))
    program = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    torch.export.save(program, tmp_path / 'c.pt2')
    with pytest.raises(ExportError, match='was not written by mmpatch.export'):
        ExportedBackbone(str(tmp_path / 'c.pt2'))
    said = json.dumps({**backbone.metadata, 'kind': 'detector'})
    torch.export.save(program, tmp_path / 'd.pt2', extra_files={'mmpatch.json': said})
    with pytest.raises(ExportError, match='is a whole detector; export its backbone'):
        ExportedBackbone(str(tmp_path / 'd.pt2'))


def test_large_networks_have_the_same_names():
    """What is exported of an arch has the outputs of the arch."""
    for model in (PoolFormer('s12', out_indices=(2, 3)), VisionTransformer('tiny')):
        deployed = deploy(model.eval())
        assert deployed.out_channels == model.out_channels
        assert deployed.out_strides == model.out_strides


@pytest.mark.hosts
@pytest.mark.parametrize(('to', 'suffix'), [('pt2', '.pt2'), ('onnx', '.onnx')])
def test_the_tool_exports_a_backbone_for_its_host(to, suffix, tmp_path, monkeypatch, capsys):
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.registry import MODELS as HOST_MODELS
    from mmengine.runner import load_checkpoint

    need(suffix)
    register_all_modules()
    config = mmpatch.config_path('demo/retinanet_poolformer-nano_fpn_toy-coco.py')
    cfg = Config.fromfile(config)
    model = HOST_MODELS.build(cfg.model).eval()
    golden.randomize(model.backbone)
    checkpoint, file = tmp_path / 'a.pth', tmp_path / f'a b{suffix}'
    torch.save({'state_dict': model.state_dict(), 'meta': {'dataset_meta': None}}, checkpoint)
    arguments = ['--to', to, '--part', 'backbone', '--input-size', 1, 64, 96, '--dynamic']
    call_tool(monkeypatch, 'tools/export.py', config, checkpoint, *arguments, '--out', file)
    said = capsys.readouterr().out
    assert f"'model.backbone.file={file}'" in said  # for a shell
    assert ('trtexec' in said) == (to == 'onnx')
    cfg.model.backbone = {'type': 'mmpatch.ExportedBackbone', 'file': str(file)}
    check_model(cfg.model, 'mmdet')
    exported = HOST_MODELS.build(cfg.model).eval()
    load_checkpoint(exported, str(checkpoint), map_location='cpu')
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(exported.extract_feat(x), model.extract_feat(x), strict=True):
            assert relative_error(a, b) < 1e-4
    cfg.model.neck.in_channels = [8, 16, 32]
    with pytest.raises(ValueError, match=r'model.neck.in_channels=\[8, 16, 32\], but the backbone'):
        check_model(cfg.model, 'mmdet')


@pytest.mark.hosts
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--to', 'pt2', '--out', 'a.onnx'], '--to pt2 writes .pt2 files'),
        (['--to', 'pt2', '--calibrate', '0'], '--calibrate takes a positive number'),
        (['--to', 'onnx', '--precision', 'bf16', '--part', 'backbone'], '.onnx files have f32'),
    ],
    ids=str,
)
def test_the_tool_names_what_is_wrong(arguments, message, tmp_path, monkeypatch, capsys):
    need('.onnx')
    config = mmpatch.config_path('demo/fpn_poolformer-nano_toy-ade20k.py')
    with pytest.raises(SystemExit) as caught:
        call_tool(
            monkeypatch, 'tools/export.py', config, *arguments, '--work-dir', tmp_path / 'work'
        )
    assert message in f'{caught.value} {capsys.readouterr().err}'
