"""Average pooling, the token mixer of PoolFormer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpatch.mixers.tokens import StaticMixer
from mmpatch.registry import MODELS


@MODELS.register_module()
class Pooling(StaticMixer):
    """Mean of the neighbourhood minus the token itself (https://arxiv.org/abs/2111.11418, eq. 4).

    Positions outside the map do not count, so a constant map is mixed to zero.

    Args:
        dim: Channels; any, pooling has no parameters.
        pool_size: Side of the neighbourhood, odd.

    Raises:
        ValueError: If ``pool_size`` is not odd and positive.
    """

    def __init__(self, dim: int, pool_size: int = 3) -> None:
        super().__init__()
        if pool_size < 1 or pool_size % 2 == 0:
            raise ValueError(f'pool_size must be odd and positive, got {pool_size}')
        self.pool = AveragePool(pool_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.pool(x) - x


class AveragePool(nn.AvgPool2d):
    """Average pooling of stride 1 to maps of the same size; positions outside do not count.

    The gradient of the pooling kernels is wrong on CUDA in channels_last memory with padding, up to
    torch 2.13 (https://github.com/pytorch/pytorch/issues/188344), so it is computed with the
    forward kernel here. Traces, and layers with another stride, padding or form of kernel size,
    have torch's own gradient.

    Args:
        pool_size: Side of the window, odd.
    """

    def __init__(self, pool_size: int) -> None:
        super().__init__(pool_size, 1, pool_size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        size: Any = self.kernel_size
        same = isinstance(size, int) and size % 2 and self.padding == size // 2
        keeps_size = same and self.stride == 1 and not self.ceil_mode
        # A trace holds torch's operators only.
        learns = x.requires_grad and torch.is_grad_enabled() and not torch.jit.is_tracing()
        if not learns or not keeps_size or self.divisor_override:
            return super().forward(x)
        return _pool(x, size, self.count_include_pad, False)


def _pool(x: Tensor, size: int, count_include_pad: bool, transposed: bool) -> Tensor:
    """Average pooling P = D S of stride 1 and size k, or its transpose S D.

    S averages over k * k positions, zeros outside included, and is symmetric; D divides by the
    share of positions that lie inside, or is the identity where those outside count.
    """
    # torch.compile refuses functions with a forward-mode derivative.
    function = _SameSizePool if torch.compiler.is_compiling() else _DualSameSizePool
    return function.apply(x, size, count_include_pad, transposed)


class _SameSizePool(torch.autograd.Function):
    """:func:`_pool` with its transpose as gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: int, count_include_pad: bool, transposed: bool) -> Tensor:
        half = size // 2
        if not transposed:
            return F.avg_pool2d(x, size, 1, half, count_include_pad=count_include_pad)
        if not count_include_pad:
            x = x / F.avg_pool2d(x.new_ones(1, *x.shape[-2:]), size, 1, half)
        return F.avg_pool2d(x, size, 1, half)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.size, ctx.count_include_pad, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _pool(grad, ctx.size, ctx.count_include_pad, not ctx.transposed), None, None, None


class _DualSameSizePool(_SameSizePool):
    """The same with a forward-mode derivative."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _pool(tangent, ctx.size, ctx.count_include_pad, ctx.transposed)
