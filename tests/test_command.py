"""The command ``mmpatch``, in this process; tests/test_wheel.py runs the installed one."""

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

import mmpatch
from mmpatch import command
from mmpatch.compat import stand_in

from support import ROOT


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """What a command changes in its process."""
    monkeypatch.setattr(sys, 'argv', ['mmpatch'])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])


def call(capsys, *arguments):
    """Output, and error message, of a command that may end the process."""
    capsys.readouterr()
    error = ''
    try:
        command.main([*map(str, arguments)])
    except SystemExit as end:
        error = end.code or ''
    return capsys.readouterr().out, error


@pytest.mark.parametrize('name', sorted(command.TOOLS))
def test_every_command_runs_its_file(capsys, name):
    out, error = call(capsys, name, '--help')
    assert not error and out.startswith(f'usage: mmpatch {name} [-h]')


def test_files_of_commands_exist():
    assert command.FOLDER.resolve() == ROOT / 'tools'
    missing = {
        name for name, (file, _) in command.TOOLS.items() if not (command.FOLDER / file).is_file()
    }
    assert not missing


def test_arguments_of_the_process_are_those_of_the_tool(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['mmpatch', 'convert', 'absent.pth', 'out.pth'])
    _, error = call(capsys)
    assert 'absent.pth does not exist' in error


@pytest.mark.parametrize(
    'arguments', [(), ('--help',), ('-h',), ('run', '--help'), ('env', '-h')], ids=' '.join
)
def test_help_lists_all_commands(capsys, arguments):
    out, error = call(capsys, *arguments)
    assert not error
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert names == [*command.TOOLS, 'run', 'env']


def test_wrong_name_gives_one_line_and_the_list(capsys):
    _, error = call(capsys, 'trian', 'config.py')
    first, *others = error.splitlines()
    assert first == "error: mmpatch has no command 'trian'"
    assert others == command.write_help().splitlines()


def test_environment_says_what_a_report_needs(capsys):
    out, error = call(capsys, 'env')
    found = dict(line.split(': ', 1) for line in out.splitlines() if 'INFO' not in line)
    assert not error
    assert found['mmpatch'] == f'{mmpatch.__version__} at {ROOT / "mmpatch"}'
    assert found['configs'].startswith(f'{len(mmpatch.list_configs())} in ')
    assert Path(found['configs'].split(' in ')[1]).resolve() == ROOT / 'configs'
    assert found['PyTorch'] == torch.__version__ and found['Python'].startswith(sys.version[:6])
    assert found['timm'] == f'{importlib.metadata.version("timm")} (timm)'
    assert {'numpy', 'mmengine', 'torchvision', 'gcc'} <= {name.lower() for name in found}
    assert {'mmcv', 'mmdet', 'mmseg', 'openvino', 'onnxruntime'} <= found.keys()
    assert f'{os.cpu_count()} cores' in found['CPU']
    assert found['threads'].startswith(f'{torch.get_num_threads()} of torch')


def test_environment_names_the_ops_of_mmcv(capsys, monkeypatch, tmp_path):
    pytest.importorskip('mmcv')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', stand_in)
    monkeypatch.setattr(stand_in, '__file__', str(command.ops.STAND_IN))
    ops = 'deform_conv, modulated_deform_conv, ms_deform_attn, nms, roi_align, '
    ops += 'sigmoid_focal_loss, softnms'
    assert f'ops of mmcv: torch and torchvision stand in for {ops}\n' in call(capsys, 'env')[0]
    file = tmp_path / '_ext.so'
    compiled = importlib.util.module_from_spec(importlib.util.spec_from_loader('mmcv._ext', None))
    compiled.__file__ = str(file)
    monkeypatch.setitem(sys.modules, 'mmcv._ext', compiled)
    assert f'ops of mmcv: compiled, {file}\n' in call(capsys, 'env')[0]


def test_missing_packages_are_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(command, 'PACKAGES', ('no_such_package',))
    assert 'no_such_package: not installed\n' in call(capsys, 'env')[0]


@pytest.mark.hosts
@pytest.mark.parametrize(
    ('host', 'tool'),
    [
        ('mmdet', 'test'),
        ('mmdet', 'analysis_tools/browse_dataset'),
        ('mmdet', 'confusion_matrix.py'),
        ('mmseg', 'tools/test.py'),
        ('mmseg', 'analysis_tools/get_flops'),
    ],
)
def test_tools_of_hosts_run(capsys, host, tool):
    """Without mmpatch all of these end in an error about mmcv._ext before they read arguments."""
    out, error = call(capsys, 'run', host, tool, '--help')
    assert not error and out.startswith(f'usage: mmpatch run {host} {Path(tool).stem} [-h]')


@pytest.mark.hosts
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], "'' is no host; usage: mmpatch run mmdet|mmseg TOOL ..."),
        (['mmpose', 'test'], "'mmpose' is no host; usage: mmpatch run mmdet|mmseg TOOL ..."),
        (
            ['mmdet', 'brows_dataset'],
            "mmdet has no tool 'brows_dataset'; did you mean analysis_tools/browse_dataset",
        ),
        (['mmdet', 'xyz'], "mmdet has no tool 'xyz'; it has\n  analysis_tools/analyze_logs\n"),
        (['mmseg'], "mmseg has no tool ''; it has\n  analysis_tools/"),
    ],
)
def test_wrong_tools_of_hosts_get_one_line(capsys, arguments, message):
    assert call(capsys, 'run', *arguments)[1].startswith(f'error: {message}')


def test_missing_host_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    _, error = call(capsys, 'run', 'mmseg', 'test')
    assert error == 'error: mmseg is not installed; pip install "mmpatch[seg]"'


@pytest.mark.hosts
def test_a_tool_of_a_host_reads_its_config(capsys, tmp_path, monkeypatch):
    """mmdet's print_config, on a config of ours that inherits by ``mmpatch::``."""
    config = tmp_path / 'mine.py'
    config.write_text("_base_ = 'mmpatch::poolformer/retinanet_poolformer-s12_fpn_1x_coco.py'\n")
    out, error = call(capsys, 'run', 'mmdet', 'print_config', config)
    assert not error and "type='mmpatch.PoolFormer'" in out
