"""Fast forms of the blocks equal the plain ones in all that they compute, and keep less."""

import copy

import pytest
import torch
from test_families import TINY
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import profile

from mmpatch import deploy
from mmpatch.backbones import ConvMixer, PoolFormer, VisionTransformer
from mmpatch.blocks import ConvMixerBlock, MetaFormerBlock
from mmpatch.fast.forms import plain_forms, run
from mmpatch.layers import DropPath, LayerNorm2d
from mmpatch.mixers import Attention, DepthwiseConv, Pooling

import golden
from support import relative_error

SMALL = {'depths': (1, 1, 1, 1), 'dims': (8, 16, 24, 32)}
MIXED = {
    'PoolFormer of layer norms': lambda **kw: PoolFormer(**SMALL, norm_cfg='LN2d', **kw),
    'PoolFormer of batch norms': lambda **kw: PoolFormer(**SMALL, norm_cfg='BN', **kw),
    'PoolFormer of four groups': lambda **kw: PoolFormer(
        **SMALL, norm_cfg={'type': 'GN', 'num_groups': 4}, act='SiLU', layer_scale=None, **kw
    ),
    'PoolFormer of attention': lambda **kw: PoolFormer(
        **SMALL, act='ReLU', token_mixers={'type': 'Attention', 'num_heads': 2}, **kw
    ),
    'ViT with layer scale': lambda **kw: VisionTransformer(
        'tiny', depths=(1, 1, 1, 1), dims=24, layer_scale=0.1, qkv_bias=False, **kw
    ),
    'ConvMixer without residual': lambda **kw: ConvMixer(
        '256/8', depths=(1, 1, 1, 1), dims=8, residual=False, act='ReLU', **kw
    ),
    'ConvMixer of frozen norms': lambda **kw: ConvMixer(
        '256/8', depths=(1, 1, 1, 1), dims=8, norm_eval=True, **kw
    ),
}
MODELS = {**TINY, **MIXED}


def trained(model, state, x):
    """Outputs, gradients and buffers of a training step from a state."""
    model.load_state_dict(copy.deepcopy(state))
    model.zero_grad()
    torch.manual_seed(1)  # of dropped paths
    outs = model(x)
    torch.manual_seed(2)
    sum((y * torch.randn_like(y)).sum() for y in outs).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return outs, {k: None if g is None else g.clone() for k, g in grads.items()}, model.state_dict()


@pytest.mark.parametrize('with_cp', [False, True], ids=['', 'with_cp'])
@pytest.mark.parametrize('drop_path', [0.0, 0.5], ids=['', 'drop_path'])
@pytest.mark.parametrize('name', MODELS)
def test_a_training_step_equals_the_plain_one(name, drop_path, with_cp, torch_seed):
    model = golden.randomised(MODELS[name](with_cp=with_cp))
    for stage in model.stages:
        for block in stage.blocks:
            block.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
    state = copy.deepcopy(model.train().state_dict())
    x = torch.randn(3, 3, 97, 130)
    with plain_forms():
        outs, grads, buffers = trained(model, state, x)
    assert all(g is not None for g in grads.values())
    largest = max(g.norm() for g in grads.values())
    fast_outs, fast_grads, fast_buffers = trained(model, state, x)
    for a, b in zip(fast_outs, outs, strict=True):
        assert relative_error(a, b) < 1e-5
    for key, grad in grads.items():
        # Some are zero by their nature, such as those of biases before a batch norm. That of a
        # depthwise bias is summed more exactly than by the plain form (held to float64 below).
        share = 3e-6 if key.endswith('token_mixer.conv.bias') else 1e-6
        error = (fast_grads[key] - grad).norm()
        assert error < 1e-5 * grad.norm() + share * largest, key
    for key, buffer in buffers.items():
        torch.testing.assert_close(fast_buffers[key], buffer, msg=key)


BLOCKS = {
    'pooling': lambda: MetaFormerBlock(4, Pooling, layer_scale=0.3),
    'attention': lambda: MetaFormerBlock(4, lambda d: Attention(d, 2), norm=LayerNorm2d),
    'scaled attention': lambda: MetaFormerBlock(
        4, lambda d: Attention(d, 2), norm=LayerNorm2d, layer_scale=0.3
    ),
    'convolution': lambda: ConvMixerBlock(4, lambda d: nn.Conv2d(d, d, 3, padding=1, groups=d)),
    'batch norm': lambda: MetaFormerBlock(4, Pooling, norm=nn.BatchNorm2d, act=nn.SiLU),
}


@pytest.mark.parametrize('name', BLOCKS)
def test_gradients_against_differences(name, torch_seed):
    block = golden.randomised(BLOCKS[name]()).double().train()
    x = torch.randn(2, 4, 3, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: run(block, x), (x, *block.parameters()))


@pytest.mark.parametrize('kernel_size', [5, 7, 9])
@pytest.mark.parametrize('size', [(3, 2), (17, 30)])
def test_gradients_of_large_depthwise_kernels_are_exact(size, kernel_size, torch_seed):
    block = golden.randomised(ConvMixerBlock(20, lambda d: DepthwiseConv(d, kernel_size))).train()
    x, grad = torch.randn(2, 3, 20, *size)
    exact = copy.deepcopy(block).double()
    exact(x.double()).backward(grad.double())
    run(block, x).backward(grad)
    for key in ('weight', 'bias'):
        ours, theirs = (getattr(b.token_mixer.conv, key).grad for b in (block, exact))
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='torch without oneDNN')
@pytest.mark.parametrize('make', [lambda model: model, deploy], ids=['', 'deployed'])
def test_onednn_is_used_and_can_be_turned_off(make, torch_seed):
    model, x = make(TINY['PoolFormer']().eval()), torch.randn(1, 3, 64, 64)
    for enabled in (True, False):
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=enabled), profile() as seen:
            model(x)
        assert any('mkldnn' in event.key for event in seen.key_averages()) == enabled


def saved_bytes(model, x):
    """Bytes that autograd keeps of a forward pass, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # kept, so that no other takes its place
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outs = model(x)
    assert outs[-1].requires_grad
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize(
    ('make', 'share', 'with_cp'),
    [
        (lambda **kw: PoolFormer('s12', out_norm=False, **kw), 0.5, 0.2),
        (lambda **kw: ConvMixer('1024/20', dims=64, out_norm=False, **kw), 0.6, 0.25),
        (lambda **kw: VisionTransformer('tiny', out_norm=False, **kw), 0.6, 0.1),
    ],
    ids=['PoolFormer', 'ConvMixer', 'ViT'],
)
def test_less_is_kept_for_the_backward_pass(make, share, with_cp, torch_seed):
    model, x = make().train(), torch.randn(2, 3, 128, 128)
    with plain_forms():
        plain = saved_bytes(model, x)
    assert saved_bytes(model, x) < share * plain
    assert saved_bytes(make(with_cp=True).train(), x) < with_cp * plain


@pytest.mark.parametrize('name', TINY)
def test_autocast_is_as_exact_as_in_the_plain_form(name, torch_seed):
    model = golden.randomised(TINY[name]()).train()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 64, 96)
    with plain_forms():
        exact, exact_grads, _ = trained(model, state, x)
        with torch.autocast('cpu', torch.bfloat16):
            plain, plain_grads, _ = trained(model, state, x)
    with torch.autocast('cpu', torch.bfloat16):
        fast, fast_grads, _ = trained(model, state, x)
    for a, b, reference in zip(fast, plain, exact, strict=True):
        assert a.dtype == b.dtype
        assert relative_error(a, reference) < 1.5 * relative_error(b, reference) + 1e-2
    whole = [
        torch.cat([g.flatten() for g in grads.values()])
        for grads in (fast_grads, plain_grads, exact_grads)
    ]
    assert relative_error(whole[0], whole[2]) < 1.5 * relative_error(whole[1], whole[2]) + 1e-2


def test_graphs_may_be_used_twice(torch_seed):
    block = golden.randomised(BLOCKS['scaled attention']())
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    loss = run(block, x).square().sum()
    once = torch.autograd.grad(loss, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, x), once)


def test_frozen_parts_get_no_gradient(torch_seed):
    block = golden.randomised(BLOCKS['pooling']())
    block.mlp.fc1.requires_grad_(False)
    run(block, torch.randn(2, 4, 5, 6)).sum().backward()
    assert block.mlp.fc1.weight.grad is None and block.mlp.fc2.weight.grad is not None
    # Zero, but there: distributed training waits for the gradient of every parameter.
    assert torch.equal(block.norm1.bias.grad, torch.zeros(4))


def test_inputs_stay_as_they_were(torch_seed):
    blocks = [make() for make in BLOCKS.values()]
    blocks += [ConvMixerBlock(4, mixer) for mixer in (DepthwiseConv, nn.Identity)]
    blocks.append(ConvMixerBlock(4, DepthwiseConv))
    blocks[-1].token_mixer.conv = nn.Identity()
    for block in map(golden.randomised, blocks):
        x = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
        kept = x.clone()
        with torch.no_grad():
            out = run(block, x)
            assert torch.equal(x, kept)
            assert relative_error(out, block(x)) < 1e-5


def test_whoever_looks_into_a_block_sees_the_plain_form(torch_seed):
    block = golden.randomised(BLOCKS['pooling']())
    x, seen = torch.randn(2, 4, 5, 6), []
    reference = run(block, x)
    handle = block.mlp.act.register_forward_hook(lambda *args: seen.append(args[2].shape))
    torch.testing.assert_close(run(block, x), reference)
    assert seen == [(2, 16, 5, 6)]
    handle.remove()
    torch.testing.assert_close(torch.func.vmap(lambda y: run(block, y[None])[0])(x), reference)
    counted = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counted:
        run(block, x)
    assert counted.get_total_flops() == 2 * 2 * 30 * 2 * 4 * 16


class OtherMlp(nn.Sequential):
    """Computes something else."""


def test_parts_of_other_kinds_are_called(torch_seed):
    block = golden.randomised(BLOCKS['pooling']())
    x = torch.randn(2, 4, 5, 6)
    block.mlp = OtherMlp(nn.Conv2d(4, 4, 1))
    torch.testing.assert_close(run(block, x), block(x))
    block = golden.randomised(BLOCKS['pooling']())
    block.token_mixer = nn.Conv2d(4, 4, 3, padding=1)
    block.mlp.act = nn.GELU(approximate='tanh')
    torch.testing.assert_close(run(block, x), block(x))
    block = golden.randomised(BLOCKS['pooling']()).train()
    block.drop_path = nn.Dropout(0.5)  # drops values, not samples
    outs = []
    for call in (block, lambda x: run(block, x)):
        torch.manual_seed(1)
        outs.append(call(x))
    torch.testing.assert_close(*outs)


def test_second_derivatives_need_the_plain_form(torch_seed):
    block = golden.randomised(BLOCKS['pooling']())
    x = torch.randn(2, 4, 5, 6, requires_grad=True)

    def twice():
        (grad,) = torch.autograd.grad(run(block, x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()

    with pytest.raises(RuntimeError, match='once_differentiable'):
        twice()
    with plain_forms():
        twice()
    assert x.grad.norm() > 0
    with pytest.raises(ZeroDivisionError), plain_forms():
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match='once_differentiable'):  # fast again
        twice()
