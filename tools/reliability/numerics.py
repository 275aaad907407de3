"""Long trainings in bfloat16 on a CPU, and runs that must end in the same bits."""

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import mmpatch
from reliability.child import make_data, read_log, run_tool
from reliability.report import Row

CONFIG = 'demo/retinanet_poolformer-nano_fpn_toy-coco.py'
BATCH = 4
PRECISIONS: dict[str, list[str]] = {'bfloat16': ['--amp'], 'float32': []}


def check(folder: Path, is_long: bool) -> Iterator[Row]:
    """Train the demo's detector in both precisions, 2,000 iterations if asked, and repeat runs.

    Args:
        folder: Empty folder to work in.
        is_long: Whether to take the longer form.
    """
    make_data(folder / 'toy', 100 * BATCH if is_long else 20 * BATCH, 20)
    few = f'train_dataloader.dataset.indices={20 * BATCH}'
    logs = {key: train(folder, key, key, 3, 60, few) for key in PRECISIONS}
    lines = train(folder, 'long', 'bfloat16', 20, 2000) if is_long else logs['bfloat16']
    losses, part = [line['loss'] for line in lines], len(lines) // 10
    first, last = mean(losses[:part]), mean(losses[-part:])
    what = f'{len(lines)} iterations of the toy detector with --amp on a CPU'
    finite = sum(map(math.isfinite, losses))
    yield Row('no loss in bfloat16 is NaN or infinite', what, len(lines), finite, 'none was')
    result = f'mean of {part} losses: {first:.3f} at first, {last:.3f} at last'
    yield Row('the loss in bfloat16 falls', what, 1, int(last < 0.9 * first), result)
    half, full = ([line['loss'] for line in lines[-20:]] for lines in logs.values())
    seconds = [mean(line['time'] for line in lines[10:]) for lines in logs.values()]
    yield Row(
        'bfloat16 learns as float32 does',
        '60 iterations of each; the last 20 losses differ by 5 % at most',
        1,
        int(abs(mean(half) / mean(full) - 1) < 0.05),
        f'{mean(half):.3f} and {mean(full):.3f} in float32; {seconds[0]:.2f} s and '
        f'{seconds[1]:.2f} s an iteration',
    )
    for precision in PRECISIONS if is_long else ('bfloat16',):
        yield repeat(folder, precision)


def train(
    folder: Path,
    name: str,
    precision: str,
    epochs: int,
    iterations: int,
    *options: str,
    more: Any = (),
) -> list[dict[str, Any]]:
    """Train in the folder ``name``; return what was logged of each iteration.

    Args:
        folder: Of the data and of all runs.
        name: Of this run.
        precision: One of :data:`PRECISIONS`.
        epochs: How many.
        iterations: Of all epochs.
        options: Further settings.
        more: Further arguments of tools/train.py.
    """
    settings = [
        f'data_root={folder}/toy/coco',
        *options,
        f'train_cfg.max_epochs={epochs}',
        f'train_cfg.val_interval={epochs}',
        f'param_scheduler.1.end={epochs}',
        f'default_hooks.checkpoint.interval={max(epochs // 2, 1)}',
        'default_hooks.logger.interval=1',
        'randomness.seed=0',
    ]
    words = [*PRECISIONS[precision], *more, '--work-dir', folder / name, '--cfg-options', *settings]

    def count() -> int:
        return max((line.get('step', 0) for line in read_log(folder / name)), default=0)

    config, log = mmpatch.config_path(CONFIG), folder / f'{name}.log'
    run_tool('train', config, *words, log=log, count=count, total=iterations)
    return [line for line in read_log(folder / name) if 'loss' in line]


def repeat(folder: Path, precision: str) -> Row:
    """Train two epochs twice with the same seed, and the second one again from the first."""
    options = [
        'train_dataloader.num_workers=2',
        'train_dataloader.dataset.indices=24',
        'model.backbone.drop_path_rate=0.3',
    ]
    runs = {name: f'{precision}-{name}' for name in ('once', 'again', 'resumed')}
    for name, run in runs.items():
        more = ['--resume', folder / runs['once'] / 'epoch_1.pth'] if name == 'resumed' else []
        train(folder, run, precision, 2, 2 * 24 // BATCH, *options, more=more)
    once, *others = (
        torch.load(folder / run / 'epoch_2.pth', weights_only=False) for run in runs.values()
    )
    keys = ('state_dict', 'optimizer')
    held = [all(is_same(once[key], other[key]) for key in keys) for other in others]
    return Row(
        'the same seed on the same machine gives the same bits',
        f'two epochs in {precision} with 2 data workers and drop path: again, and resumed',
        len(held),
        sum(held),
        'weights and optimizer compared',
    )


def is_same(a: Any, b: Any) -> bool:
    """Whether nested dicts and lists hold the same values, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return bool(a == b)
