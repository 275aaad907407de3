"""The demo's models train under bf16 autocast as they do in float32.

MMEngine has no mixed precision on a CPU, so the loop is this test's own. A short run is in the
suite; ``MMPATCH_ITERATIONS=300`` is the long one (about ten minutes on two cores).
"""

import itertools
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

import mmpatch

ITERATIONS = int(os.environ.get('MMPATCH_ITERATIONS', 12))
CONFIGS = {
    'detector': 'demo/retinanet_poolformer-nano_fpn_toy-coco.py',
    'segmentor': 'demo/fpn_poolformer-nano_toy-ade20k.py',
}


def train(name, data, device, autocast):
    """Losses of each iteration."""
    cfg = Config.fromfile(mmpatch.config_path(CONFIGS[name]))
    init_default_scope(cfg.default_scope)
    if cfg.default_scope == 'mmdet':
        from mmdet.utils import register_all_modules
    else:
        from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    loader = cfg.train_dataloader
    loader.dataset.data_root = f'{data}/coco/' if name == 'detector' else f'{data}/ade/'
    loader.batch_size = min(loader.batch_size, 4)
    loader.sampler = {'type': 'mmengine.InfiniteSampler', 'shuffle': True, 'seed': 0}
    loader.pop('batch_sampler', None)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(device).train()
    batches = Runner.build_dataloader(loader, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=50)
    losses = []
    for data_batch in itertools.islice(batches, ITERATIONS):
        data_batch = model.data_preprocessor(data_batch, training=True)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            parts = model(**data_batch, mode='loss')
        loss, _ = model.parse_losses(parts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        warm_up.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.hosts
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('name', CONFIGS)
def test_losses_under_autocast_follow_those_of_float32(name, toy, device):
    full = train(name, toy, device, autocast=False)
    half = train(name, toy, device, autocast=True)
    assert half.isfinite().all() and len(half) == ITERATIONS
    assert half[-1] < half[0]
    # Single iterations scatter once the weights have moved apart: means of a part are compared.
    for a, b in zip(half.chunk(3), full.chunk(3), strict=True):
        assert abs(a.mean() - b.mean()) < 0.05 * b.mean(), (a.mean(), b.mean())
    print(f'{name}: last third {half.chunk(3)[-1].mean():.4f}, {full.chunk(3)[-1].mean():.4f}')
