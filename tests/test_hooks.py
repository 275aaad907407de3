"""Hooks that the tools add: a loss that is not finite, seeds by rank."""

import itertools
import math
import random
import re
from functools import partial
from types import SimpleNamespace
from unittest.mock import MagicMock
from uuid import uuid4

import numpy as np
import pytest
import torch
from mmengine.dataset import worker_init_fn
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmpatch.engine import CheckInvalidLossHook, StepSeedHook

from support import run_on_two_ranks


class Spoiling(BaseModel):
    """A model whose loss, gradient or batch norm is NaN in some steps."""

    def __init__(self, steps, what='loss'):
        super().__init__()
        self.steps, self.what, self.calls = steps, what, 0
        self.linear = nn.Linear(1, 1)
        if what == 'norm':
            self.norm = nn.BatchNorm1d(1)

    def forward(self, inputs, mode, data_samples=None):
        self.calls += 1
        factor = float('nan') if self.calls in self.steps else 1.0
        y = self.linear(inputs)
        if self.what == 'loss alone':  # infinite, with a finite gradient
            return {'loss': y.square().mean() + (math.inf if self.calls in self.steps else 0)}
        if self.what == 'norm':
            y = self.norm(torch.cat([y, 2 * y]) * factor)
        if self.what == 'gradient':
            y.register_hook(lambda gradient: gradient * factor)
        loss = y.square().mean()
        bad = loss * factor if self.what == 'loss' else loss
        return {'loss_good': loss, 'loss_bad': bad}


def collate(batch):
    sample = SimpleNamespace(img_path=f'{int(batch[0][0])}.jpg')
    return {'inputs': batch[0][0][None], 'data_samples': [sample]}


def train(folder, model, epochs=5, loader=None, optimizer=None, accumulate=1, **hook):
    """Train on four pictures in an epoch, with checkpoints of the last two."""
    data = TensorDataset(torch.arange(4.0)[:, None])
    runner = Runner(
        model,
        str(folder),
        train_dataloader=DataLoader(data, collate_fn=collate),
        train_cfg={'by_epoch': True, 'max_epochs': epochs},
        optim_wrapper={
            'optimizer': optimizer or {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9},
            'accumulative_counts': accumulate,
        },
        default_hooks={
            'checkpoint': {'type': 'CheckpointHook', 'interval': 1, 'max_keep_ckpts': 2}
        },
        custom_hooks=[{'type': 'mmpatch.CheckInvalidLossHook', **hook}],
        experiment_name=uuid4().hex,  # MMEngine shares what is of one name and second
        log_level='ERROR',
    )
    runner.train()
    return runner


def list_checkpoints(folder):
    for file in folder.glob('*.pth'):
        state = torch.load(file, weights_only=True)['state_dict']
        assert all(value.isfinite().all() for value in state.values())
    return sorted(file.name for file in folder.glob('*.pth'))


@pytest.mark.parametrize(
    ('what', 'found'),
    [
        ('loss', 'loss=nan, loss_bad=nan in 1.jpg'),
        ('loss alone', 'loss=inf in 1.jpg'),
        ('gradient', '1.jpg'),
    ],
)
def test_good_checkpoints_survive_what_is_not_finite(tmp_path, what, found):
    model = Spoiling({10}, what)
    message = (
        rf'^the {what.split()[0]} is not finite at iteration 10 \(epoch 3\): {found}\. .*--resume'
    )
    with pytest.raises(FloatingPointError, match=message):
        train(tmp_path, model)
    assert list_checkpoints(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    assert model.linear.weight.isfinite().all()


@pytest.mark.parametrize('what', ['loss', 'loss alone', 'gradient'])
@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
def test_a_step_is_left_out_and_changes_nothing(tmp_path, what, optimizer, monkeypatch):
    monkeypatch.setattr('mmpatch.engine.hooks.print_log', lambda text, **_: lines.append(text))
    lines, states = [], []
    setting = {'type': optimizer, 'lr': 0.05, 'weight_decay': 0.1}

    def note(model, inputs):
        states.append([p.detach().clone() for p in model.parameters()])

    model = Spoiling({2, 3, 6}, what)
    model.register_forward_pre_hook(note)
    train(tmp_path, model, epochs=2, optimizer=setting, patience=2)
    equal = [all(map(torch.equal, *pair)) for pair in itertools.pairwise(states)]
    assert equal == [i in (2, 3, 6) for i in range(1, 8)]
    assert [line.split('; ')[-1] for line in lines] == [
        '1 in a row, 1 in all',
        '2 in a row, 2 in all',
        '1 in a row, 3 in all',
    ]
    assert list_checkpoints(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']


def test_too_many_in_a_row_stop_with_the_state_saved(tmp_path):
    model = Spoiling({6, 7, 8})
    file = tmp_path / 'interrupted.pth'
    with pytest.raises(FloatingPointError, match=rf'iteration 8 .*state before is in {file}'):
        train(tmp_path, model, patience=2)
    assert list_checkpoints(tmp_path) == ['epoch_1.pth', 'interrupted.pth']
    saved = torch.load(file, weights_only=True)
    assert saved['meta']['iter'] == 8 and saved['meta']['epoch'] == 1
    assert torch.equal(saved['state_dict']['linear.weight'], model.linear.weight)
    assert (tmp_path / 'last_checkpoint').read_text() == str(file)


def test_steps_of_accumulated_gradients_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr('mmpatch.engine.hooks.print_log', lambda text, **_: lines.append(text))
    lines, before, model = [], [], Spoiling({5, 7, 11})
    model.register_forward_pre_hook(lambda *_: before.append(model.linear.weight.item()))
    train(tmp_path, model, accumulate=2, patience=2)
    assert [line.partition(' (')[0] for line in lines] == [
        f'the loss is not finite at iterations {i} to {i + 1}' for i in (5, 7, 11)
    ]
    assert re.search(r'\(epoch 2\): loss=nan, loss_bad=nan in 0\.jpg\. ', lines[0])
    ends = ['1 in a row, 1 in all', '2 in a row, 2 in all', '1 in a row, 3 in all']
    assert [line.split('; ')[-1] for line in lines] == ends
    left_out = [before[i] == before[i + 2] for i in range(0, 18, 2)]
    assert left_out == [i in (4, 6, 10) for i in range(0, 18, 2)]
    with pytest.raises(FloatingPointError, match='iterations 7 to 8 .*state before is in'):
        train(tmp_path, Spoiling({5, 8}), accumulate=2, patience=1)


@pytest.mark.parametrize('patience', [0, 9])
def test_no_checkpoint_is_saved_of_statistics_that_an_accumulation_spoils(tmp_path, patience):
    """The first epoch ends at iteration 4, in the middle of eight."""
    with pytest.raises(FloatingPointError, match=r'iterations 1 to 3 .*spoiled norm\.running'):
        train(tmp_path, Spoiling({3}, 'norm'), accumulate=8, patience=patience)
    assert not list_checkpoints(tmp_path)


def test_batch_norms_that_are_spoiled_stop_training(tmp_path):
    with pytest.raises(FloatingPointError, match=r'It spoiled norm\.running_mean, too\. Training'):
        train(tmp_path, Spoiling({6}, 'norm'), patience=-1)
    assert list_checkpoints(tmp_path) == ['epoch_1.pth']


@pytest.mark.parametrize('fused', [False, True])
def test_a_loss_scaler_is_left_to_itself(fused):
    model, hook = nn.Linear(1, 1), CheckInvalidLossHook()
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    hook.before_train(SimpleNamespace(optim_wrapper=OptimWrapper(optimizer)))
    scaler = torch.amp.GradScaler('cpu')
    for factor in (float('inf'), 1.0):
        before = model.weight.detach().clone()
        scaler.scale(model(torch.ones(1, 1)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert not hook.is_left_out and torch.equal(model.weight, before) == (factor != 1)
        optimizer.zero_grad()


def check_rank(rank):
    model, hook = nn.Linear(1, 1), CheckInvalidLossHook()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1))
    runner = SimpleNamespace(iter=6, epoch=1, work_dir='out', model=model, optim_wrapper=wrapper)
    path = '0.jpg' if rank == 0 else ['1.jpg']  # several channels, several files
    data = {'data_samples': [SimpleNamespace(img_path=path)]}
    loss = model(torch.ones(1)).sum() * (float('nan') if rank else 1.0)
    hook.before_train(runner)
    wrapper.update_params(loss)
    with pytest.raises(FloatingPointError) as error:
        hook.after_train_iter(runner, 0, data, {'loss': loss})
    return str(error.value)


def test_the_loss_of_another_rank_counts(tmp_path):
    first, second = run_on_two_ranks(check_rank, tmp_path)
    assert first == second and 'iteration 7 (epoch 2): loss=nan in 1.jpg. ' in first


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
