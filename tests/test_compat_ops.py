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
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    RoIAlign,
    batched_nms,
    deform_conv,
    deform_conv2d,
    modulated_deform_conv,
    modulated_deform_conv2d,
    multi_scale_deform_attn,
    nms,
    sigmoid_focal_loss,
    soft_nms,
)

from support import COMPILED_OPS, needs_stand_in  # noqa: E402

EXT = COMPILED_OPS and importlib.util.module_from_spec(COMPILED_OPS)
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


@needs_stand_in
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


@needs_stand_in
def test_roi_align_takes_bfloat16(torch_seed):
    x, r = torch.randn(2, 3, 16, 16), rois(4)
    out = RoIAlign(4, 0.25)(x.bfloat16(), r)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), RoIAlign(4, 0.25)(x, r), atol=0.05, rtol=0.05)


@needs_stand_in
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


@pytest.fixture
def without_compiled_convolutions(monkeypatch):
    monkeypatch.setattr(deform_conv, 'ext_module', stand_in)
    monkeypatch.setattr(modulated_deform_conv, 'ext_module', stand_in)


#: Stride, padding, dilation, groups, groups of offsets.
CONVOLUTIONS = [
    (1, 1, 1, 1, 1),
    (2, 1, 1, 2, 1),
    ((1, 2), (2, 0), (2, 1), 1, 2),
    (1, 0, 1, 4, 4),
]


def make_convolution(version, setting, batch=2, size=(7, 6), kernel=(3, 2), **kwargs):
    """Map, offset, (mask,) weight (and bias) of a deformable convolution of 4 to 8 channels."""
    stride, padding, dilation, groups, deform_groups = setting
    weight = torch.randn(8, 4 // groups, *kernel, **kwargs)
    x = torch.randn(batch, 4, *size, **kwargs)
    places = torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups)
    points = deform_groups * kernel[0] * kernel[1]
    offset = torch.randn(batch, 2 * points, *places.shape[2:], **kwargs)
    mask = torch.rand(batch, points, *places.shape[2:], **kwargs)
    bias = torch.randn(8, **kwargs)
    return [x, offset, weight] if version == 1 else [x, offset, mask, weight, bias]


def convolve(tensors, setting, step=32):
    """By mmcv's own function, of version 1 for three tensors, else of version 2."""
    if len(tensors) == 3:
        return deform_conv2d(*tensors, *setting, False, step)
    return modulated_deform_conv2d(*tensors, *setting)


@pytest.mark.parametrize('setting', CONVOLUTIONS)
@pytest.mark.parametrize(('version', 'batch'), [(1, 1), (1, 6), (2, 1), (2, 5)])
def test_deformable_convolution_equals_torchvision(
    without_compiled_convolutions, torch_seed, version, batch, setting
):
    given = make_convolution(version, setting, batch)
    results = []
    for ours in (True, False):
        x, offset, *others = tensors = [tensor.clone().requires_grad_() for tensor in given]
        if ours:
            out = convolve(tensors, setting, step=3 if batch == 6 else 32)
        else:
            mask, weight, bias = others if version == 2 else (None, *others, None)
            theirs = torchvision.ops.deform_conv2d
            out = theirs(x, offset, weight, bias, *setting[:3], mask)
        torch.manual_seed(1)
        (out * torch.randn_like(out)).sum().backward()
        results.append([out, *(tensor.grad for tensor in tensors)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('setting', CONVOLUTIONS)
@pytest.mark.parametrize('version', [1, 2])
def test_deformable_convolution_gradient_in_double(
    without_compiled_convolutions, torch_seed, version, setting
):
    tensors = make_convolution(version, setting, 1, (3, 4), (2, 2), dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    assert convolve(inputs, setting).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda *x: convolve(x, setting), inputs)


@pytest.mark.parametrize('setting', CONVOLUTIONS)
def test_points_one_pixel_off_the_map_have_no_slope(
    without_compiled_convolutions, torch_seed, setting
):
    """As in mmcv; at all other whole pixels torchvision and mmcv take the same side."""
    x, offset, weight = make_convolution(1, setting)
    slopes = []
    for convolution in (deform_conv2d, torchvision.ops.deform_conv2d):
        whole = offset.round().requires_grad_()
        none = () if convolution is deform_conv2d else (None,)
        rest = setting if convolution is deform_conv2d else setting[:3]
        convolution(x, whole, weight, *none, *rest).sum().backward()
        slopes.append(whole.grad)
    pairs = [value if isinstance(value, tuple) else (value, value) for value in setting[:3]]
    dropped = 0
    for batch, channel, *place in np.ndindex(*offset.shape):
        point, axis = divmod(channel, 2)
        tap = divmod(point % weight[0, 0].numel(), weight.shape[3])[axis]
        stride, padding, dilation = (pair[axis] for pair in pairs)
        start = place[axis] * stride - padding + tap * dilation
        if start + whole[batch, channel, place[0], place[1]] == -1:
            slopes[1][batch, channel, place[0], place[1]] = 0
            dropped += 1
    assert dropped > 10
    torch.testing.assert_close(*slopes, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_deformable_convolution_takes_halves_under_autocast(
    without_compiled_convolutions, torch_seed, version, dtype
):
    """The layer before gives offsets in halves, and mmcv makes the rest halves as well."""
    setting = CONVOLUTIONS[0]
    fulls = [t.to(dtype).float() for t in make_convolution(version, setting)]
    mixed = [t.to(dtype) if i == 1 else t.clone() for i, t in enumerate(fulls)]
    for tensor in (*fulls, *mixed):
        tensor.requires_grad_()
    with torch.autocast('cpu', dtype):
        out = convolve(mixed, setting)
    expected = convolve(fulls, setting)
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
    out.sum().backward()
    expected.sum().backward()
    for half, full in zip(mixed, fulls, strict=True):
        assert half.grad.dtype == half.dtype
        torch.testing.assert_close(half.grad.to(dtype), full.grad.to(dtype))


def test_deformable_convolution_without_offset_is_a_convolution(
    without_compiled_convolutions, torch_seed
):
    x, weight = torch.randn(2, 4, 9, 8), torch.randn(6, 2, 3, 3)
    expected = torch.nn.functional.conv2d(x, weight, None, 2, 1, 1, 2)
    offset, mask = torch.zeros(2, 18, 5, 4), torch.ones(2, 9, 5, 4)
    for layer, others in (
        (DeformConv2d(4, 6, 3, 2, 1, groups=2), [offset]),
        (ModulatedDeformConv2d(4, 6, 3, 2, 1, groups=2, bias=False), [offset, mask]),
    ):
        layer.weight.data.copy_(weight)
        torch.testing.assert_close(layer(x, *others), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-3), (torch.float32, 1e-1)])
def test_deformable_convolution_has_the_numbers_of_mmcv(
    without_compiled_convolutions, dtype, tolerance
):
    """Input, weights and results are those of mmcv's own test of version 1."""
    layer = DeformConv2dPack(1, 1, 2, im2col_step=2).to(dtype)
    places = [
        *([0.1, 0.4, 0.6, 0.1], [0.3, 0.2, 0.1, 0.3], [0.5, 0.5, 0.2, 0.8], [0.8, 0.3, 0.9, 0.1]),
        *([0.3, 0.1, 0.2, 0.5], [0.3, 0.7, 0.5, 0.3], [0.6, 0.2, 0.5, 0.3], [0.4, 0.1, 0.8, 0.4]),
    ]
    with torch.no_grad():
        layer.conv_offset.weight.copy_(torch.tensor(places).view(8, 1, 2, 2))
        layer.conv_offset.bias.copy_(torch.tensor([0.7, 0.1, 0.8, 0.5, 0.6, 0.5, 0.4, 0.7]))
        layer.weight.copy_(torch.tensor([0.4, 0.2, 0.1, 0.9]).view(1, 1, 2, 2))
    x = torch.tensor([[1.0, 2, 3], [0, 1, 2], [3, 5, 2]], dtype=dtype)
    x = x.repeat(10, 1, 1, 1).requires_grad_()
    out = layer(x)
    out.sum().backward()
    rows = [[1.44, 2.88, 0, 1.44], [-0.72, -1.44, 0, -0.72], [0] * 4, [0] * 4]
    rows += [[-0.10, -0.20, 0, -0.10], [-0.08, -0.16, 0, -0.08]]
    rows += [[-0.54, -1.08, 0, -0.54]] * 2
    for found, expected in (
        (out[3], [1.65, 0, 0, 0]),
        (x.grad[7], [-0.666, 0.204, 0, 0.030, -0.416, 0.012, 0, 0.252, 0.129]),
        (layer.conv_offset.weight.grad / 10, rows),
        (layer.conv_offset.bias.grad / 10, [1.44, -0.72, 0, 0, -0.10, -0.08, -0.54, -0.54]),
        (layer.weight.grad / 10, [3.62, 0, 0.40, 0.18]),
    ):
        expected = torch.tensor(expected, dtype=dtype).view(found.shape)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=tolerance)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_modulated_convolution_has_the_numbers_of_mmcv(without_compiled_convolutions, dtype):
    """Input, weights and results are those of mmcv's own test of version 2."""
    layer = ModulatedDeformConv2dPack(1, 1, (2, 2), padding=1, bias=False).to(dtype)
    layer.weight.data.fill_(1)
    x = torch.tensor([[1.0, 2, 3]] * 3, dtype=dtype).view(1, 1, 3, 3).requires_grad_()
    out = layer(x)
    out.sum().backward()
    edge, middle = [0.5, 1.5, 2.5, 1.5], [1, 3, 5, 3]
    rows = [[-7, -4, 0, 0], [-9, 7.5, -6, 5], [-4, -7, 0, 0], [-7.5, -9, -5, -6]]
    rows += [[-7, -4, -7, -4], [-6, 5, -9, 7.5], [-4, -7, -4, -7], [-5, -6, -7.5, -9]]
    rows += [[10.5, 6, 7, 4], [6, 10.5, 4, 7], [7, 4, 10.5, 6], [4, 7, 6, 10.5]]
    for found, expected in (
        (out, [edge, middle, middle, edge]),
        (x.grad, [[2] * 3] * 3),
        (layer.weight.grad, [9] * 4),
        (layer.conv_offset.weight.grad, rows),
        (layer.conv_offset.bias.grad, [-3, -1.5] * 4 + [4.5] * 4),
    ):
        expected = torch.tensor(expected, dtype=dtype).view(found.shape)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_modulated_convolution_reads_larger_maps_as_mmcv_does(
    without_compiled_convolutions, torch_seed
):
    """mmdet's DyHead relies on it: mmcv reads by the output's size from the start of each image."""
    x, weight = torch.randn(2, 4, 3, 5), torch.randn(8, 4, 3, 3)
    offset, mask = torch.randn(2, 18, 6, 9), torch.rand(2, 9, 6, 9)
    read = [[image.flatten().tolist() for image in maps] for maps in (offset, mask)]
    small = [
        torch.tensor([image[: channels * 15] for image in images]).view(2, channels, 3, 5)
        for images, channels in zip(read, (18, 9), strict=True)
    ]
    for tensor in (offset, mask, *small):
        tensor.requires_grad_()
    out = modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
    expected = torchvision.ops.deform_conv2d(x, small[0], weight, None, 1, 1, 1, small[1])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    for large, part in zip((offset, mask), small, strict=True):
        found = large.grad.flatten(1)
        count = part[0].numel()
        torch.testing.assert_close(found[:, :count], part.grad.flatten(1), atol=1e-4, rtol=1e-4)
        assert not found[:, count:].any()


def test_deformable_convolution_keeps_the_refusals_of_mmcv(without_compiled_convolutions):
    x, offset, weight = make_convolution(1, CONVOLUTIONS[0], batch=5)
    with pytest.raises(AssertionError, match='batch size must be divisible by im2col_step'):
        convolve([x, offset, weight], CONVOLUTIONS[0], step=2)
    for arguments in ({'bias': True}, {'groups': 2}):
        with pytest.raises(AssertionError):
            DeformConv2d(3, 4, 3, **arguments)


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


@needs_stand_in
def test_other_ops_say_what_they_need():
    from mmcv.ops import roi_pool

    known = (
        r'only for deform_conv, modulated_deform_conv, ms_deform_attn, nms, roi_align, .*softnms'
    )
    with pytest.raises(NotImplementedError, match=f'roi_pool_forward needs .*{known}.*pip install'):
        roi_pool(torch.randn(1, 2, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), 2)
    with pytest.raises(NotImplementedError, match='pool_mode="max"'):
        RoIAlign(2, pool_mode='max')(torch.randn(1, 2, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]))


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
