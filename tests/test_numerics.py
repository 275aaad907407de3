"""Inputs at the edges of every family, in float32 and in bfloat16, against float64."""

import copy

import pytest
import torch
from test_families import TINY

from mmpatch.layers.norm import make_norm_factory

import golden
from support import relative_error

HALF = torch.bfloat16
#: Largest relative errors of outputs, and of gradients.
BOUNDS = {torch.float32: (1e-5, 1e-4), HALF: (0.1, 0.3)}

#: Networks with a matrix between all places, which takes ten seconds at 1024 x 1024.
BETWEEN_ALL = ('full Container', 'PAM', 'MH-MLP')


def draw_input(kind, stride):
    """Two images, in float64; ``stride`` pixels are one of the last map."""
    if kind == 'constant image':
        return torch.tensor([1.7, -2.0]).double().view(2, 1, 1, 1).expand(2, 3, 64, 64)
    size = (stride, stride) if kind == 'map of one pixel' else (64, 96)
    return torch.randn(2, 3, *size, dtype=torch.float64)


def enlarge(module, args, kwargs):
    """Hook that multiplies all maps and tokens that a module gets."""
    return tuple(None if x is None else x * 1e4 for x in args), kwargs


def compute(model, x, dtype):
    """Outputs, and gradients of their mean square, each in one vector of float64."""
    with torch.autocast('cpu', dtype, enabled=dtype == HALF):
        outs = model(x)
    sum(y.to(x.dtype).square().mean() for y in outs).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [torch.cat([y.detach().flatten().double() for y in ys]) for ys in (outs, gradients)]


@pytest.mark.parametrize(
    'kind', ['constant image', 'map of one pixel', 'ordinary', 'large activations']
)
@pytest.mark.parametrize('name', TINY)
def test_unusual_inputs(name, kind, torch_seed):
    model = golden.randomize(TINY[name]())
    if kind == 'large activations':
        model.stages[0].register_forward_pre_hook(enlarge, with_kwargs=True)
    x = draw_input(kind, max(model.out_strides))
    exact = compute(copy.deepcopy(model).double(), x, torch.float64)
    for dtype, bounds in BOUNDS.items():
        found = compute(copy.deepcopy(model), x.float(), dtype)
        assert all(y.isfinite().all() for y in found)
        pairs = list(zip(found, exact, bounds, strict=True))
        # Without a norm before it, softmax saturates, and what is left of its gradient is rounding.
        for y, reference, bound in pairs[: 1 if kind == 'large activations' else 2]:
            assert relative_error(y, reference) < bound, dtype


@pytest.mark.parametrize('name', TINY)
def test_images_of_1024_pixels(name, torch_seed):
    """float32 is the reference: float64 takes ten seconds."""
    model = golden.randomize(TINY[name]())
    size = 1024, 256 if name in BETWEEN_ALL else 1024
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast('cpu', HALF):
            half = model(x)
    for y, reference, channels, stride in zip(
        half, exact, model.out_channels, model.out_strides, strict=True
    ):
        assert y.shape == reference.shape and y.shape[:2] == (1, channels)
        assert all(abs(a - b / stride) <= 1 for a, b in zip(y.shape[2:], size, strict=True))
        assert reference.isfinite().all() and relative_error(y, reference) < 0.05


@pytest.mark.parametrize('norm', ['GN1', 'GN', 'LN2d'])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_statistics_of_norms_are_in_float32_under_autocast(norm, layout, device, torch_seed):
    """Sums in bfloat16 would be wrong by some 3 % in the output, 13 % in the gradient."""
    norm = make_norm_factory(norm)(64).to(device)
    x = (torch.randn(2, 64, 96, 96, device=device) + 10).to(HALF).contiguous(memory_format=layout)
    dim = (1,) if hasattr(norm, 'normalized_shape') else (2, 3, 4)
    exact = x.double() if dim == (1,) else x.double().unflatten(1, (norm.num_groups, -1))
    exact = (exact - exact.mean(dim, keepdim=True)) / exact.var(dim, False, keepdim=True).sqrt()
    x.requires_grad_()
    with torch.autocast(device, HALF):
        y = norm(x)
    assert relative_error(y, exact.view(x.shape)) < 4e-3
    weights = torch.randn_like(y, dtype=torch.float32)
    (y * weights).sum().backward()
    learned = (weights.double() * exact.view(x.shape)).sum((0, 2, 3))
    assert norm.weight.grad.dtype == torch.float32
    assert relative_error(norm.weight.grad, learned) < 2e-2
