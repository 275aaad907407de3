"""A hook that does to a training, at one of its iterations, what machines and schedulers do."""

import multiprocessing
import os
import resource
import signal
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Fault(Hook):
    """Causes a fault before an iteration.

    Args:
        at: The iteration, counted from 0.
        number: Signal that the process sends to itself, on the given rank.
        rank: The rank that gets the signal.
        size: Bytes beyond which no file can be written.
        is_killed: Whether the kernel kills the process inside such a write. Else Python raises.
        memory: Bytes that can still be allocated.
        worker: Whether a process that loads data is killed.
        nan: Number of iterations, from this one on, whose gradients are NaN.
        lost: A file to remove.
    """

    def __init__(self, at: int, **what: Any) -> None:
        self.at, self.what = at, what

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Cause it."""
        what = self.what
        if self.at <= runner.iter < self.at + what.get('nan', 0):
            parameter = next(p for p in runner.model.parameters() if p.requires_grad)
            handle = parameter.register_hook(lambda g: (handle.remove(), g * float('nan'))[1])
        if runner.iter != self.at:
            return
        if what.get('is_killed'):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if size := what.get('size'):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        if memory := what.get('memory'):
            pages = int(Path('/proc/self/statm').read_text().split()[0])
            memory += pages * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        if what.get('worker'):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        if lost := what.get('lost'):
            Path(lost).unlink()
        if what.get('number') and what.get('rank', 0) == runner.rank:
            os.kill(os.getpid(), what['number'])
