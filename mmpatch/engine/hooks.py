"""Hooks that the tools add to every config."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed

from mmpatch.engine.classes import check_heads
from mmpatch.engine.coco import check_masks
from mmpatch.engine.data import check_dataset, watch_loader
from mmpatch.engine.model import as_list
from mmpatch.engine.storage import check_ranks, save_interrupted
from mmpatch.registry import HOOKS


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Checks the files, labels and classes of a dataset before the first sample is read."""

    priority = 'BELOW_NORMAL'  # after mmdet's PipelineSwitchHook

    def before_train(self, runner: Runner) -> None:
        """Check the training set, and the validation set, which is needed later."""
        check_ranks(runner)
        runner.start = runner.iter  # before which a failure is put down to the config
        self._check(runner, runner.train_loop)
        if runner.val_loop is not None:
            self._check(runner, runner.val_loop)

    def before_train_epoch(self, runner: Runner) -> None:
        """Watch a pipeline that another hook has set."""
        watch_loader(runner.train_dataloader)

    def before_val(self, runner: Runner) -> None:
        """Check the validation set."""
        self._check(runner, runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        """Check the test set."""
        self._check(runner, runner.test_loop)

    def _check(self, runner: Runner, loop: Any) -> None:
        is_wrapped, dataset = is_model_wrapper(runner.model), loop.dataloader.dataset
        check_heads(runner.model.module if is_wrapped else runner.model, dataset)
        check_dataset(dataset)
        check_masks(getattr(loop, 'evaluator', None))


@HOOKS.register_module()
class CheckInvalidLossHook(Hook):
    """Keeps a NaN or infinite loss or gradient from the weights, and stops training.

    The optimizer leaves out the step, on all ranks, if the gradient or any loss that is part of it
    is not finite. A loss scaler (``--amp``) does so by itself for gradients, which is normal and
    not counted. mmdet's hook of this name looks at every 50th loss, after the step.

    Args:
        patience: How many steps in a row may be left out, each with a warning. A step is an
            iteration, or ``accumulative_counts`` of them. After more, the state is saved for
            ``--resume`` and training stops. -1 never stops; 0 stops at the first and saves
            nothing, as training has diverged in most cases.
    """

    priority = 80  # between MMEngine's ParamSchedulerHook and CheckpointHook

    def __init__(self, patience: int = 0) -> None:
        self.patience, self.in_row, self.total = patience, 0, 0
        self.is_left_out = False
        # of the iterations since the last step
        self.losses: list[torch.Tensor] = []
        self.seen: list[tuple[dict[str, torch.Tensor], str]] = []

    def before_train(self, runner: Runner) -> None:
        """Watch the losses and gradients that the optimizer gets."""
        wrapper = runner.optim_wrapper
        wrapper.optimizer.register_step_pre_hook(self._check_step)
        wrapper.backward = partial(self._note_loss, wrapper.backward)

    def _note_loss(self, backward: Callable[..., None], loss: torch.Tensor, **kwargs: Any) -> None:
        self.losses.append(loss.detach())
        backward(loss, **kwargs)

    def _check_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        gradients = [p.grad for p in parameters if p.grad is not None]
        values = self.losses
        if not hasattr(optimizer, 'found_inf'):  # a loss scaler leaves this check to the optimizer
            values = [*values, torch.nn.utils.get_total_norm(gradients, math.inf)]
        self.is_left_out = _is_any_rank(any(map(_is_spoiled, values)))
        for parameter in parameters if self.is_left_out else ():
            parameter.grad = None  # and no optimizer changes it

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Check an iteration, and the step that it ends.

        Raises:
            FloatingPointError: If a loss or the gradient is not finite on any rank, more than
                ``patience`` times in a row, or has spoiled statistics of batch norms.
        """
        named = {k: torch.as_tensor(v).detach() for k, v in (outputs or {}).items() if 'loss' in k}
        samples = data_batch.get('data_samples', []) if isinstance(data_batch, dict) else []
        paths = [p for sample in samples for p in as_list(getattr(sample, 'img_path', None))]
        self.seen += [(named, ', '.join(paths))]
        is_loss = _is_any_rank(any(map(_is_spoiled, self.losses)))
        is_step = runner.optim_wrapper.should_update()
        is_left_out, seen = self.is_left_out, self.seen
        if is_step:
            self.is_left_out, self.seen, self.losses = False, [], []
        if not is_loss and not is_left_out:
            self.in_row = 0 if is_step else self.in_row
            return
        found = [
            (', '.join(f'{k}={v.item()}' for k, v in named.items() if _is_spoiled(v)), files)
            for named, files in seen
        ]
        stats = [k for k, v in runner.model.named_buffers() if 'running_' in k and _is_spoiled(v)]
        ranks = dist.all_gather_object((found, stats[:1]))
        if not is_step and self.patience and not any(stats for _, stats in ranks):
            return  # no optimizer has seen it yet
        self.in_row, self.total = self.in_row + 1, self.total + 1
        pairs = [pair for found, _ in ranks for pair in found if pair[0] or not is_loss]
        places = [' in '.join(filter(None, pair)) for pair in pairs]
        what = 'loss' if is_loss else 'gradient'
        span = f's {runner.iter + 2 - len(seen)} to' if len(seen) > 1 else ''
        text = (
            f'the {what} is not finite at iteration{span} {runner.iter + 1} '
            f'(epoch {runner.epoch + 1}): {"; ".join(places)}. '
        )
        if stats := [name for rank in ranks for name in rank[1]]:
            text += f'It spoiled {stats[0]}, too. '
        elif self.patience < 0 or self.in_row <= self.patience:
            text += f'The step is left out; {self.in_row} in a row, {self.total} in all'
            print_log(text, logger='current', level=logging.WARNING)
            return
        elif self.patience:
            text += f'The state before is in {save_interrupted(runner)}. '
        raise FloatingPointError(
            f'{text}Training stops here to keep the checkpoints in {runner.work_dir}. Lower the '
            'learning rate, warm up longer or clip gradients, then continue with --resume'
        )


def _is_spoiled(value: torch.Tensor) -> bool:
    return not value.isfinite().all()


def _is_any_rank(flag: bool) -> bool:
    count = torch.tensor(float(flag), device=dist.get_comm_device())
    dist.all_reduce(count)
    return bool(count.item())


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
