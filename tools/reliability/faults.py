"""Trainings that are killed, stopped, or run out of disk, memory or numbers."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmpatch import config_path
from mmpatch.engine.storage import is_whole
from reliability.child import make_data, run_script
from reliability.report import Row

TOOLS = Path(__file__).parents[1]
EPOCHS = 4
#: A detector that trains for six iterations in an epoch, and keeps one checkpoint.
CONFIG = """
_base_ = '{base}'
model = dict(
    backbone=dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), neck=dict(in_channels=[16, 24, 32])
)
train_dataloader = dict(batch_size=2)
randomness = dict(seed=3)
train_cfg = dict(max_epochs={epochs}, val_interval=99)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=1))
custom_imports = dict(imports=['reliability.fault'])
"""
LAST = f'epoch_{EPOCHS}.pth'


@dataclass
class Training:
    """A training in a process of its own, with its work dir and what it prints."""

    folder: Path
    process: Any

    @property
    def text(self) -> str:
        """What was printed so far."""
        return (self.folder / 'printed').read_text()

    def wait(self, limit: float = 120) -> int:
        """Exit status, negative for a signal; killed after a limit in seconds."""
        self.process.join(limit)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        return self.process.exitcode

    def wait_for(self, text: str) -> None:
        """Wait until a text is printed, or the process has ended."""
        while text not in self.text and self.process.is_alive():
            time.sleep(0.01)


class Trainings:
    """Starts trainings of one config, with faults."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.count = folder, folder / 'toy/coco', 0
        self.context: Any = multiprocessing.get_context('forkserver')
        self.context.set_forkserver_preload(['mmpatch', 'mmdet.apis', 'mmdet.evaluation'])
        make_data(folder / 'toy', 12, 6)
        base = config_path('demo/retinanet_poolformer-nano_fpn_toy-coco.py')
        config = CONFIG.format(base=base, epochs=EPOCHS)
        (folder / 'config.py').write_text(config)

    def write_config(self, fault: dict[str, Any] | None) -> Path:
        """A config with a fault."""
        self.count += 1
        file = self.folder / f'config{self.count}.py'
        hooks = f"custom_hooks = [dict(type='Fault', **{fault})]" if fault else ''
        file.write_text(f"_base_ = 'config.py'\n{hooks}\n")
        return file

    def start(
        self, work_dir: Path, *more: str, fault: dict[str, Any] | None = None, **options: Any
    ) -> Training:
        """Start one; options are settings of the config, with _ for a dot in double."""
        options = {'data_root': self.data, **options}
        settings = [f'{key.replace("__", ".")}={value}' for key, value in options.items()]
        arguments = [str(self.write_config(fault)), '--work-dir', str(work_dir), *more]
        arguments += ['--cfg-options', *settings]
        folder = self.folder / f'run{self.count}'
        folder.mkdir()
        (folder / 'printed').touch()
        return Training(folder, self.launch(arguments, folder / 'printed'))

    def launch(self, arguments: list[str], log: Path) -> Any:
        """Start tools/train.py, which prints into a file."""
        work = [str(TOOLS / 'train.py'), *arguments], log
        process = self.context.Process(target=run_script, args=work)
        process.start()
        return process

    def is_complete(self, work_dir: Path, whole: Path) -> bool:
        """Whether a work dir has the last checkpoint, with the weights of another."""
        file = work_dir / LAST
        if not file.is_file():
            return False
        a, b = (torch.load(f, weights_only=True)['state_dict'] for f in (file, whole))
        return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)

    def goes_on(self, work_dir: Path, whole: Path) -> bool:
        """Resume a training; whether it then :meth:`is_complete`."""
        return not self.start(work_dir, '--resume').wait() and self.is_complete(work_dir, whole)


def check(folder: Path, is_long: bool) -> Iterator[Row]:
    """Break trainings; yields a row for each promise."""
    trainings, draw = Trainings(folder), random.Random(0)
    start = time.perf_counter()
    first = trainings.start(folder / 'whole')
    if first.wait():
        raise RuntimeError(f'a training without a fault failed: {first.text[-2000:]}')
    whole = folder / 'whole' / LAST
    print(f'faults: a training takes {time.perf_counter() - start:.0f} s', file=sys.stderr)
    yield check_kills(trainings, whole, draw, 10 if is_long else 2)
    yield check_writes(trainings, whole, draw, 10 if is_long else 1)
    yield check_signals(trainings, whole, draw, 8 if is_long else 1)
    yield check_ranks(trainings, folder / 'ranks')
    yield check_disk(trainings, whole, folder / 'disk')
    yield check_nan(trainings, folder / 'nan')
    yield check_messages(trainings, folder / 'messages')


def is_consistent(work_dir: Path) -> bool:
    """Whether last_checkpoint names a whole file, or there is none yet; no file is half."""
    note, files = work_dir / 'last_checkpoint', list(work_dir.glob('*.pth'))
    named = Path(note.read_text()) if note.is_file() else None
    return all(map(is_whole, files)) and (named in files if named else len(files) <= 1)


def check_kills(trainings: Trainings, whole: Path, draw: random.Random, tries: int) -> Row:
    """One training, killed again and again at moments after its first iteration."""
    work_dir, held = trainings.folder / 'killed', 0
    for _ in range(tries):
        training = trainings.start(work_dir, '--resume')
        training.wait_for('Epoch(train)')
        time.sleep(draw.random())
        training.process.kill()
        training.wait()
        held += is_consistent(work_dir)
    is_same = trainings.goes_on(work_dir, whole)
    return Row(
        'a kill loses no checkpoint, and --resume ends with the weights of an uninterrupted run',
        'SIGKILL at random moments, then --resume',
        tries + 1,
        held + is_same,
        'every file whole after each kill; weights equal at the end' if is_same else 'see log',
    )


def check_writes(trainings: Trainings, whole: Path, draw: random.Random, tries: int) -> Row:
    """Killed by the kernel inside the write of a checkpoint, after a random part of it."""
    held, size = 0, whole.stat().st_size
    for i in range(tries):
        work_dir = trainings.folder / f'write{i}'
        epoch = draw.randint(2, EPOCHS)
        limit = draw.randint(size // 10, size - 1)
        fault = {'at': 6 * epoch - 1, 'size': limit, 'is_killed': True}
        training = trainings.start(work_dir, fault=fault)
        is_killed = training.wait() == -signal.SIGXFSZ
        is_half = (work_dir / f'epoch_{epoch}.pth.part').stat().st_size == limit
        is_kept = [p.name for p in work_dir.glob('*.pth')] == [f'epoch_{epoch - 1}.pth']
        fine = is_killed and is_half and is_kept and is_consistent(work_dir)
        held += fine and trainings.goes_on(work_dir, whole)
        shutil.rmtree(work_dir)
    return Row(
        'a kill inside the write of a checkpoint leaves the one before',
        'killed by SIGXFSZ after a random number of bytes; max_keep_ckpts=1',
        tries,
        held,
        'resumed from the one before, weights equal at the end',
    )


def check_signals(trainings: Trainings, whole: Path, draw: random.Random, tries: int) -> Row:
    """A signal in a random iteration, with and without processes that load data."""
    held = 0
    for i in range(tries):
        work_dir = trainings.folder / f'signal{i}'
        number = (signal.SIGTERM, signal.SIGUSR1)[i % 2]
        fault = {'at': draw.randrange(6 * EPOCHS - 1), 'number': int(number)}
        status = trainings.start(work_dir, fault=fault).wait()
        fine = status == 128 + number and (work_dir / 'interrupted.pth').is_file()
        fine = fine and is_consistent(work_dir)
        held += fine and trainings.goes_on(work_dir, whole)
        shutil.rmtree(work_dir)
    return Row(
        'SIGTERM and SIGUSR1 end a run after the iteration; --resume goes on to the bit',
        'a signal in a random iteration',
        tries,
        held,
        'status 143 or 138; weights equal at the end',
    )


def check_ranks(trainings: Trainings, folder: Path) -> Row:
    """A signal to the second of two ranks, which both end."""

    def launch(fault: dict[str, Any] | None, work_dir: Path, *more: str) -> Any:
        words = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
        words += ['--nproc_per_node', '2', str(TOOLS / 'train.py')]
        words += [str(trainings.write_config(fault)), '--launcher', 'pytorch']
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        words += ['--work-dir', str(work_dir), *more, '--cfg-options', 'train_cfg.max_epochs=2']
        words += [f'data_root={trainings.data}']
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)

    launch(None, folder / 'whole')
    fault = {'at': 4, 'number': int(signal.SIGTERM), 'rank': 1}
    first = launch(fault, folder / 'stopped')
    fine = first.returncode and 'exitcode  : 143' in first.stderr
    fine = fine and 'SIGTERM: the state is in' in first.stdout + first.stderr
    fine = fine and not launch(None, folder / 'stopped', '--resume').returncode
    a, b = (
        torch.load(folder / name / 'epoch_2.pth', weights_only=True)['state_dict']
        for name in ('whole', 'stopped')
    )
    fine = fine and all(torch.equal(a[key], b[key]) for key in a)
    return Row(
        'a signal to one rank ends all after the same iteration; --resume goes on to the bit',
        'SIGTERM to rank 1 of 2, in the middle of an epoch (gloo)',
        1,
        int(bool(fine)),
        'status 143; weights equal at the end',
    )


def check_disk(trainings: Trainings, whole: Path, folder: Path) -> Row:
    """A file system on which the second checkpoint does not fit, until it is made larger."""
    folder.mkdir()
    size = f'size={int(1.6 * whole.stat().st_size)}'
    mount = ['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        return Row('a full disk loses no checkpoint', 'not tried: needs root', 0, 0, '-')
    try:
        training = trainings.start(folder / 'work')
        fine = training.wait() == 1
        line = training.text.strip().splitlines()[-1]
        fine = fine and line.startswith(f'error: {folder}/work/epoch_2.pth (')
        fine = fine and [p.name for p in folder.rglob('*.pth*')] == ['epoch_1.pth']
        fine = fine and is_consistent(folder / 'work')
        subprocess.run(['mount', '-o', 'remount,size=200m', str(folder)], check=True)
        fine = fine and trainings.goes_on(folder / 'work', whole)
    finally:
        subprocess.run(['umount', str(folder)], check=True)
    return Row(
        'a full disk ends in one line that names the file; no checkpoint is lost',
        'a tmpfs that the second checkpoint fills',
        1,
        int(fine),
        'the first is whole; resumed when there is space, weights equal at the end',
    )


def check_nan(trainings: Trainings, folder: Path) -> Row:
    """Gradients that are NaN three times in a row: stop, leave out, stop with the state saved."""
    held, fault = 0, {'at': 8, 'nan': 3}
    hook = "dict(type='mmpatch.CheckInvalidLossHook', patience={})"
    for patience, status, last in ((0, 1, 'epoch_1.pth'), (5, 0, LAST), (2, 1, 'interrupted.pth')):
        file = trainings.write_config(fault)
        text = file.read_text().replace('= [', f'= [{hook.format(patience)}, ')
        (trainings.folder / 'nan.py').write_text(text)
        work_dir = folder / str(patience)
        run = trainings.folder / f'nan{patience}'
        arguments = [str(trainings.folder / 'nan.py'), '--work-dir', str(work_dir)]
        arguments += ['--cfg-options', f'data_root={trainings.data}']
        process = trainings.launch(arguments, run)
        process.join(200)
        fine = process.exitcode == status and Path((work_dir / 'last_checkpoint').read_text()).name
        states = [torch.load(p, weights_only=True)['state_dict'] for p in work_dir.glob('*.pth')]
        finite = all(v.isfinite().all() for state in states for v in state.values())
        is_named = 'the gradient is not finite at iteration 9 (epoch 2): ' in run.read_text()
        held += bool(fine == last and finite and is_named and '.jpg' in run.read_text())
    return Row(
        'NaN never reaches the weights; the iteration and its files are named',
        'NaN gradients three times in a row, with patience 0, 5 and 2',
        3,
        held,
        'stopped; left out; stopped with the state saved',
    )


def check_messages(trainings: Trainings, folder: Path) -> Row:
    """What cannot go on ends in one line."""
    lost = 'toy2/coco/train2017/000000000003.jpg'
    shutil.copytree(trainings.folder / 'toy', trainings.folder / 'toy2')
    scale = {'train_dataloader__dataset__pipeline__2__scale': '(1440,1200)'}
    tries: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (
            {'worker': True},
            {'train_dataloader__num_workers': 1},
            'a process that loads data was killed',
        ),
        ({'memory': 10_000_000}, scale, 'out of memory: lower train_dataloader.batch_size'),
        (
            {'lost': str(trainings.folder / lost)},
            {'data_root': trainings.folder / 'toy2/coco'},
            f'the data pipeline failed on {trainings.folder / lost}',
        ),
    ]
    held = 0
    for i, (fault, options, message) in enumerate(tries):
        training = trainings.start(folder / str(i), fault={'at': 1, **fault}, **options)
        status = training.wait()
        lines = training.text.strip().splitlines()
        held += status == 1 and lines[-1].startswith(f'error: {message}')
    return Row(
        'what cannot go on ends in one line that says what helps',
        'a data process killed; memory limited; a picture removed in the epoch',
        len(tries),
        held,
        'status 1, one line each',
    )
