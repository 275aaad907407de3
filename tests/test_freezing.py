"""Frozen stages in training: nothing dies, nothing frozen moves, everything else learns."""

import itertools
import subprocess
import sys

import pytest
import torch
from test_families import TINY
from torch import nn

OUT_NORMS = (None, True, {'type': 'GN', 'num_groups': 4}, 'BN')


def settings(name):
    """Combinations of frozen stages, output norms and checkpointing for one network."""
    stages = range(-1, 3 if name == 'ViTDet' else 5)
    return itertools.product(stages, OUT_NORMS, (False, True))


def train_in_each_mode(name, frozen_stages, out_norm, with_cp):
    torch.manual_seed(0)
    options = {'frozen_stages': frozen_stages, 'out_norm': out_norm, 'with_cp': with_cp}
    model = TINY[name](**options).train()
    heads = nn.ModuleList(nn.Conv2d(c, 2, 1) for c in model.out_channels)
    for mode in ('', 'autocast', 'hook'):
        print(name, frozen_stages, out_norm, with_cp, mode, flush=True)
        train_one_step(model, heads, frozen_stages, mode)


def train_one_step(model, heads, frozen_stages, mode):
    if mode == 'hook':
        model.stages[0].blocks[0].register_forward_hook(lambda *args: None)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.zero_grad()
    optimizer = torch.optim.SGD([*model.parameters(), *heads.parameters()], 0.1, weight_decay=0.1)
    with torch.autocast('cpu', torch.bfloat16, enabled=mode == 'autocast'):
        outs = model(torch.randn(4, 3, 64, 64))
        loss = sum(head(y).float().square().mean() for head, y in zip(heads, outs, strict=True))
    loss.backward()
    optimizer.step()
    parts = ['stem.', 'positions.'] if frozen_stages >= 0 else []
    for i in range(max(frozen_stages, 0)):
        parts += [f'stages.{i}.', f'out_norms.{i}.']
    for key, value in model.state_dict().items():
        if key.startswith(tuple(parts)):
            assert torch.equal(value, before[key]), f'{key} moved'
    for key, parameter in model.named_parameters():
        frozen = key.startswith(tuple(parts))
        assert parameter.requires_grad != frozen, key
        assert (parameter.grad is None) == frozen, key
        assert frozen or parameter.grad.isfinite().all(), key


@pytest.mark.process
@pytest.mark.parametrize('names', [list(TINY)[::2], list(TINY)[1::2]], ids=', '.join)
def test_training_with_frozen_stages(names):
    """In a child process, since torch's own group norm crashes there in channels_last memory."""
    child = subprocess.run([sys.executable, __file__, *names], capture_output=True, text=True)
    lines = [line for line in child.stdout.splitlines() if ' - INFO - ' not in line]
    assert child.returncode == 0, f'{child.returncode} at {lines[-1:]}: {child.stderr[-2000:]}'
    assert len(lines) == sum(3 * len(list(settings(name))) for name in names)


if __name__ == '__main__':
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        for combination in settings(name):
            train_in_each_mode(name, *combination)
