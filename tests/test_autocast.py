"""The demo's models train under bf16 autocast as they do in float32.

MMEngine has no mixed precision on a CPU, so the loop is this test's own. A short run on few
pictures is in the suite: each loss is compared with that in float32 of the same weights and
pictures. ``MMPATCH_ITERATIONS=300`` is the long one, on the demo's number of pictures; it also
trains in float32 and compares the two runs (about ten minutes on two cores).
"""

import itertools
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

import mmpatch

from support import run_tool

ITERATIONS = int(os.environ.get('MMPATCH_ITERATIONS', 8))
CONFIGS = {
    'detector': 'demo/retinanet_poolformer-nano_fpn_toy-coco.py',
    'segmentor': 'demo/fpn_poolformer-nano_toy-ade20k.py',
}


IS_LONG = ITERATIONS >= 100


@pytest.fixture(scope='module')
def pictures(request, tmp_path_factory):
    if not IS_LONG:
        return request.getfixturevalue('toy')
    folder = tmp_path_factory.mktemp('pictures')
    run_tool('tools/make_toy_data.py', '--out', folder, '--train', 480, '--val', 1)
    return folder


def train(name, data, device, autocast):
    """Losses of each iteration; under autocast, also in float32 of the same weights and pictures.

    The short run sees the same two pictures again and again.
    """
    cfg = Config.fromfile(mmpatch.config_path(CONFIGS[name]))
    init_default_scope(cfg.default_scope)
    if cfg.default_scope == 'mmdet':
        from mmdet.utils import register_all_modules
    else:
        from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    loader = cfg.train_dataloader
    loader.dataset.data_root = f'{data}/coco/' if name == 'detector' else f'{data}/ade/'
    loader.sampler = {'type': 'mmengine.InfiniteSampler', 'shuffle': True, 'seed': 0}
    loader.pop('batch_sampler', None)
    loader.batch_size = loader.batch_size if IS_LONG else 2
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.to(device).train()
    batches = Runner.build_dataloader(loader, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, ITERATIONS, pct_start=0.2)
    losses, exact = [], []
    stream = batches if IS_LONG else itertools.repeat(next(iter(batches)))
    for i, data_batch in enumerate(itertools.islice(stream, ITERATIONS)):
        data_batch = model.data_preprocessor(data_batch, training=True)

        def compute_loss(enabled, batch=data_batch, seed=i):
            torch.manual_seed(seed)  # the same branches are dropped
            with torch.autocast(device, torch.bfloat16, enabled=enabled):
                return model.parse_losses(model(**batch, mode='loss'))[0]

        if autocast:
            with torch.no_grad():
                exact.append(compute_loss(False).item())
        loss = compute_loss(autocast)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return torch.tensor(losses), torch.tensor(exact)


@pytest.mark.hosts
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('name', CONFIGS)
def test_losses_under_autocast_follow_those_of_float32(name, pictures, device):
    half, exact = train(name, pictures, device, autocast=True)
    assert half.isfinite().all() and len(half) == ITERATIONS
    assert half[-1] < half[0]
    torch.testing.assert_close(half, exact, rtol=0.01, atol=0)
    if not IS_LONG:
        return
    full, _ = train(name, pictures, device, autocast=False)
    # Two runs scatter once their weights have moved apart: means are compared, not single losses.
    for part in (slice(None), slice(-ITERATIONS // 3, None)):
        means = [losses[part].mean().item() for losses in (half, full)]
        print(f'{name}, mean losses of {len(full[part])}, autocast and float32: {means}')
        assert means[0] == pytest.approx(means[1], rel=0.05)
