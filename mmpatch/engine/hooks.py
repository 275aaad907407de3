"""Hooks that ``tools/train.py`` and ``tools/test.py`` add to every config."""

import random
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine import dist
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
class CheckInvalidLossHook(Hook):
    """Stops training at the first loss that is NaN or infinite, before a checkpoint is written.

    The step that follows such a loss spoils the weights, and the checkpoints of later epochs push
    the good ones out. mmdet's hook of this name looks at every 50th iteration, on each rank alone;
    here all ranks stop at the first one, so that none writes a checkpoint.
    """

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Check the loss of one iteration.

        Raises:
            FloatingPointError: If the loss is not finite on any rank.
        """
        losses = {k: torch.as_tensor(v) for k, v in (outputs or {}).items() if 'loss' in k}
        is_spoiled = ~losses.get('loss', torch.zeros(())).isfinite()
        count = is_spoiled.to(dist.get_comm_device(), torch.float32)
        dist.all_reduce(count)
        if count.item():
            wrong = [f'{k}={v.item()}' for k, v in losses.items() if not v.isfinite().all()]
            raise FloatingPointError(
                f'the loss is not finite at iteration {runner.iter + 1} (epoch '
                f'{runner.epoch + 1}): {", ".join(wrong) or "on another rank"}. Training stops '
                f'here to keep the checkpoints in {runner.work_dir}. Lower the learning rate, warm '
                'up longer or clip gradients, then continue with --resume'
            )


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds every step by its number, so that a resumed run equals one that was never interrupted.

    MMEngine restores weights, optimizer and schedule, but no random state. Here dropout and drop
    path depend on the seed and the iteration, augmentation on the seed and the epoch; both differ
    between ranks. Workers that live on between epochs (``persistent_workers``) carry a state that
    no checkpoint can hold: a resumed run then sees other augmentations. Loops by iteration replay
    their data, as MMEngine does.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed augmentation by epoch and rank; a loop by iteration has one epoch only."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if not by_epoch and runner.world_size == 1:
            return  # MMEngine has seeded this process already
        seed = (runner.seed + 1000003 * (runner.epoch if by_epoch else 0)) % 2**31
        loader = runner.train_dataloader
        if by_epoch and isinstance(loader.worker_init_fn, partial):
            init: partial[Any] = loader.worker_init_fn  # adds the rank itself
            loader.worker_init_fn = partial(
                init.func, *init.args, **{**init.keywords, 'seed': seed}
            )
        random.seed(seed + runner.rank)
        np.random.seed((seed + runner.rank) % 2**32)
        torch.manual_seed(seed + runner.rank)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        """Seed what the model draws, differently on every rank."""
        torch.manual_seed(runner.seed + 7919 * runner.iter + runner.rank)
