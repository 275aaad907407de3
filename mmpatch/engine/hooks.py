"""Hooks that the tools add to every config."""

from functools import partial
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed

from mmpatch.engine.classes import check_heads
from mmpatch.engine.data import check_dataset
from mmpatch.registry import HOOKS


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Checks the files, labels and classes of a dataset before the first sample is read."""

    def before_train(self, runner: Runner) -> None:
        """Check the training set, and the validation set, which is needed later."""
        runner.start = runner.iter  # before which a failure is put down to the config
        self._check(runner, runner.train_dataloader.dataset)
        if runner.val_loop is not None:
            self._check(runner, runner.val_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        """Check the validation set."""
        self._check(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Check the test set."""
        self._check(runner, runner.test_dataloader.dataset)

    def _check(self, runner: Runner, dataset: Any) -> None:
        is_wrapped = is_model_wrapper(runner.model)
        check_heads(runner.model.module if is_wrapped else runner.model, dataset)
        check_dataset(dataset)


@HOOKS.register_module()
class CheckInvalidLossHook(Hook):
    """Stops training at the first NaN or infinite loss, before the next checkpoint is written.

    Such a loss can ruin the weights, and later checkpoints replace the good ones. mmdet's hook
    of this name checks every 50th iteration, on each rank alone. Here every iteration is checked,
    and all ranks stop together, so that none of them writes a checkpoint.
    """

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
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
    """Seeds every iteration by its number, so that a resumed run equals an uninterrupted one.

    MMEngine restores weights, optimizer and schedule, but no random state. With this hook, dropout
    and drop path depend on seed, rank and iteration; augmentation depends on seed, rank and epoch.
    Workers that live on between epochs (``persistent_workers``) have a state of their own that no
    checkpoint holds, so a resumed run then augments differently. Loops by iteration replay their
    data when resumed, as MMEngine does.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed augmentation by epoch and rank. A loop by iteration has one epoch."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if not by_epoch and runner.world_size == 1:
            return  # MMEngine has seeded this process already
        # Primes keep the seeds of neighbouring epochs, iterations and ranks apart.
        seed = (runner.seed + 1000003 * (runner.epoch if by_epoch else 0)) % 2**31
        loader = runner.train_dataloader
        if by_epoch and isinstance(loader.worker_init_fn, partial):
            loader.worker_init_fn = partial(loader.worker_init_fn, seed=seed)  # adds rank
        set_random_seed(seed + runner.rank)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what the model draws, differently on every rank."""
        torch.manual_seed(runner.seed + 7919 * runner.iter + runner.rank)
