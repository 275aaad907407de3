"""Files of a run that are whole or not there, and a state to continue from, whatever ends it."""

import filecmp
import logging
import os
import re
import signal
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine import dist, fileio
from mmengine.config import Config
from mmengine.fileio.backends import LocalBackend
from mmengine.hooks import checkpoint_hook
from mmengine.logging import print_log
from mmengine.registry import VISBACKENDS
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.visualization.vis_backend import LocalVisBackend, force_init_env

from mmpatch.compat.weight_files import check_records, write_whole
from mmpatch.registry import HOOKS

#: File of the work dir with the state in the middle of an epoch, until the next checkpoint.
INTERRUPTED = 'interrupted.pth'


def keep_files_whole() -> None:
    """Make MMEngine write files whole, and go on where a log or a picture finds the disk full."""
    fileio.register_backend('local', WholeFileBackend, force=True, prefixes='')
    VISBACKENDS.register_module('LocalVisBackend', force=True, module=PatientVisBackend)
    logging.raiseExceptions = False  # a log file that is full would print tracebacks
    checkpoint_hook.open = _open_note


class WholeFileBackend(LocalBackend):
    """MMEngine's local files, written under another name and renamed once they are on the disk."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes.

        Raises:
            OSError: If they cannot be written; an older file of this name is still there.
        """
        path = Path(filepath)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, obj, sync=True, part=f'.part{dist.get_rank() or ""}')
        except OSError as error:
            raise OSError(
                f'{path} ({len(obj) / 1e6:.1f} MB) cannot be written: {error.strerror}. Older '
                'files are whole. Free space if the disk is full, or name another --work-dir; '
                '--resume continues'
            ) from error

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text as bytes: all ranks write the metrics of a test, into the same file."""
        self.put(obj.encode(encoding), filepath)


class PatientVisBackend(LocalVisBackend):
    """MMEngine's curves and pictures. Those that cannot be written cost a warning, not the run."""

    @force_init_env
    def add_image(self, name: str, image: Any, step: int = 0, **kwargs: Any) -> None:
        """Write a picture (H, W, 3), uint8, RGB."""
        data = cv2.imencode('.png', image[..., ::-1])[1].tobytes()
        self._try(fileio.put, data, os.path.join(self._img_save_dir, f'{name}_{step}.png'))

    def _dump(self, value_dict: dict[str, Any], file_path: str, file_format: str) -> None:
        size = os.path.getsize(file_path) if os.path.exists(file_path) else 0
        if not self._try(super()._dump, value_dict, file_path, file_format):
            os.truncate(file_path, size)  # no half line

    def _try(self, write: Callable[..., None], *args: Any) -> bool:
        try:
            write(*args)
        except OSError as error:  # MMEngine shows the same warning once
            text = f'curves or pictures in {self._save_dir} cannot be written and are left out: '
            print_log(f'{text}{error.__cause__ or error}', 'current', logging.WARNING)
            return False
        return True


def is_whole(file: Path) -> bool:
    """Whether a checkpoint was written to its end, and every checksum in it is right."""
    try:
        with zipfile.ZipFile(file) as archive:
            check_records(archive)
    except (OSError, zipfile.BadZipFile):
        return False
    return True


def find_resumption(cfg: Config) -> str | None:
    """Find what ``--resume`` without a path continues from: the last whole checkpoint.

    That is the one that ``last_checkpoint`` names, looked up in the work dir, which may have been
    moved or copied, and in ``out_dir``; else the one written last. Warns of missing and damaged
    ones, and if there is none, so that a first run can start with ``--resume`` as well.

    Raises:
        FileNotFoundError: If none is whole, but ``last_checkpoint`` names one; or if it is not
            clear which file that is: one in another folder, as after a run with another
            ``out_dir``, or one of several different files of this name.
    """
    folder, note = Path(cfg.work_dir), Path(cfg.work_dir, 'last_checkpoint')
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    named = note.read_text(errors='replace').strip() if note.is_file() else ''
    template, other = hook.get('filename_tmpl'), hook.get('out_dir')
    names = [re.sub('{.*?}', '*', template)] if template else ['epoch_*.pth', 'iter_*.pth']
    folders = [folder, *([Path(other, os.path.basename(os.path.abspath(folder)))] if other else [])]
    files = [p for where in folders for k in (*names, INTERRUPTED) for p in where.glob(k)]
    files = [p for p in files if p.is_file()]  # no link to one that is gone
    files.sort(key=os.path.getmtime, reverse=True)
    first = [file for where in folders if (file := where / Path(named).name).is_file()]
    there = [Path(named)] if os.path.isfile(named) else []
    if exact := [file for file in first if there and file.samefile(named)]:
        first = exact
    # Else the work dir was moved or copied. Another run may have taken its place, and a file in
    # the work dir may be older than out_dir. The right one is as the named one, if that is there.
    elif found := [file for file in dict.fromkeys([*first, *there]) if is_whole(file)]:
        last = found[-1]
        first = [f for f in found if f not in there and (f is last or filecmp.cmp(f, last, False))]
        if not first or (last not in there and len(first) < len(found)):
            ways = ' or '.join(f'--resume {file}' for file in found)
            what = 'but files of this name differ' if found[1:] else 'which is in another folder'
            raise FileNotFoundError(f'{note} names {named}, {what}; continue with {ways}')
        return str(first[0])
    elif named:
        text = f'{note} names {named}, which is gone or damaged; --resume takes the newest there is'
        print_log(text, logger='current', level=logging.WARNING)
    for file in dict.fromkeys([*first, *files]):
        if is_whole(file):
            return str(file)
        text = f'{file} is damaged, or was not written to its end; --resume leaves it out'
        print_log(text, logger='current', level=logging.WARNING)
    if named:
        raise FileNotFoundError(
            f'{note} names {named}, which does not exist or is damaged; continue with --resume '
            f'PATH. No other checkpoint in {folder} is whole'
        )
    text = f'--resume: {folder} has no checkpoint yet, so training starts from the beginning; '
    text += '--work-dir or --resume PATH name another one'
    print_log(text, logger='current', level=logging.WARNING)
    return None


def check_ranks(runner: Runner) -> None:
    """Check that all ranks start from the same iteration.

    Raises:
        ValueError: If not, as the work dirs of several machines are not one.
    """
    starts = dist.all_gather_object(runner.iter)
    if len(set(starts)) > 1:
        raise ValueError(
            f'the ranks resume from different iterations ({", ".join(map(str, starts))}): '
            f'{runner.work_dir} must be the same folder on all machines; or name a copy of the '
            'same file on each with --resume PATH'
        )


def load_to_train(runner: Runner, filename: str, *args: Any, **kwargs: Any) -> Any:
    """Load what a training starts from: a whole state to resume, or at least every backbone weight.

    Raises:
        ValueError: If the file does not have that.
    """
    if not runner._resume:
        return load_strictly(runner, filename, *args, part='backbone', **kwargs)
    checkpoint = load_strictly(runner, filename, *args, **kwargs)
    if 'iter' not in checkpoint.get('meta', ()) or 'message_hub' not in checkpoint:
        raise ValueError(
            f'{filename} holds weights, and no state to resume; start from them with '
            f'--cfg-options load_from={filename}'
        )
    if 'param_schedulers' not in checkpoint and runner.param_schedulers:
        raise ValueError(
            f'{filename} has no state of the schedule (save_param_scheduler=False?), so that '
            'learning rates would be wrong; start from its weights with --cfg-options '
            f'load_from={filename}'
        )
    if 'optimizer' not in checkpoint:
        text = f'{filename} has no state of the optimizer, which starts anew; save_optimizer=False?'
        print_log(text, logger='current', level=logging.WARNING)
    return checkpoint


def load_strictly(runner: Runner, filename: str, *args: Any, part: str = '', **kwargs: Any) -> Any:
    """Load a checkpoint as ``Runner.load_checkpoint`` does, but every tensor of the model.

    Tensors of the file that the model does not have are left out, and MMEngine's warning lists
    them: those of the neck, say, if an exported file takes its place.

    Args:
        runner: Whose model is loaded.
        filename: What MMEngine loads.
        part: The part of the model whose tensors must be there, wherever the model has it, except
            for output norms, which belong to ``out_indices``; all of the model if empty.
        *args: Of MMEngine.
        **kwargs: Of MMEngine.

    Raises:
        ValueError: If one of these tensors is missing or has another shape.
    """
    try:
        return Runner.load_checkpoint(runner, filename, *args, **{**kwargs, 'strict': True})
    except RuntimeError as error:
        start, _, lines = str(error).partition('\n')
        if not start.startswith('The model and loaded state dict do not match'):
            raise
        reasons = []
        for line in filter(None, lines.splitlines()):
            kind, _, names = line.partition(' in source state_dict: ')
            if kind == 'missing keys':
                reasons += [f'no {name}' for name in names.split(', ')]
            elif kind != 'unexpected key':
                reasons.append(line)
        # Swin and others call their output norms norm0 to norm3. MSCAN, which has no out_indices,
        # has norms of these names between its stages.
        parts = [m for n, m in runner.model.named_modules() if n.split('.')[-1] == part]
        is_chosen = any(hasattr(module, 'out_indices') for module in parts)
        norms = r'(out_norms|norm\d)\.' if is_chosen else r'out_norms\.'
        needed = rf'[ ".]{part}\.(?!{norms})' if part else ''
        if reasons := [line for line in reasons if re.search(needed, line)]:
            what = textwrap.shorten('; '.join(reasons), 300, placeholder=' ...')
            way = 'It takes what tools/train.py wrote with the same config and classes'
            if part:
                way = f'load_from takes a model with the same {part}. Weights of a {part} alone '
                way += f"go into model.{part}.init_cfg=dict(type='Pretrained', checkpoint=...)"
            raise ValueError(f'{filename} does not fit the config: {what}. {way}') from error
        return Runner.load_checkpoint(runner, filename, *args, **kwargs)


@contextmanager
def _open_note(path: str, mode: str) -> Iterator[StringIO]:
    """Write the only file that MMEngine's hook opens itself: ``last_checkpoint``."""
    yield (text := StringIO())
    fileio.put(text.getvalue().encode(), path)


def save_interrupted(runner: Runner) -> str:
    """Save the state after the running iteration, for ``--resume``; returns the path."""
    path = os.path.join(runner.work_dir, INTERRUPTED)
    runner.save_checkpoint(runner.work_dir, INTERRUPTED, by_epoch=False)
    if dist.is_main_process():
        fileio.put(path.encode(), os.path.join(runner.work_dir, 'last_checkpoint'))
    dist.barrier()  # torchrun ends all processes when the first of them ends
    return path


@HOOKS.register_module()
class CheckpointHook(checkpoint_hook.CheckpointHook):
    """MMEngine's hook of this name, which loses nothing when a run is ended.

    An older checkpoint is removed when the newer one is whole, which takes space for one more. At
    SIGTERM or SIGUSR1, which Slurm can send ahead of its time limit, all ranks finish the running
    iteration or validation, save ``interrupted.pth`` and exit with 128 plus the number of the
    signal (143 for SIGTERM). A run that is resumed in the middle of an epoch reads the batches it
    has seen and leaves them out, so that it equals an uninterrupted one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.signal, self.file_backend = 0, WholeFileBackend()
        for number in (signal.SIGTERM, signal.SIGUSR1):
            # Slurm sends it to the processes that load data, too. They start later and inherit
            # this, so that they live as long as the iteration.
            signal.signal(number, lambda number, frame: setattr(self, 'signal', number))

    def before_train_epoch(self, runner: Runner) -> None:
        """Leave out the batches of this epoch that an interrupted run has seen."""
        hub, loop = runner.message_hub, runner.train_loop
        epoch, begin = hub.get_info('epoch_begin', (0, runner.iter))
        done = runner.iter - begin if epoch == runner.epoch else 0
        hub.update_info('epoch_begin', (runner.epoch, runner.iter - done))
        vars(loop).pop('run_iter', None)  # of the epoch before
        if done and isinstance(loop, EpochBasedTrainLoop):
            runner.logger.info(f'Leaving out {done} batches that have been trained on')
            run = loop.run_iter
            loop.run_iter = lambda idx, batch: run(idx, batch) if idx >= done else None

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save if it is time, and end the run if any rank was told to.

        Raises:
            SystemExit: At a signal, but not after the last iteration.
        """
        super().after_train_iter(runner, *args, **kwargs)
        number = torch.tensor(self.signal, device=dist.get_comm_device())
        dist.all_reduce(number, 'max')
        is_last = runner.iter + 1 == runner.max_iters
        # gradients that are being accumulated are in no checkpoint
        if number and not is_last and runner.optim_wrapper.should_update():
            path, name = save_interrupted(runner), signal.Signals(int(number)).name
            runner.logger.info(f'{name}: the state is in {path}, from which --resume continues')
            sys.exit(128 + int(number))

    def _save_checkpoint_with_step(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        with self._removing_last(runner):
            self.file_backend.remove(os.path.join(runner.work_dir, INTERRUPTED))
            super()._save_checkpoint_with_step(runner, *args, **kwargs)

    def _save_best_checkpoint(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        with self._removing_last(runner):
            super()._save_best_checkpoint(runner, *args, **kwargs)

    @contextmanager
    def _removing_last(self, runner: Runner) -> Iterator[None]:
        """Put off what MMEngine removes before it writes until that is written."""
        outdated: list[str] = []
        backend, self.file_backend = self.file_backend, copy(self.file_backend)
        self.file_backend.remove = outdated.append
        yield
        self.file_backend = backend
        best = [v for k, v in runner.message_hub.runtime_info.items() if k.startswith('best_ckpt')]
        for path in outdated if dist.is_main_process() else ():
            if path not in best and backend.isfile(path):
                backend.remove(path)
