"""``tools/train.py --amp`` on a CPU: bfloat16 in the forward pass, float32 elsewhere."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import mmpatch
from mmpatch.engine import BFloat16OptimWrapper
from mmpatch.engine.tool import set_precision

from support import IS_FORK, run_tool

pytestmark = pytest.mark.hosts
#: The demo's models, and settings for two steps of two batches each.
RUNS = {
    'detector': (
        'demo/retinanet_poolformer-nano_fpn_toy-coco.py',
        'coco',
        ('train_dataloader.dataset.indices=4', 'train_cfg.max_epochs=2'),
    ),
    'segmentor': (
        'demo/fpn_poolformer-nano_toy-ade20k.py',
        'ade',
        (
            'train_cfg.max_iters=4',
            'train_cfg.val_interval=4',
            'default_hooks.checkpoint.interval=2',
        ),
    ),
}
MAX_NORM = 0.1
SHORT = [
    'train_dataloader.batch_size=2',
    'val_dataloader.dataset.indices=1',
    'optim_wrapper.accumulative_counts=2',
    f'optim_wrapper.clip_grad.max_norm={MAX_NORM}',
    'param_scheduler.0.end=2',
]


@HOOKS.register_module()
class PrecisionRecorder(Hook):
    """Saves precisions, losses beside those in float32, gradients and what each batch changes."""

    def before_train(self, runner):
        self.model, self.weights = runner.model, copy.deepcopy(runner.model.state_dict())
        self.found = {'types': set(), 'losses': [], 'exact': [], 'norms': [], 'changed': []}
        for module in self.model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(self.note_type)
        runner.optim_wrapper.optimizer.register_step_pre_hook(self.note_gradients)

    def note_type(self, module, args, out):
        if torch.is_grad_enabled():
            self.found['types'].add(out.dtype)

    def note_gradients(self, optimizer, *_):
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        self.found['norms'].append(torch.nn.utils.get_total_norm(gradients).item())

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        with torch.random.fork_rng(), torch.no_grad():
            data = self.model.data_preprocessor(copy.deepcopy(data_batch), training=True)
            losses = self.model(**data, mode='loss')
        self.found['exact'].append(self.model.parse_losses(losses)[0].item())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        before, self.weights = self.weights, copy.deepcopy(self.model.state_dict())
        self.found['changed'].append(any(not before[k].equal(v) for k, v in self.weights.items()))
        self.found['losses'].append(outputs['loss'].item())

    def after_train(self, runner):
        self.found['before clipping'] = runner.message_hub.get_scalar('train/grad_norm').current()
        torch.save(self.found, f'{runner.work_dir}/found.pt')


@pytest.fixture(scope='module', params=RUNS)
def run(request, toy, tmp_path_factory):
    """A training, and a function that trains in another folder."""
    import mmdet.utils
    import mmseg.utils

    mmdet.utils.register_all_modules(init_default_scope=False)
    mmseg.utils.register_all_modules(init_default_scope=False)
    name, data, settings = RUNS[request.param]
    settings = [f'data_root={toy}/{data}', *SHORT, *settings]
    base = f"_base_ = '{mmpatch.config_path(name)}'"
    hooks = "custom_hooks = [dict(type='PrecisionRecorder')]"
    config = f"{base}\n{hooks}\ncustom_imports = dict(imports=['{Path(__file__).stem}'])"

    def train(folder, *more):
        (folder / 'mine.py').write_text(config)
        command = ['tools/train.py', 'mine.py', '--amp', '--work-dir', folder]
        run_tool(*command, *more, '--cfg-options', *settings, cwd=folder)
        return torch.load(folder / 'found.pt', weights_only=False)

    folder = tmp_path_factory.mktemp(request.param)
    return folder, train(folder), train


def read_weights(folder):
    (file,) = (*folder.glob('epoch_2.pth'), *folder.glob('iter_4.pth'))
    return torch.load(file, weights_only=True)['state_dict']


def test_the_forward_pass_is_in_bfloat16_and_weights_are_not(run):
    folder, found, _ = run
    assert found['types'] == {torch.bfloat16}
    assert {tensor.dtype for tensor in read_weights(folder).values()} <= {
        torch.float32,
        torch.int64,
    }


def test_losses_follow_those_of_float32(run):
    """Of the same weights and pictures."""
    half, exact = torch.tensor(run[1]['losses']), torch.tensor(run[1]['exact'])
    assert len(half) == 4 and not half.equal(exact)
    torch.testing.assert_close(half, exact, rtol=0.01, atol=0)


def test_gradients_are_accumulated_and_clipped(run):
    found = run[1]
    assert found['changed'] == [False, True] * 2
    assert found['before clipping'] > 2 * MAX_NORM
    assert found['norms'] == pytest.approx([MAX_NORM] * 2, rel=1e-3)


def test_it_resumes_to_the_same_bits(run, tmp_path):
    folder, _, train = run
    (middle,) = (*folder.glob('epoch_1.pth'), *folder.glob('iter_2.pth'))
    found = train(tmp_path, '--resume', middle)
    resumed, whole = read_weights(tmp_path), read_weights(folder)
    assert len(found['losses']) == 2
    if middle.name == 'epoch_1.pth' or not IS_FORK:  # which augments anew in loops by iteration
        assert all(resumed[key].equal(whole[key]) for key in whole)


def test_layer_norms_of_hosts_sum_their_gradients_in_float32():
    """torch's kernel for bfloat16 on a CPU stops at 256."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    wrapper = BFloat16OptimWrapper(torch.optim.SGD(model.parameters(), 1.0))
    wrapper.initialize_count_status(model, 0, 1)
    with wrapper.optim_context(model):
        out = model(torch.randn(1000, 8))
    wrapper.update_params(out.sum())
    assert model[1].bias.tolist() == [-1000.0] * 8  # from 0


def test_a_gpu_gets_the_wrapper_of_mmengine(monkeypatch):
    monkeypatch.setattr('mmpatch.engine.tool.get_device', lambda: 'cuda')
    cfg = Config({'optim_wrapper': {'optimizer': {'type': 'AdamW'}}})
    set_precision(cfg, True)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.loss_scale == 'dynamic'
