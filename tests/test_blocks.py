"""A block is called as ``block(x)``, whatever the mode, the device or whoever looks on."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from test_families import TINY
from torch import nn
from torch.profiler import profile

from mmpatch.backbones import ConvMixer, MetaFormer, PoolFormer, VisionTransformer
from mmpatch.blocks import ConvMixerBlock, MetaFormerBlock
from mmpatch.layers import GroupNorm, GroupNorm1
from mmpatch.mixers import DepthwiseConv, Pooling

import golden
from support import kept_bytes, relative_error

LAYOUTS = {'NCHW': torch.contiguous_format, 'channels_last': torch.channels_last}


def blocks_of(model):
    return [block for stage in model.stages for block in stage.blocks]


@pytest.fixture
def calls(monkeypatch):
    """How often the forward of each block ran."""
    counter = Counter()
    for cls in (MetaFormerBlock, ConvMixerBlock):

        def forward(block, x, original=cls.forward):
            counter[block] += 1
            return original(block, x)

        monkeypatch.setattr(cls, 'forward', forward)
    return counter


def see_hook(model):
    for block in blocks_of(model):
        block.register_forward_hook(lambda *args: None)


MODES = {
    'training': {},
    'evaluation': {'train': False},
    'no gradients': {'train': False, 'grad': False},
    'with_cp': {'kwargs': {'with_cp': True}},
    'autocast': {'autocast': True},
    'hooks': {'prepare': see_hook},
    'dropped paths': {'kwargs': {'drop_path_rate': 0.3}},
    'frozen': {'kwargs': {'frozen_stages': 1}},
    'contiguous': {'kwargs': {'memory_format': 'contiguous'}},
}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', TINY)
def test_each_forward_runs_once_per_block_and_pass(name, mode, device, calls):
    settings = MODES[mode]
    model = TINY[name](**settings.get('kwargs', {})).to(device).train(settings.get('train', True))
    settings.get('prepare', lambda model: None)(model)
    with (
        torch.set_grad_enabled(settings.get('grad', True)),
        torch.autocast(device, torch.bfloat16, enabled=settings.get('autocast', False)),
    ):
        model(torch.randn(2, 3, 64, 64, device=device))
    assert calls == dict.fromkeys(blocks_of(model), 1)


@pytest.mark.parametrize(
    ('make', 'share'),
    [
        (lambda **kw: PoolFormer('s12', **kw), 0.2),
        (lambda **kw: ConvMixer('1024/20', dims=64, **kw), 0.25),
        (lambda **kw: VisionTransformer('tiny', **kw), 0.1),
    ],
    ids=['PoolFormer', 'ConvMixer', 'ViT'],
)
def test_with_cp_keeps_little(make, share, torch_seed):
    plain, saving = (make(out_norm=False, with_cp=cp).train() for cp in (False, True))
    x = torch.randn(2, 3, 128, 128)
    assert kept_bytes(saving, x) < share * kept_bytes(plain, x)


@pytest.mark.parametrize('norm', ['BN', 'GN1', 'LN2d'])
def test_graphs_of_recomputed_blocks_may_be_used_twice(norm, torch_seed):
    kwargs = {'strides': (4, 2), 'out_indices': (1,), 'norm_cfg': norm, 'with_cp': True}
    model = MetaFormer((1, 1), 8, 'Pooling', **kwargs).train()
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    loss = model(x)[0].square().sum()
    buffers = [b.clone() for b in model.buffers()]
    once = torch.autograd.grad(loss, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, x), once)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


def test_recomputation_that_fails_restores_the_norms(torch_seed):
    model = MetaFormer(
        (1,), 8, 'Pooling', strides=(4,), out_indices=(0,), norm_cfg='BN', with_cp=True
    )
    loss = model.train()(torch.randn(2, 3, 32, 32))[0].sum()
    model.stages[0].blocks[0].mlp.forward = None
    with pytest.raises(TypeError):
        loss.backward()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.1} and {int(m.num_batches_tracked) for m in norms} == {
        1
    }


def test_patched_forwards_and_hooks_take_effect(torch_seed):
    from mmpatch import deploy

    def build():
        kwargs = {'strides': (4,), 'out_indices': (0,), 'out_norm': False}
        model = golden.randomize(MetaFormer((1,), 8, 'Pooling', **kwargs))
        return model, *blocks_of(model)

    x = torch.randn(2, 3, 48, 48)
    model, block = build()
    block.forward = lambda y: 0 * y
    for patched in (model, deploy(model)):
        assert not patched(x)[0].any()
    model, block = build()
    block.token_mixer.forward = lambda y: 0 * y
    block.mlp.forward = lambda y: 0 * y
    for patched in (model, deploy(model)):
        torch.testing.assert_close(patched(x)[0], model.stem(x))
    model, block = build()
    block.mlp.register_forward_hook(lambda module, args, output: 0 * output)
    block.token_mixer.register_forward_pre_hook(lambda module, args: (0 * args[0],))
    for hooked in (model, deploy(model)):
        torch.testing.assert_close(hooked(x)[0], model.stem(x))


def test_compiled_blocks_take_effect():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = PoolFormer(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)).eval()
    for block in blocks_of(model):
        block.compile(backend=backend)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert len(graphs) >= 1


def swap_pool(block):
    block.token_mixer.pool = nn.MaxPool2d(3, 1, 1)


def count_border(block):
    block.token_mixer.pool.count_include_pad = True


def dilate(block):
    block.token_mixer.conv.dilation = (2, 2)


def reflect(block):
    block.token_mixer.conv = nn.Conv2d(8, 8, 5, padding=2, groups=8, padding_mode='reflect')


def ungroup(block):
    block.token_mixer.conv = nn.Conv2d(8, 8, 5, padding=2)


def widen_fc1(block):
    block.mlp.fc1 = nn.Conv2d(8, 32, 3, padding=1)


def group_fc1(block):
    block.mlp.fc1 = nn.Conv2d(8, 32, 1, groups=4)


def approximate_act(block):
    block.mlp.act = nn.GELU(approximate='tanh')


def widen_mlp(block):
    block.mlp = nn.Conv2d(8, 8, 3, padding=1)


def group_mlp(block):
    block.mlp = nn.Conv2d(8, 8, 1, groups=2)


def replace_mlp(block):
    block.mlp = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh())


CHANGES = [
    *((MetaFormerBlock, Pooling, c) for c in (swap_pool, count_border, widen_fc1, group_fc1)),
    *((MetaFormerBlock, Pooling, c) for c in (approximate_act, replace_mlp)),
    *((ConvMixerBlock, lambda d: DepthwiseConv(d, 5), c) for c in (dilate, reflect, ungroup)),
    *((ConvMixerBlock, DepthwiseConv, c) for c in (widen_mlp, group_mlp)),
    (MetaFormerBlock, lambda d: DepthwiseConv(d, (5, 7)), lambda block: None),
]


@pytest.mark.parametrize(
    ('block', 'mixer', 'change'), CHANGES, ids=[c[2].__name__ for c in CHANGES]
)
def test_settings_changed_on_a_built_block_are_honoured(block, mixer, change, torch_seed):
    """In training as calling the parts by hand, and in a deployed copy."""
    from mmpatch import deploy

    model = MetaFormer((1,), 8, mixer, strides=(4,), block=block, out_indices=(0,), out_norm=False)
    plain = golden.randomize(copy.deepcopy(model))
    (built,) = blocks_of(model)
    change(built)
    golden.randomize(model)
    x = torch.randn(2, 3, 48, 48)
    y = model.stem(x)
    if block is MetaFormerBlock:
        by_hand = y + built.token_mixer(built.norm1(y))
        by_hand = by_hand + built.mlp(built.norm2(by_hand))
    else:
        by_hand = y + built.norm1(built.act(built.token_mixer(y)))
        by_hand = built.norm2(built.act(built.mlp(by_hand)))
    with torch.no_grad():
        assert relative_error(model(x)[0], by_hand) < 1e-6
        assert relative_error(deploy(model)(x)[0], by_hand) < 1e-5
        if change.__name__ != '<lambda>':
            assert relative_error(plain(x)[0], by_hand) > 1e-4  # the change matters
    outs = model.train()(x)[0]
    outs.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('count_include_pad', [False, True])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('size', [3, 5, 7])
def test_poolings_gradient_needs_no_pooling_backward(size, layout, count_include_pad, device):
    torch.manual_seed(0)
    mixer = Pooling(4, size)
    mixer.pool.count_include_pad = count_include_pad
    x = torch.randn(2, 4, 9, 11, dtype=torch.double, device=device)
    x = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    grad = torch.randn_like(x)
    with profile() as seen:
        y = mixer(x)
        (ours,) = torch.autograd.grad(y, x, grad)
    assert not [e.key for e in seen.key_averages() if 'avg_pool2d_backward' in e.key]
    # In NCHW on the CPU, where torch's own is right.
    x = x.detach().cpu().contiguous().requires_grad_()
    expected = F.avg_pool2d(x, size, 1, size // 2, count_include_pad=count_include_pad) - x
    (theirs,) = torch.autograd.grad(expected, x, grad.cpu())
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-12, atol=1e-12)


def test_pooling_under_function_transforms(torch_seed):
    mixer, x = Pooling(2), torch.randn(2, 2, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(mixer, x)
    y = mixer(x)
    gradient = torch.func.grad(lambda z: mixer(z).square().sum())
    single = torch.stack([gradient(z[None])[0] for z in x.detach()])
    torch.testing.assert_close(torch.func.vmap(gradient)(x.detach()), single)
    torch.testing.assert_close(torch.func.vmap(lambda z: mixer(z[None])[0])(x), y)
    torch.testing.assert_close(torch.func.jvp(mixer, (x,), (x,))[1], y)


@pytest.mark.parametrize('ratio', [1, 100, 1000])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('groups', [1, 4])
def test_group_norm_is_as_exact_as_torchs_in_nchw(groups, layout, ratio, device):
    """Where the mean is ``ratio`` deviations, in both layouts, forward and backward."""
    generator = torch.Generator().manual_seed(ratio)
    x = (torch.randn(2, 32, 56, 56, generator=generator) + ratio).to(device)
    grad = torch.randn(x.shape, generator=generator).to(device)
    norm = (GroupNorm1(32) if groups == 1 else GroupNorm(32, groups)).to(device)
    norm.weight.data.uniform_(0.5, 1.5, generator=torch.Generator(device).manual_seed(0))

    def run(module, x, dtype):
        x = x.detach().to(dtype).requires_grad_()
        y = module(x)
        return y, *torch.autograd.grad(y, (x, norm_of[module].weight), grad.to(dtype))

    exact = copy.deepcopy(norm).double()
    theirs = nn.GroupNorm(groups, 32).to(device)
    theirs.load_state_dict(norm.state_dict())
    exact_theirs = nn.GroupNorm(groups, 32).to(device).double()
    exact_theirs.load_state_dict(norm.state_dict())
    norm_of = {m: m for m in (norm, theirs, exact, exact_theirs)}
    reference = run(exact_theirs, x.contiguous(), torch.double)
    torchs = run(theirs, x.contiguous(), torch.float)
    ours = run(norm, x.contiguous(memory_format=LAYOUTS[layout]), torch.float)

    def error(a, b):
        return ((a.double() - b).norm() / b.norm()).item()

    bounds = [2 * error(b, c) + 1e-8 for b, c in zip(torchs, reference, strict=True)]
    bounds[1] += 1e-7 * ratio  # gradients of the input: torch's sums by channel cancel less
    for a, c, bound in zip(ours, reference, bounds, strict=True):
        assert error(a, c) < bound


@pytest.mark.parametrize('layout', LAYOUTS)
def test_group_norm_of_one_group_keeps_the_layout(layout, device):
    x = torch.randn(2, 8, 5, 6, device=device).contiguous(memory_format=LAYOUTS[layout])
    assert GroupNorm1(8).to(device)(x).is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize('change', ['two groups', 'bias alone', 'three dimensions'])
def test_group_norm_honours_changed_settings(change, device):
    norm = GroupNorm1(8).to(device)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 5, 5, device=device)
    if change == 'two groups':
        norm.num_groups = 2
    elif change == 'bias alone':
        norm.weight = None
    else:
        x = x[..., 0]
    y = F.group_norm(x, norm.num_groups, norm.weight, norm.bias)
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    for z in (x, x.contiguous(memory_format=layout)):
        torch.testing.assert_close(norm(z), y)


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (5, 7)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('groups', [1, 4])
def test_group_norm_behind_frozen_layers(groups, dtype, size, device):
    """Where the weight needs a gradient and the input none, torch's kernel ends the process."""
    torch.manual_seed(0)
    norm = (GroupNorm1(32) if groups == 1 else GroupNorm(32, groups)).to(device)
    x = torch.randn(2, 32, *size, dtype=dtype, device=device)
    for layout in LAYOUTS.values():
        norm.zero_grad()
        y = norm(x.contiguous(memory_format=layout))
        y.float().square().sum().backward()
        reference = F.group_norm(x.double().contiguous(), groups)
        assert relative_error(y, reference) < (1e-6 if dtype == torch.float32 else 1e-2)
        weight = 2 * (reference**2).sum((0, 2, 3))
        assert relative_error(norm.weight.grad, weight) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_auto_memory_format_follows_device_and_layers():
    cpu, cuda = torch.device('cpu'), torch.device('cuda')
    small = {'depths': (1, 1, 1, 1), 'dims': 8}
    expected = {
        PoolFormer(**small): torch.contiguous_format,
        PoolFormer(**small, norm_cfg='LN2d'): torch.channels_last,
        ConvMixer('768/32', **small): torch.channels_last,  # 7x7
        ConvMixer('1024/20', **small): torch.contiguous_format,  # 9x9
        ConvMixer('1024/20', **small, memory_format='channels_last'): torch.channels_last,
    }
    for model, on_cuda in expected.items():
        assert model._choose_memory_format(cpu) == torch.channels_last
        assert model._choose_memory_format(cuda) == on_cuda
    with pytest.raises(ValueError, match="memory_format='NHWC' is not one of.*channels_last"):
        PoolFormer(memory_format='NHWC')


def test_fp16_gradients_behind_small_layer_scales_stay_finite(torch_seed):
    block = MetaFormerBlock(64, Pooling, layer_scale=1e-5)
    x = torch.randn(2, 64, 16, 16)
    with torch.autocast('cpu', torch.float16):
        y = block(x)
    (y * 65536 * 0.02).sum().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())
