"""Depthwise convolution as an autograd function, for the gradient of large kernels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmpatch.fast.layout import TILE, channels_last


class DepthwiseMixing(torch.autograd.Function):
    """Depthwise convolution of an odd kernel, the gradient of its weight taken 3x3 taps at a time.

    oneDNN has a kernel for that gradient with 3x3 taps; with more it takes many times as long for a
    tap, and longer than all the rest of a training step (docs/performance.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); the weight is (C, 1, k, k)."""
        if ctx is not None:
            ctx.save_for_backward(x, weight, bias)
        return F.conv2d(x, weight, bias, 1, weight.shape[2] // 2, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of the inputs of :meth:`forward`."""
        x, weight, bias = ctx.saved_tensors
        grad = channels_last(grad)
        dx = _backward(grad, x, weight, of_weight=False)
        dw = _of_weight(grad, channels_last(x), weight.shape[2])
        return dx, dw, None if bias is None else grad.sum((0, 2, 3))


def _backward(grad: Tensor, x: Tensor, weight: Tensor, of_weight: bool) -> Tensor:
    """Gradient of the weight, or of the input, as oneDNN computes it."""
    pad, mask = weight.shape[2] // 2, [not of_weight, of_weight, False]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], len(weight), mask
    )[int(of_weight)]


def _of_weight(grad: Tensor, x: Tensor, size: int) -> Tensor:
    """(B, C, H, W), twice -> (C, 1, size, size).

    One map at a time, since sums of many numbers are less exact, and of that some channels, which
    stay in the cache.
    """
    step = max(16, TILE // (x.shape[2] * x.shape[3]) // 16 * 16)
    weight = x.new_zeros(x.shape[1], 1, size, size)
    for g, y in zip(grad, x, strict=True):
        parts = zip(weight.split(step), g.split(step), y.split(step), strict=True)
        for total, some_g, some_y in parts:
            total += _of_map(some_g, some_y, size)
    return weight


def _of_map(grad: Tensor, x: Tensor, size: int) -> Tensor:
    """(C, H, W), twice -> (C, 1, size, size).

    With zeros around the map and one row after the other, a tap in row i and column j reads the
    input ``i * columns + j`` places away: a block of taps sees a view of it.
    """
    channels, height, width = x.shape
    half, count = size // 2, -(-size // 3)
    margin = max(2, half, 3 * count - 1 - half)
    rows, columns = height + margin, width + margin
    edge, inside = (margin + 1) * (columns + 1), rows * columns

    def in_a_row(y: Tensor) -> Tensor:
        row = y.new_zeros(inside + 2 * edge, channels)
        middle = row[edge : edge + inside].view(rows, columns, channels)
        middle[1 : height + 1, 1 : width + 1] = y.permute(1, 2, 0)
        return row

    def shifted(row: Tensor, i: int, j: int) -> Tensor:
        start = edge + i * columns + j
        middle = row[start : start + inside].view(1, rows, columns, channels)
        return middle.permute(0, 3, 1, 2)

    g, z = shifted(in_a_row(grad), 0, 0), in_a_row(x)
    taps = x.new_empty(channels, 1, 3 * count, 3 * count)
    for i in range(0, 3 * count, 3):
        for j in range(0, 3 * count, 3):
            block = taps[..., i : i + 3, j : j + 3]
            y = shifted(z, i + 1 - half, j + 1 - half)
            block.copy_(_backward(g, y, block, of_weight=True))
    return taps[..., :size, :size]
