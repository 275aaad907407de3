"""Residual branches whose norms, scales and sums are folded into their products.

A block is a row of them; a stage holds them one by one, so that nobody keeps what one took in while
the next one runs, and its memory, still in the cache, serves again.

All take and give (B, C, H, W) in channels_last memory, which they see as (B, H, W, C) or as tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpatch.fast.layout import channels_last, maps, step, tiles, tokens
from mmpatch.fast.products import ACTIVATIONS, attributes, linear, onednn


class Packed(nn.Module):
    """Weight and bias, and the weight as oneDNN orders it, which is made when it is first used.

    Args:
        weight: Of a product or a convolution.
        bias: (out,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone().contiguous(), requires_grad=False)
        self._packed: tuple[Any, Any] = None, None

    def packed(self, pack: Callable[..., Tensor], *args: Any) -> Tensor:
        """``pack(weight, *args)``, made once for a state of the weight; it serves all sizes."""
        weight = self.weight
        if weight.is_inference():  # a tensor that does not tell when it changes
            return weight
        state = weight.data_ptr(), weight._version
        if self._packed[0] != state:
            self._packed = state, pack(weight, *args)
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """The order is oneDNN's own: copies make theirs."""
        return {**self.__dict__, '_packed': (None, None)}


class Linear(Packed):
    """A product on tokens with an activation, or with a sum, in the same pass where oneDNN can.

    The weight is (out, in).
    """

    def forward(self, x: Tensor, act: str = 'none', add: Tensor | None = None) -> Tensor:
        """(..., in) -> ``act(x W + b) + add``, (..., out)."""
        if onednn(x) and (add is None or act == 'none'):
            rows = x.numel() // x.shape[-1]
            weight = self.packed(torch.ops.mkldnn._reorder_linear_weight, rows)
            if add is None:
                return linear(x, weight, self.bias, act)
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, weight, self.bias, 'add')
        y = linear(x, self.weight, self.bias, act)
        return y if add is None else y + add


class Depthwise(Packed):
    """Depthwise convolution of an odd kernel with an activation.

    Args:
        weight: (C, 1, k, k).
        bias: (C,).
        act: A key of ``ACTIVATIONS``.
    """

    def __init__(self, weight: Tensor, bias: Tensor, act: str) -> None:
        super().__init__(weight, bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        channels, _, size, _ = self.weight.shape
        pad = size // 2
        if not onednn(x):
            y = F.conv2d(x, self.weight, self.bias, 1, pad, 1, channels)
            return ACTIVATIONS[self.act].forward(y)
        ones = [1, 1]
        weight = self.packed(
            torch.ops.mkldnn._reorder_convolution_weight,
            *([pad, pad], ones, ones, channels, list(x.shape)),
        )
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, self.bias, [pad, pad], ones, ones, channels,
            *attributes(self.act),
        )  # fmt: skip


class Norm(nn.Module):
    """What is left of a norm once its affine is folded away: the statistics of the input.

    Args:
        kind: 'sample' for group norm of one group, 'token' for layer norm, 'none'.
        eps: Of the norm.
    """

    def __init__(self, kind: str, eps: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.kind == 'sample':
            return F.group_norm(x, 1, eps=self.eps)
        return self.of_tokens(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def of_tokens(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), where tokens do not depend on each other."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) if self.kind == 'token' else x


class FusedMlp(nn.Module):
    """``x + scale * mlp(norm(x))``.

    Args:
        norm: Statistics; the affine is in ``fc1``.
        fc1: First product.
        act: Activation, a key of ``ACTIVATIONS``.
        fc2: Second product, with the scale.
    """

    def __init__(self, norm: Norm, fc1: Linear, act: str, fc2: Linear) -> None:
        super().__init__()
        self.norm, self.fc1, self.act, self.fc2 = norm, fc1, act, fc2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); where tokens are many, the result overwrites ``x``.

        That is what the mixer before it made, and nobody else needs.
        """
        y, hidden_dim = tokens(x), len(self.fc1.bias)
        if not onednn(x) or step(x, hidden_dim) == len(y):
            return maps(self.fc2(self.fc1(tokens(self.norm(x)), self.act), add=y), x)
        whole = tokens(self.norm(x)) if self.norm.kind == 'sample' else None
        for part in tiles(x, hidden_dim):
            n = self.norm.of_tokens(y[part]) if whole is None else whole[part]
            y[part] = self.fc2(self.fc1(n, self.act), add=y[part])
        return maps(y, x)


class FusedPooling(nn.Module):
    """``x + scale * pooling(norm(x))`` for PoolFormer's norm over the whole map.

    Pooling that does not count the border keeps constants, so the mean and the bias of the norm
    cancel in ``pool(x) - x``: what is left is ``x + scale * weight / deviation * (pool(x) - x)``.

    Args:
        pool: Average pooling.
        scale: (C,), of the branch times that of the norm.
        eps: Of the norm.
    """

    def __init__(self, pool: nn.Module, scale: Tensor, eps: float) -> None:
        super().__init__()
        self.pool = pool
        self.scale = nn.Parameter(scale.detach().clone(), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = channels_last(x)
        batch, channels, height, width = x.shape
        _, _, rstd = torch.native_group_norm(
            x, None, None, batch, channels, height * width, 1, self.eps
        )
        step = rstd.view(-1, 1, 1, 1) * self.scale.view(1, -1, 1, 1)
        pooled = self.pool(x)
        return torch.lerp(x, pooled, step, out=pooled) if onednn(x) else x + step * (pooled - x)


class FusedAttention(nn.Module):
    """``x + scale * attention(norm(x))``, windows and relative positions included.

    Args:
        norm: Statistics, the affine being in ``mixer.qkv``; or the norm as it was.
        mixer: Attention, alone or in windows, with folded products.
        band: Rows of the map that are independent of the others, a row of windows; None for none.
    """

    def __init__(self, norm: nn.Module, mixer: nn.Module, band: int | None) -> None:
        super().__init__()
        self.norm, self.mixer, self.band = norm, mixer, band

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.band is None or not onednn(x):
            return x + self.mixer(self.norm(x))
        y = torch.empty_like(x)
        for start in range(0, x.shape[2], self.band):
            rows = x[:, :, start : start + self.band]
            mixed = self.mixer(self.norm(rows))
            torch.add(rows, mixed, out=y[:, :, start : start + self.band])
        return y


class FusedAggregation(nn.Module):
    """``x + scale * (alpha * A(X) + beta * A) V`` with batch norm, gate and scale folded away.

    Args:
        qkv: Product that makes queries, keys and values, or values alone.
        static: Depthwise convolution, its weights times beta; None without one.
        proj: Last product.
        alpha: Weight of the dynamic affinity; None without one.
        num_heads: Of the dynamic affinity.
    """

    def __init__(
        self,
        qkv: Linear,
        static: nn.Module | None,
        proj: Linear,
        alpha: Tensor | None,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.qkv, self.static, self.proj, self.num_heads = qkv, static, proj, num_heads
        self.alpha = None if alpha is None else nn.Parameter(alpha.detach().clone(), False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        flat = tokens(x)
        made = self.qkv(flat)
        channels = x.shape[1]
        mixed = None
        if self.static is not None:
            mixed = tokens(self.static(maps(made[:, -channels:], x)))
        if self.alpha is not None:
            heads = made.view(len(x), -1, 3, self.num_heads, channels // self.num_heads)
            q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
            seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, channels)
            mixed = seen if mixed is None else torch.addcmul(mixed, seen, self.alpha)
        assert mixed is not None
        return maps(self.proj(mixed, add=flat), x)


class FusedConvMixerBlock(nn.Module):
    """A ConvMixer block with its batch norms as scales.

    ``x + norm1(act(mix(x)))`` is ``x + scale1 * act(mix(x))``, its shift being in the bias of the
    following product; ``norm2`` is a scale and a shift.

    Args:
        mixer: Token mixer and the activation behind it.
        act: Activation of the product, a key of ``ACTIVATIONS``.
        scale1: (C,).
        mlp: Product.
        scale2: (C,).
        shift2: (C,).
        residual: Whether the mixer has a residual.
    """

    def __init__(
        self,
        mixer: nn.Module,
        act: str,
        scale1: Tensor,
        mlp: Linear,
        scale2: Tensor,
        shift2: Tensor,
        residual: bool,
    ) -> None:
        super().__init__()
        self.token_mixer, self.act, self.mlp, self.residual = mixer, act, mlp, residual
        self.scale1 = nn.Parameter(scale1.detach().clone(), requires_grad=False)
        self.scale2 = nn.Parameter(scale2.detach().clone(), requires_grad=False)
        self.shift2 = nn.Parameter(shift2.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mixed = tokens(self.token_mixer(x))
        flat, kept = tokens(x), onednn(x)  # inside a graph nothing is written in place
        if self.residual:
            y = torch.addcmul(flat, mixed, self.scale1, out=mixed if kept else None)
        else:
            y = mixed * self.scale1
        z = self.mlp(y, self.act)
        return maps(torch.addcmul(self.shift2, z, self.scale2, out=z if kept else None), x)
