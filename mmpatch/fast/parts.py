"""Norms as pairs of functions, forward and backward."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpatch.fast.layout import maps, tokens

aten = torch.ops.aten


class GroupNorm(NamedTuple):
    """Statistics of each sample and group of channels."""

    groups: int
    eps: float

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> the same normalised, and what ``backward`` needs besides."""
        return torch.native_group_norm(x, weight, bias, *self._sizes(x), self.groups, self.eps)

    def again(self, x: Tensor, weight: Tensor, bias: Tensor, *stats: Tensor) -> Tensor:
        """What ``forward`` gave."""
        return self.forward(x, weight, bias)[0]

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, *stats: Tensor) -> Any:
        """Gradients of the input, the weight and the bias."""
        return aten.native_group_norm_backward(
            grad, x, *stats, weight, *self._sizes(x), self.groups, [True, True, True]
        )

    def _sizes(self, x: Tensor) -> tuple[int, int, int]:
        return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


class LayerNorm(NamedTuple):
    """Statistics of each token."""

    eps: float

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> the same normalised, and what ``backward`` needs besides."""
        out, *stats = torch.native_layer_norm(tokens(x), [x.shape[1]], weight, bias, self.eps)
        return maps(out, x), *stats

    def again(self, x: Tensor, weight: Tensor, bias: Tensor, *stats: Tensor) -> Tensor:
        """What ``forward`` gave."""
        return self.forward(x, weight, bias)[0]

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, *stats: Tensor) -> Any:
        """Gradients of the input, the weight and the bias."""
        out, *affine = aten.native_layer_norm_backward(
            tokens(grad), tokens(x), [x.shape[1]], *stats, weight, weight, [True, True, True]
        )
        return maps(out, x), *affine


class BatchNorm(NamedTuple):
    """Statistics of each channel, of the batch or as they are stored."""

    running_mean: Tensor
    running_var: Tensor
    training: bool
    momentum: float
    eps: float

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> the same normalised, and what ``backward`` needs besides."""
        out, *stats = torch.native_batch_norm(
            x, weight, bias, self[0], self[1], self.training, self.momentum, self.eps
        )
        if not self.training:
            # The stored statistics may be others by the time of the backward pass.
            stats = [statistic.clone() for statistic in self.stored()]
        return out, *stats

    def again(self, x: Tensor, weight: Tensor, bias: Tensor, *stats: Tensor) -> Tensor:
        """What ``forward`` gave, without another step of the running statistics."""
        scale, shift = self.affine(weight, bias, *stats)
        return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1))

    def stored(self) -> tuple[Tensor, Tensor]:
        """Mean and inverse deviation as they are stored."""
        return self.running_mean, torch.rsqrt(self.running_var + self.eps)

    def affine(
        self, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scale and shift, (C,), that the norm is with such statistics."""
        scale = weight * rstd
        return scale, bias - mean * scale

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, *stats: Tensor) -> Any:
        """Gradients of the input, the weight and the bias."""
        mean, rstd = stats
        var = rstd**-2 - self.eps
        return aten.native_batch_norm_backward(
            grad, x, weight, mean, var, mean, rstd, self.training, self.eps, [True, True, True]
        )


Norm = GroupNorm | LayerNorm | BatchNorm
