"""The stand-in for mmcv's compiled ops against torchvision, references, and compiled mmcv."""

import importlib.machinery
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision

import mmpatch
from mmpatch.compat import stand_in

mmcv = pytest.importorskip('mmcv')
from mmcv.ops import (  # noqa: E402
    RoIAlign,
    batched_nms,
    multi_scale_deform_attn,
    nms,
    sigmoid_focal_loss,
    soft_nms,
)


def compiled_ops():
    found = importlib.machinery.PathFinder.find_spec('mmcv._ext', mmcv.__path__)
    return found and importlib.util.module_from_spec(found)


EXT = compiled_ops()
needs_compiled = pytest.mark.skipif(EXT is None, reason='mmcv has no compiled ops')


def boxes(count, size=100.0):
    corners = torch.rand(count, 2) * size
    return torch.cat([corners, corners + torch.rand(count, 2) * size / 2 + 1], 1)


def rois(count):
    return torch.cat([torch.randint(0, 2, (count, 1)).float(), boxes(count, 60)], 1)


@pytest.mark.parametrize('count', [0, 1, 300])
def test_nms_equals_torchvision(torch_seed, count):
    b, s = boxes(count), torch.rand(count)
    dets, kept = nms(b, s, 0.5)
    assert torch.equal(kept, torchvision.ops.nms(b, s, 0.5))
    torch.testing.assert_close(dets, torch.cat([b[kept], s[kept, None]], 1))


def test_nms_with_inclusive_boxes(torch_seed):
    b, s = boxes(200).round(), torch.rand(200)
    expected = torchvision.ops.nms(b + torch.tensor([0.0, 0, 1, 1]), s, 0.4)
    assert torch.equal(nms(b, s, 0.4, offset=1)[1], expected)


@pytest.mark.parametrize('count', [1, 200])
def test_batched_nms_is_nms_within_each_class(torch_seed, count):
    b, s, labels = boxes(count), torch.rand(count), torch.randint(0, 5, (count,))
    _, kept = batched_nms(b, s, labels, {'type': 'nms', 'iou_threshold': 0.5})
    expected = torchvision.ops.batched_nms(b, s, labels, 0.5)
    assert torch.equal(kept, expected)
    single = [labels.eq(k).nonzero().flatten() for k in range(5)]
    alone = [mine[nms(b[mine], s[mine], 0.5)[1]] for mine in single if len(mine)]
    assert sorted(kept.tolist()) == sorted(torch.cat(alone).tolist())


def soft_nms_reference(b, s, iou_threshold, sigma, min_score, method):
    """Pixel by definition: take the best box, lower the others, drop the low ones, repeat."""
    b, s, left, out = (
        b.numpy().astype(float),
        s.numpy().astype(float).copy(),
        list(range(len(b))),
        [],
    )
    area = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    while left:
        best = max(left, key=lambda i: s[i])
        left.remove(best)
        out.append((best, s[best]))
        for i in left:
            w = min(b[i, 2], b[best, 2]) - max(b[i, 0], b[best, 0])
            h = min(b[i, 3], b[best, 3]) - max(b[i, 1], b[best, 1])
            inside = max(w, 0) * max(h, 0)
            iou = inside / (area[i] + area[best] - inside)
            if method == 'gaussian':
                s[i] *= np.exp(-iou * iou / sigma)
            elif iou >= iou_threshold:
                s[i] *= 1 - iou if method == 'linear' else 0
        left = [i for i in left if s[i] >= min_score]
    return out


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_equals_its_definition(torch_seed, method):
    b, s = boxes(80), torch.rand(80)
    dets, kept = soft_nms(b, s, 0.3, 0.5, 0.05, method)
    expected = soft_nms_reference(b, s, 0.3, 0.5, 0.05, method)
    assert kept.tolist() == [i for i, _ in expected]
    np.testing.assert_allclose(dets[:, 4], [score for _, score in expected], atol=1e-5)
    torch.testing.assert_close(dets[:, :4], b[kept])


@pytest.mark.parametrize('count', [0, 1, 40])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_equals_torchvision(torch_seed, count, sampling_ratio, aligned):
    x = torch.randn(2, 5, 30, 40, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    r = rois(count)
    ours = RoIAlign((7, 5), 0.5, sampling_ratio, aligned=aligned)(x, r)
    theirs = torchvision.ops.roi_align(y, r, (7, 5), 0.5, sampling_ratio, aligned)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(theirs)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_gradient_in_double(torch_seed, sampling_ratio):
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    r = torch.tensor([[0, 1, 2, 11, 9], [1, 0.3, 0.4, 5, 8]], dtype=torch.float64)
    align = RoIAlign((2, 3), 0.5, sampling_ratio)
    assert align(x, r).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda maps: align(maps, r), x)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_roi_align_takes_halves_under_autocast(torch_seed, dtype):
    x, r = torch.randn(2, 3, 16, 16, requires_grad=True), rois(4)
    with torch.autocast('cpu', dtype):
        out = RoIAlign(4, 0.25)(x.to(dtype), r)
    expected = RoIAlign(4, 0.25)(x, r)
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)
    expected_grad = torch.autograd.grad(expected.sum(), x)[0]
    (grad,) = torch.autograd.grad(out.float().sum(), x)
    torch.testing.assert_close(grad, expected_grad, atol=0.1, rtol=0.05)


def test_roi_align_takes_bfloat16(torch_seed):
    x, r = torch.randn(2, 3, 16, 16), rois(4)
    out = RoIAlign(4, 0.25)(x.bfloat16(), r)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), RoIAlign(4, 0.25)(x, r), atol=0.05, rtol=0.05)


def test_focal_loss_is_that_of_the_detector(torch_seed):
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    target = torch.tensor([0, 2, 3, 3, 1])  # 3 is the background
    one_hot = torch.nn.functional.one_hot(target, 4)[:, :3]
    x = torch.randn(5, 3, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours = sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none')
    theirs = py_sigmoid_focal_loss(y, one_hot, gamma=2.0, alpha=0.25, reduction='none')
    torch.testing.assert_close(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def make_deformable_inputs(shapes, batch=2, heads=3, channels=4, queries=5, points=2, **kwargs):
    """Value, shapes, starts, locations (a third of them outside the map) and weights."""
    sizes = [height * width for height, width in shapes]
    value = torch.randn(batch, sum(sizes), heads, channels, **kwargs)
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, **kwargs) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(shapes), points, **kwargs)
    starts = torch.tensor([sum(sizes[:i]) for i in range(len(sizes))])
    return value, torch.tensor(shapes), starts, locations, weights


def deformable_attention(value, shapes, starts, locations, weights, step=64):
    """As mmcv's module calls it on CUDA; on a CPU it takes a path of its own."""
    function = multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    return function.apply(value, shapes, starts, locations, weights, step)


@pytest.fixture
def without_compiled_ops(monkeypatch):
    """Compiled mmcv has no deformable attention for a CPU."""
    monkeypatch.setattr(multi_scale_deform_attn, 'ext_module', stand_in)


@pytest.mark.parametrize('step', [1, 2, 64])
@pytest.mark.parametrize(
    'shapes', [[(1, 1)], [(7, 5)], [(6, 9), (3, 5), (2, 3)], [(1, 8), (8, 1), (4, 4), (1, 1)]]
)
def test_deformable_attention_equals_mmcv(without_compiled_ops, torch_seed, shapes, step):
    value, sizes, starts, locations, weights = make_deformable_inputs(shapes, batch=3)
    assert ((locations < 0) | (locations > 1)).any(-1).float().mean() > 0.2
    results = []
    for ours in (True, False):
        inputs = [x.clone().requires_grad_() for x in (value, locations, weights)]
        if ours:
            out = deformable_attention(inputs[0], sizes, starts, *inputs[1:], step)
        else:
            reference = multi_scale_deform_attn.multi_scale_deformable_attn_pytorch
            out = reference(inputs[0], sizes, *inputs[1:])
        torch.manual_seed(1)
        (out * torch.randn_like(out)).sum().backward()
        results.append([out, *(x.grad for x in inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('shapes', [[(3, 4)], [(4, 3), (2, 2), (1, 3)]])
def test_deformable_attention_gradient_in_double(without_compiled_ops, torch_seed, shapes):
    value, sizes, starts, *others = make_deformable_inputs(
        shapes, batch=1, heads=2, channels=2, queries=3, dtype=torch.float64
    )
    inputs = [x.requires_grad_() for x in (value, *others)]

    def attend(value, locations, weights):
        return deformable_attention(value, sizes, starts, locations, weights)

    assert attend(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_deformable_attention_computes_halves_in_full_precision(
    without_compiled_ops, torch_seed, dtype
):
    """Rounded are the inputs, by mmcv, and the results."""
    value, sizes, starts, locations, weights = make_deformable_inputs([(6, 9), (3, 5)])
    halves = [x.to(dtype).requires_grad_() for x in (value, locations, weights)]
    fulls = [x.detach().float().requires_grad_() for x in halves]
    out = deformable_attention(halves[0], sizes, starts, *halves[1:])
    expected = deformable_attention(fulls[0], sizes, starts, *fulls[1:])
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
    out.sum().backward()
    expected.sum().backward()
    for half, full in zip(halves, fulls, strict=True):
        assert half.grad.dtype == dtype and torch.equal(half.grad, full.grad.to(dtype))


@pytest.mark.mmcv_ops
@needs_compiled
def test_equals_compiled_mmcv(torch_seed):
    b, s, x, r = boxes(300), torch.rand(300), torch.randn(2, 5, 30, 40), rois(40)
    for offset in (0, 1):
        expected = EXT.nms(b, s, iou_threshold=0.5, offset=offset)
        assert torch.equal(stand_in.nms(b, s, 0.5, offset), expected)
    for method in (0, 1, 2):
        ours, theirs = torch.zeros(300, 5), torch.zeros(300, 5)
        args = {
            'iou_threshold': 0.3,
            'sigma': 0.5,
            'min_score': 0.05,
            'method': method,
            'offset': 0,
        }
        kept = stand_in.softnms(b, s, ours, **args)
        assert torch.equal(kept, EXT.softnms(b, s, theirs, **args))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for module in (stand_in, EXT):
        args = {
            'aligned_height': 7,
            'aligned_width': 7,
            'spatial_scale': 0.5,
            'sampling_ratio': 0,
            'pool_mode': 1,
            'aligned': True,
        }
        none, out, grad = torch.zeros(0), torch.zeros(40, 5, 7, 7), torch.zeros_like(x)
        module.roi_align_forward(x, r, out, none, none, **args)
        module.roi_align_backward(torch.ones_like(out), r, none, none, grad, **args)
        if module is stand_in:
            expected = out, grad
    torch.testing.assert_close((out, grad), expected, atol=1e-5, rtol=1e-5)


def test_other_ops_say_what_they_need():
    from mmcv.ops import deform_conv2d

    x = torch.randn(1, 2, 8, 8)
    with pytest.raises(NotImplementedError, match='deform_conv_forward.*pip install'):
        deform_conv2d(x, torch.zeros(1, 18, 6, 6), torch.randn(2, 2, 3, 3))
    with pytest.raises(NotImplementedError, match='pool_mode="max"'):
        RoIAlign(2, pool_mode='max')(x, torch.tensor([[0.0, 0, 0, 4, 4]]))


@pytest.mark.process
@pytest.mark.parametrize(
    ('file', 'content', 'used'),
    [
        ('_ext.py', 'marker = "compiled"', 'compiled'),
        (f'_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}', 'of another torch', 'stand-in'),
    ],
)
def test_compiled_ops_are_used_if_they_load(tmp_path, file, content, used):
    """A package called mmcv with an _ext of its own that loads, or does not."""
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / file).write_text(content)
    code = 'import mmpatch, mmcv._ext as e; print(vars(e).get("marker", "stand-in"))'
    path = f'{tmp_path}:{mmpatch.__path__[0]}/..'
    result = subprocess.run(
        [sys.executable, '-c', code], env={'PYTHONPATH': path}, capture_output=True, text=True
    )
    assert result.stdout.split()[-1:] == [used], result.stderr
    assert (f'{file} cannot be loaded' in result.stdout) == (used == 'stand-in')
