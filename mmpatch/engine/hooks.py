"""Hooks that ``tools/train.py`` and ``tools/test.py`` add to every config."""

import random
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmpatch.engine.data import watch_dataset
from mmpatch.registry import HOOKS


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Looks for every file of a dataset before the first one is needed."""

    def before_train(self, runner: Runner) -> None:
        """Check the training set."""
        watch_dataset(runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        """Check the validation set."""
        watch_dataset(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Check the test set."""
        watch_dataset(runner.test_dataloader.dataset)


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds every step by its number, so that a resumed run equals one that was never interrupted.

    MMEngine restores weights, optimizer and schedule, but no random state. Here dropout and drop
    path depend on the seed and the iteration; augmentation on the seed and the epoch. Workers that
    live on between epochs (``persistent_workers``) carry a state that no checkpoint can hold: a
    resumed run then sees other augmentations. Loops by iteration replay their data, as MMEngine
    does, and need nothing more.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed augmentation by the epoch; loops by iteration have one epoch only."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        seed = (runner.seed + 1000003 * runner.epoch) % 2**31
        random.seed(seed)
        np.random.seed(seed)
        loader = runner.train_dataloader
        if isinstance(loader.worker_init_fn, partial):
            init: partial[Any] = loader.worker_init_fn
            loader.worker_init_fn = partial(
                init.func, *init.args, **{**init.keywords, 'seed': seed}
            )
        torch.manual_seed(seed)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        """Seed what the model draws, differently on every rank."""
        torch.manual_seed(runner.seed + 7919 * runner.iter + runner.rank)
