"""mmpatch installed from its wheel and used from another folder, without the source tree."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from support import ROOT

pytestmark = [pytest.mark.hosts, pytest.mark.process]
CONFIG = 'poolformer/retinanet_poolformer-s12_fpn_1x_coco.py'
#: Settings that make the config small and the training short.
OVERRIDES = """
norm_cfg = dict(type='GN', num_groups=4)
model = dict(
    backbone=dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), init_cfg=None),
    neck=dict(in_channels=[16, 24, 32], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
)
data_root = {data!r}
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    sampler=dict(_delete_=True, type='InfiniteSampler'), batch_sampler=None,
    dataset=dict(data_root=data_root),
)
val_dataloader = val_cfg = val_evaluator = None
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1)
param_scheduler = []
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1))
"""


def run(*command, cwd):
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    result = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**env, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert not result.returncode, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the tracked files, so that the source tree stays clean."""
    folder = tmp_path_factory.mktemp('wheel')
    names = run('git', 'ls-files', '--cached', '--others', '--exclude-standard', cwd=ROOT).split(
        '\n'
    )
    for name in filter(None, names):
        target = folder / 'source' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    command = (sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', folder)
    run(*command, cwd=folder / 'source')
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    """Interpreter of a fresh environment that has the wheel and shares all other packages."""
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob('lib/python*/site-packages'))
    shared = Path(sysconfig.get_path('purelib'))
    lines = [str(shared)]
    # setuptools provides distutils, which Python 3.12 lacks, through this file
    lines += [file.read_text() for file in shared.glob('distutils-precedence.pth')]
    (site / 'shared.pth').write_text('\n'.join(lines))
    python = folder / 'bin/python'
    pip = (sys.executable, '-m', 'pip', '--python', python, 'install', '--no-index', '--no-deps')
    run(*pip, f'{wheel}[det,seg]', cwd=folder)  # as docs/install.md writes it
    return python


def test_wheel_contains_configs_tools_index_and_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {
        file.relative_to(ROOT).as_posix()
        for suffix in ('py', 'yml', 'md')
        for file in (ROOT / 'configs').rglob(f'*.{suffix}')
    }
    tools = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'tools').rglob('*.[ps][yh]')}
    assert 'tools/dist_train.sh' in tools
    for name in configs | tools | {'model-index.yml'}:
        assert f'mmpatch/.mim/{name}' in names, name
    assert [name for name in names if name.endswith('.dist-info/licenses/LICENSE')]
    assert not [name for name in names if name.startswith(('configs', 'tools', 'tests'))]


def test_import_finds_the_wheel_not_the_source_tree(python, tmp_path):
    code = 'import mmpatch; print(mmpatch.__file__, len(mmpatch.list_configs()))'
    path, count = run(python, '-c', code, cwd=tmp_path).strip().splitlines()[-1].split()
    assert Path(path).is_relative_to(python.parents[1]) and int(count) > 28


def test_command_of_the_wheel(python, tmp_path):
    command = python.with_name('mmpatch')
    report = run(command, 'env', cwd=tmp_path).splitlines()
    (line,) = [line for line in report if line.startswith('mmpatch: ')]
    assert Path(line.split(' at ')[1]).is_relative_to(python.parents[1])
    assert run(command, 'train', '--help', cwd=tmp_path).startswith('usage: mmpatch train [-h]')


@pytest.mark.parametrize('tool', ['mmpatch', 'mmdet'])
def test_outside_project_inherits_and_trains(python, toy, tmp_path, tool):
    """``mmpatch::`` with mmpatch's train.py; ``config_path`` with mmdet's, unchanged."""
    base = {
        'mmpatch': f"'mmpatch::{CONFIG}'",
        'mmdet': f"[__import__('mmpatch').config_path({CONFIG!r})]",
    }[tool]
    text = f'_base_ = {base}\n' + OVERRIDES.format(data=f'{toy}/coco/')
    (tmp_path / 'mine.py').write_text(text)
    code = f'import importlib.util as i; print(i.find_spec({tool!r}).origin)'  # imports nothing
    train = Path(run(python, '-c', code, cwd=tmp_path).strip()).parent / '.mim/tools/train.py'
    run(python, train, 'mine.py', '--work-dir', 'out', cwd=tmp_path)
    assert (tmp_path / 'out/iter_1.pth').is_file()
