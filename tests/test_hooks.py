"""Hooks that the tools add: a loss that is not finite, seeds by rank."""

import random
from functools import partial
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from mmengine.dataset import worker_init_fn
from mmengine.model import BaseModel
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmpatch.engine import CheckInvalidLossHook, StepSeedHook


class Spoiling(BaseModel):
    """A model one of whose losses is NaN in one step."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.calls = 0
        self.linear = nn.Linear(1, 1)

    def forward(self, x, mode):
        self.calls += 1
        loss = self.linear(x).square().mean()
        bad = loss * float('nan') if self.calls == self.step else loss
        return {'loss_good': loss, 'loss_bad': bad}


def test_good_checkpoints_survive_a_loss_that_is_not_finite(tmp_path):
    runner = Runner(
        Spoiling(step=10),
        str(tmp_path),
        train_dataloader=DataLoader(TensorDataset(torch.ones(4, 1))),
        train_cfg={'by_epoch': True, 'max_epochs': 5},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
        default_hooks={
            'checkpoint': {'type': 'CheckpointHook', 'interval': 1, 'max_keep_ckpts': 2}
        },
        custom_hooks=[{'type': 'mmpatch.CheckInvalidLossHook'}],
        experiment_name=tmp_path.name,
        log_level='ERROR',
    )
    message = r'iteration 10 \(epoch 3\): loss=nan, loss_bad=nan\. .*--resume'
    with pytest.raises(FloatingPointError, match=message):
        runner.train()
    assert sorted(file.name for file in tmp_path.glob('*.pth')) == ['epoch_1.pth', 'epoch_2.pth']
    for file in tmp_path.glob('*.pth'):
        state = torch.load(file, weights_only=True)['state_dict']
        assert all(value.isfinite().all() for value in state.values())


def test_the_loss_of_another_rank_counts(monkeypatch):
    monkeypatch.setattr('mmengine.dist.all_reduce', lambda count: count.add_(1))
    runner = SimpleNamespace(iter=6, epoch=1, work_dir='out')
    with pytest.raises(FloatingPointError, match=r'iteration 7 \(epoch 2\): on another rank'):
        CheckInvalidLossHook().after_train_iter(runner, 0, None, {'loss': torch.tensor(1.0)})


def draw(loop, rank, epoch, world_size=2):
    """What augmentation and workers are seeded with on one rank."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    init = partial(worker_init_fn, num_workers=2, rank=rank, seed=5)
    runner = SimpleNamespace(
        train_loop=MagicMock(spec=loop),
        train_dataloader=SimpleNamespace(worker_init_fn=init),
        **{'seed': 5, 'rank': rank, 'epoch': epoch, 'world_size': world_size},
    )
    StepSeedHook().before_train_epoch(runner)
    workers = runner.train_dataloader.worker_init_fn.keywords['seed']
    return random.random(), np.random.rand(), torch.rand(1).item(), workers


def test_ranks_and_epochs_augment_differently():
    first, other_rank, other_epoch = (
        draw(EpochBasedTrainLoop, *which) for which in ((0, 1), (1, 1), (0, 2))
    )
    assert first == draw(EpochBasedTrainLoop, 0, 1)
    assert not set(first[:3]) & set(other_rank[:3]) and not set(first) & set(other_epoch)
    assert first[3] == other_rank[3]  # workers add the rank themselves


def test_ranks_of_a_loop_by_iteration_augment_differently():
    first, other = (draw(IterBasedTrainLoop, rank, 0) for rank in (0, 1))
    assert not set(first[:3]) & set(other[:3]) and first == draw(IterBasedTrainLoop, 0, 3)
    untouched = draw(IterBasedTrainLoop, 0, 0, world_size=1)
    random.seed(0)
    assert untouched[0] == random.random()


def test_what_the_model_draws_depends_on_rank_and_iteration():
    draws = []
    for rank in (0, 1):
        for iteration in (0, 1, 0):
            runner = SimpleNamespace(seed=3, iter=iteration, rank=rank)
            StepSeedHook().before_train_iter(runner, 0)
            draws.append(torch.rand(1).item())
    first, second, again, *others = draws
    assert first == again and len({first, second, *others[:2]}) == 4
