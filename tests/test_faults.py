"""Training that is ended or hindered from outside: signals, full disks, lost processes, NaN.

Trainings are processes. A hook in their config sends real signals and sets limits.
"""

import json
import os
import re
import resource
import shutil
import signal
import traceback
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import mmengine
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mmpatch
from mmpatch.compat.weight_files import write_whole
from mmpatch.engine.storage import check_ranks, find_resumption, keep_files_whole

from support import IS_FORK, run_on_two_ranks, try_tool

pytestmark = pytest.mark.hosts

#: Two configs; tools/reliability/fault.py has the hook that causes the faults.
SMALL = """
_base_ = '{base}'
model = dict(backbone=dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), neck=dict({neck}))
train_dataloader = dict(batch_size=2)
randomness = dict(seed=3)
default_hooks = dict(logger=dict(interval=1))
custom_imports = dict(imports=['reliability.fault'])
"""


@pytest.fixture(scope='module')
def project(toy, tmp_path_factory):
    """A detector and a segmentor that train for six iterations in an epoch, and their data."""
    import mmdet.utils
    import mmseg.utils

    mmdet.utils.register_all_modules(init_default_scope=False)
    mmseg.utils.register_all_modules(init_default_scope=False)
    folder = tmp_path_factory.mktemp('faults')
    for name, config, neck in (
        ('detector', 'demo/retinanet_poolformer-nano_fpn_toy-coco.py', 'in_channels=[16, 24, 32]'),
        ('segmentor', 'demo/fpn_poolformer-nano_toy-ade20k.py', 'in_channels=[8, 16, 24, 32]'),
    ):
        Config.fromfile(mmpatch.config_path(config)).dump(folder / f'{name}_base.py')
        (folder / f'{name}.py').write_text(SMALL.format(base=f'{name}_base.py', neck=neck))
    (folder / 'data').symlink_to(toy)
    return folder


@pytest.fixture
def user(project, tmp_path):
    """A copy of the project, to work in."""
    folder = tmp_path / 'user'
    shutil.copytree(project, folder, symlinks=True)
    return folder


def train(folder, name, *more, fault=None, work_dir='out', **settings):
    """Train in a process of its own.

    Returns:
        Exit status, negative for a signal, and what was printed.
    """
    data = {'detector': 'data/coco', 'segmentor': 'data/ade'}[name]
    settings = {'data_root': data, **settings}
    hooks = f"custom_hooks = [dict(type='Fault', **{fault})]" if fault else ''
    (folder / 'config.py').write_text(f"_base_ = '{name}.py'\n{hooks}\n")
    options = [f'{key}={value}'.replace(' ', '') for key, value in settings.items()]
    arguments = ['config.py', '--work-dir', work_dir, *more, '--cfg-options', *options]
    command = ['tools/train.py', *arguments]
    return try_tool(*command, cwd=folder, env={'MMPATCH_KEEP_HEAP': '0'})


def weights(file):
    return torch.load(file, weights_only=True)['state_dict']


def same(file, other):
    a, b = weights(file), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


#: Settings of short trainings: twice six iterations, and six of them.
EPOCHS = {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 9}
ITERATIONS = {'train_cfg.max_iters': 6, 'train_cfg.val_interval': 9}
LAST = {'detector': (EPOCHS, 'epoch_2.pth'), 'segmentor': (ITERATIONS, 'iter_6.pth')}


@pytest.fixture(scope='module')
def whole(project, tmp_path_factory):
    """The last checkpoints of trainings that nothing interrupts."""
    found = {}
    for name, (settings, last) in LAST.items():
        folder = tmp_path_factory.mktemp('whole') / 'user'
        shutil.copytree(project, folder, symlinks=True)
        status, text = train(folder, name, **settings)
        assert not status, text
        found[name] = folder / 'out' / last
    return found


@pytest.mark.parametrize(
    ('name', 'at', 'number'),
    [('detector', 7, 'SIGTERM'), ('detector', 5, 'SIGUSR1'), ('segmentor', 3, 'SIGTERM')],
    ids=['in an epoch', 'at the end of an epoch', 'by iteration'],
)
def test_a_signal_ends_the_iteration_and_resuming_equals_going_on(user, whole, name, at, number):
    settings, last = LAST[name]
    fault = {'at': at, 'number': int(signal.Signals[number])}
    status, text = train(user, name, fault=fault, **settings)
    file = user / 'out/interrupted.pth'
    assert status == 128 + fault['number'], text
    assert text.strip().endswith(f'{number}: the state is in {file}, from which --resume continues')
    assert (user / 'out/last_checkpoint').read_text() == str(file)
    assert torch.load(file, weights_only=True)['meta']['iter'] == at + 1
    shutil.move(user / 'out', user / 'moved')
    status, text = train(user, name, '--resume', work_dir='moved', **settings)
    assert not status, text
    if name == 'detector' or not IS_FORK:  # which augments anew in loops by iteration
        assert same(user / 'moved' / last, whole[name]), text
    assert (user / 'moved/last_checkpoint').read_text() == str(user / 'moved' / last)
    assert not (user / 'moved/interrupted.pth').exists()


#: More than any log of these trainings takes, less than a checkpoint.
SIZE = 50_000
ONE = {'default_hooks.checkpoint.max_keep_ckpts': 1}


def test_a_process_killed_in_the_second_write_leaves_the_first_file(user):
    status, text = train(
        user, 'detector', fault={'at': 6, 'size': SIZE, 'is_killed': True}, **EPOCHS, **ONE
    )
    assert status == -signal.SIGXFSZ, text
    assert (user / 'out/last_checkpoint').read_text() == f'{user}/out/epoch_1.pth'
    assert [file.name for file in (user / 'out').glob('*.pth')] == ['epoch_1.pth']
    assert (user / 'out/epoch_2.pth.part').stat().st_size == SIZE
    status, text = train(user, 'detector', '--resume', **EPOCHS, **ONE)
    assert not status and 'resumed epoch: 1' in text, text
    files = sorted(file.name for file in (user / 'out').iterdir() if file.is_file())
    assert files == ['config.py', 'epoch_2.pth', 'last_checkpoint']


class Rising(BaseMetric):
    """A metric that rises with every evaluation, and then finds the disk full."""

    count = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.count += 1
        if self.count == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
        return {'score': self.count}


class Line(BaseModel):
    """The smallest model."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x, mode):
        loss = self.linear(x).square().mean()
        return {'loss': loss} if mode == 'loss' else [loss]


def make_runner(folder, **settings):
    """A runner of MMEngine with what the tools add to it: two epochs of four iterations."""
    loader = DataLoader(TensorDataset(torch.ones(4, 1)))
    saving = {'type': 'mmpatch.CheckpointHook', 'interval': 1, **settings.pop('checkpoint', {})}
    return Runner(
        **{'model': Line(), 'work_dir': str(folder), 'train_dataloader': loader, **settings},
        train_cfg={'by_epoch': True, 'max_epochs': 2},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
        default_hooks={'checkpoint': saving},
        experiment_name=uuid4().hex,  # MMEngine shares what is of one name and second
        log_level='ERROR',
    )


def in_child(function):
    """Exit status of a copy of this process that runs a function; 70 after an exception."""
    child = os.fork()
    if not child:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_best_checkpoint_stays_until_the_better_one_is_whole(tmp_path):
    def evaluate():
        keep_files_whole()
        val = {'val_dataloader': DataLoader(TensorDataset(torch.ones(1, 1))), 'val_cfg': {}}
        saving = {'interval': 9, 'save_last': False, 'save_best': 'score', 'rule': 'greater'}
        runner = make_runner(
            tmp_path, val_evaluator=Evaluator([Rising()]), checkpoint=saving, **val
        )
        with pytest.raises(OSError, match=r'best_score_epoch_2\.pth .* cannot be written'):
            runner.train()

    assert in_child(evaluate) == 0
    assert [file.name for file in tmp_path.glob('*.pth*')] == ['best_score_epoch_1.pth']
    assert weights(tmp_path / 'best_score_epoch_1.pth')


@pytest.mark.process
def test_ranks_that_write_the_same_file_leave_one_of_their_texts(tmp_path):
    """As MMEngine's ranks do with the metrics of a test."""

    def write(rank):
        keep_files_whole()
        return [write_in_turn(rank, tmp_path / f'{i}.json') for i in range(100)]

    def write_in_turn(rank, file):
        torch.distributed.barrier()
        mmengine.dump({'mIoU': 50.0, 'time': 0.25 if rank else 1 / 3}, file)
        torch.distributed.barrier()
        return mmengine.load(file)['mIoU']

    assert run_on_two_ranks(write, tmp_path) == ([50.0] * 100,) * 2
    assert not list(tmp_path.glob('*.part*'))


def test_a_full_disk_ends_with_the_name_of_the_file(user):
    status, text = train(user, 'detector', fault={'at': 6, 'size': SIZE}, **EPOCHS, **ONE)
    assert status == 1 and 'Traceback' not in text, text
    line = text.strip().splitlines()[-1]
    assert line.startswith(f'error: {user}/out/epoch_2.pth (') and '--resume continues' in line, (
        line
    )
    assert [file.name for file in (user / 'out').glob('*.pth*')] == ['epoch_1.pth']
    assert (user / 'out/last_checkpoint').read_text() == f'{user}/out/epoch_1.pth'


def test_a_full_disk_costs_logs_and_pictures_but_not_the_training(user):
    draw = {'default_hooks.visualization.draw': True, 'default_hooks.visualization.interval': 1}
    never = {'default_hooks.checkpoint.interval': 9, 'default_hooks.checkpoint.save_last': False}
    fault = {'at': 2, 'size': 700}
    status, text = train(
        user, 'detector', fault=fault, **{'train_cfg.max_epochs': 1}, **draw, **never
    )
    assert not status and 'Traceback' not in text and 'Epoch(val) [1][1/1]' in text, text
    assert text.count('cannot be written and are left out: [Errno 27] File too large') == 1, text
    scalars = next((user / 'out').glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert 2 <= len(scalars) < 6 and all(json.loads(line) for line in scalars)
    assert not list((user / 'out').rglob('*.png*'))


NOTES = [None, '', 'out/epoch_3.pth', 'old/place/epoch_2.pth', 'epoch_9', 'copied/epoch_2.pth']


@pytest.mark.parametrize('note', NOTES)
def test_resumption_finds_the_last_whole_checkpoint(tmp_path, monkeypatch, caplog, note):
    monkeypatch.chdir(tmp_path)
    folder = Path('out')
    folder.mkdir()
    for i, name in enumerate(('epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'best_mIoU_iter_4.pth')):
        torch.save({'state_dict': {'a': torch.ones(999)}}, folder / name)
        os.utime(folder / name, (i, i))
    (folder / 'epoch_3.pth').write_bytes((folder / 'epoch_3.pth').read_bytes()[:-900])
    if note is not None:
        (folder / 'last_checkpoint').write_text(note)
    if note == 'copied/epoch_2.pth':  # of which this is a copy
        shutil.copytree('out', 'copied')
    cfg = Config({'work_dir': 'out'})
    lines = []
    target = 'mmpatch.engine.storage.print_log'
    monkeypatch.setattr(target, lambda text, **kwargs: lines.append(text))
    assert find_resumption(cfg) == 'out/epoch_2.pth'
    damaged = 'out/epoch_3.pth is damaged, or was not written to its end; --resume leaves it out'
    missing = 'names epoch_9, which is gone or damaged; --resume takes the newest there is'
    expected = [] if str(note).endswith('epoch_2.pth') else [damaged]
    assert lines == [f'out/last_checkpoint {missing}'] * (note == 'epoch_9') + expected


def test_resumption_does_not_go_back_behind_a_checkpoint_elsewhere(tmp_path, monkeypatch):
    """A run may have written to another folder (``out_dir``)."""
    monkeypatch.chdir(tmp_path)
    for name in ('out/epoch_1.pth', 'elsewhere/epoch_3.pth'):
        Path(name).parent.mkdir()
        torch.save({'a': torch.ones(9)}, name)
    Path('out/last_checkpoint').write_text('elsewhere/epoch_3.pth')
    message = 'names elsewhere/epoch_3.pth, .* another folder; .* --resume elsewhere/epoch_3.pth$'
    with pytest.raises(FileNotFoundError, match=message):
        find_resumption(Config({'work_dir': 'out'}))


def test_resumption_does_not_take_an_older_file_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value, name in enumerate(('out/epoch_1.pth', 'large/out/epoch_1.pth')):
        Path(name).parent.mkdir(parents=True)
        torch.save({'a': torch.full((9,), value)}, name)
    Path('out/last_checkpoint').write_text('large/out/epoch_1.pth')
    cfg = Config({'work_dir': 'out', 'default_hooks': {'checkpoint': {'out_dir': 'large'}}})
    assert find_resumption(cfg) == 'large/out/epoch_1.pth'
    for name in ('out', 'large'):  # a copy of all: the right one is as the one that is named
        shutil.copytree(name, f'copy/{name}')
    copy = {'work_dir': 'copy/out', 'default_hooks': {'checkpoint': {'out_dir': 'copy/large'}}}
    assert find_resumption(Config(copy)) == 'copy/large/out/epoch_1.pth'
    message = 'names large/out/epoch_1.pth, but files of this name differ; '
    message += 'continue with --resume {}/epoch_1.pth or --resume large/out/epoch_1.pth'
    with pytest.raises(FileNotFoundError, match=re.escape(message.format('out'))):
        find_resumption(Config({'work_dir': 'out'}))
    Path('out').rename('renamed')
    cfg.work_dir = 'renamed'
    with pytest.raises(FileNotFoundError, match=re.escape(message.format('renamed'))):
        find_resumption(cfg)
    Path('large/out').rename('large/renamed')  # so that the named one is gone
    with pytest.raises(FileNotFoundError, match='renamed/epoch_1.pth or --resume large/renamed/e'):
        find_resumption(cfg)


@pytest.mark.parametrize('place', ['renamed', 'moved/out'])
def test_resumption_in_a_work_dir_whose_place_another_run_has_taken(place, tmp_path, monkeypatch):
    """Times do not tell which is the right one: copies can have others."""
    monkeypatch.chdir(tmp_path)
    for value in range(2):
        Path('out').mkdir()
        torch.save({'a': torch.full((9,), value)}, 'out/epoch_1.pth')
        if not value:
            Path('out/last_checkpoint').write_text(f'{tmp_path}/out/epoch_1.pth')
            shutil.copytree('out', place)
            Path(place, 'epoch_0.pth').symlink_to('gone')
            os.utime(f'{place}/epoch_1.pth', (10, 10))  # the same bytes as those of the original
            assert find_resumption(Config({'work_dir': place})) == f'{place}/epoch_1.pth'
            shutil.rmtree('out')
            assert find_resumption(Config({'work_dir': place})) == f'{place}/epoch_1.pth'
    message = f'--resume {place}/epoch_1.pth or --resume {tmp_path}/out/epoch_1.pth'
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        find_resumption(Config({'work_dir': place}))
    Path('out/epoch_1.pth').write_bytes(b'damaged')
    assert find_resumption(Config({'work_dir': place})) == f'{place}/epoch_1.pth'


def test_resumption_through_a_link(tmp_path, monkeypatch):
    """MMEngine names the folder in ``out_dir`` as the link is named."""
    monkeypatch.chdir(tmp_path)
    Path('real').mkdir()
    Path('link').symlink_to('real')
    Path('large/link').mkdir(parents=True)
    torch.save({'a': torch.ones(9)}, 'large/link/epoch_1.pth')
    Path('link/last_checkpoint').write_text('large/link/epoch_1.pth')
    cfg = Config({'work_dir': 'link', 'default_hooks': {'checkpoint': {'out_dir': 'large'}}})
    assert find_resumption(cfg) == 'large/link/epoch_1.pth'


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe, link = tmp_path / 'pipe', tmp_path / 'link.json'
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(link, b'1')
    assert pipe.is_fifo() and os.read(reader, 9) == b'1'
    os.close(reader)
    reader, writer = os.pipe()
    write_whole(Path(f'/dev/fd/{writer}'), b'2')
    os.close(writer)
    assert os.read(reader, 9) == b'2'
    os.close(reader)


def test_resumption_looks_where_the_hook_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hook = {'filename_tmpl': 'state-{}.pth', 'out_dir': 'large'}
    cfg = Config({'work_dir': 'out', 'default_hooks': {'checkpoint': hook}})
    Path('large/out').mkdir(parents=True)
    for i, name in enumerate(('state-1.pth', 'state-2.pth', 'epoch_3.pth')):
        torch.save({'a': torch.ones(9)}, f'large/out/{name}')
        os.utime(f'large/out/{name}', (i, i))
    assert find_resumption(cfg) == 'large/out/state-2.pth'


def test_a_first_run_with_resume_starts_from_load_from(user, whole):
    settings = {**EPOCHS, 'train_cfg.max_epochs': 1, 'load_from': whole['detector']}
    status, text = train(user, 'detector', '--resume', **settings)
    assert not status and 'has no checkpoint yet' in text, text
    assert f'Load checkpoint from {whole["detector"]}' in text


def test_ranks_that_would_resume_from_different_states_stop(tmp_path):
    def check(rank):
        with pytest.raises(ValueError) as error:
            check_ranks(SimpleNamespace(iter=50 * rank, work_dir='out'))
        return str(error.value)

    first, second = run_on_two_ranks(check, tmp_path)
    assert first == second
    assert 'resume from different iterations (0, 50): out must be the same folder' in first


@pytest.mark.parametrize(
    ('settings', 'fault', 'message'),
    [
        (
            {'train_dataloader.num_workers': 1},
            {'at': 1, 'worker': True},
            'a process that loads data was killed, .*num_workers; --resume .*Killed',
        ),
        (
            {'train_dataloader.dataset.pipeline.2.scale': '(1440,1200)'},
            {'at': 0, 'memory': 10_000_000},
            'out of memory: lower train_dataloader.batch_size .*with_cp=True.*--amp.*allocate',
        ),
    ],
    ids=['worker killed', 'out of memory'],
)
def test_a_shortage_ends_in_one_line(user, settings, fault, message):
    status, text = train(user, 'detector', fault=fault, **EPOCHS, **settings)
    line = text.strip().splitlines()[-1]
    assert status == 1 and re.match(f'error: {message}', line), text
