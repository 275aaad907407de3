"""Modules of folded blocks: each is one residual branch with its sum, or the mixer of one."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpatch.layers import GroupNorm1, LayerNorm2d
from mmpatch.mixers import ContextAggregation
from mmpatch.mixers.tokens import Grid, to_map, to_tokens
from mmpatch.mixers.windowed import merge_windows, split_windows


class Residual(nn.Sequential):
    """``x + scale * layers(x)``; layers that are None are left out."""

    def __init__(self, *layers: nn.Module | None, scale: Tensor | None = None) -> None:
        super().__init__(*(layer for layer in layers if layer is not None))
        self.scale = None if scale is None else nn.Parameter(scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        branch = super().forward(x)
        if self.scale is None:
            return x + branch
        return torch.addcmul(x, branch, self.scale.view(-1, 1, 1))


class PooledResidual(nn.Module):
    """``x + scale * (pool(norm(x)) - norm(x))``, where the norm's mean and bias cancel."""

    def __init__(self, pool: nn.Module, scale: Tensor, eps: float) -> None:
        super().__init__()
        self.pool = pool
        self.scale = nn.Parameter(scale.clone())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        half = x.dtype in (torch.float16, torch.bfloat16)  # squares may overflow
        exact = x.float() if half else x
        centred = exact - exact.mean((1, 2, 3), keepdim=True)
        lengths = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        variance = lengths.square().mean((2, 3), keepdim=True) / x.shape[1]
        factor = torch.rsqrt(variance + self.eps) * self.scale.view(-1, 1, 1)
        return torch.lerp(x, self.pool(x), factor.to(x.dtype))


class TokenResidual(nn.Module):
    """``x + branch(norm(x))`` on tokens (B, H * W, C): attention, and the MLP behind it.

    Products of tokens need no change of layout between a norm and a softmax.

    Args:
        norm: Of the tokens.
        branch: Called as branch(tokens, size) with the grid (H, W).
    """

    def __init__(self, norm: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        tokens = tokens + self.branch(self.norm(tokens), x.shape[2:])
        return tokens.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class TokenNorm(nn.Module):
    """Norm of tokens without affine map: over the channels, or over all values of a sample."""

    def __init__(self, first_dim: int, eps: float) -> None:
        super().__init__()
        self.first_dim = first_dim
        self.eps = eps

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return F.layer_norm(tokens, tokens.shape[self.first_dim :], eps=self.eps)


class TokenAttention(nn.Module):
    """:class:`mmpatch.mixers.Attention` of tokens, over all of them or within windows.

    Queries, keys and values have a product each, as in :class:`GatedAggregation`.
    """

    def __init__(self, mixer: Any, window_size: int | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(split_product(mixer.qkv, 3))
        self.proj, self.rel_pos, self.num_heads = mixer.proj, mixer.rel_pos, mixer.num_heads
        self.window_size = window_size

    def forward(self, tokens: Tensor, size: Grid) -> Tensor:
        """(B, N, C) of an (H, W) grid -> (B, N, C)."""
        if self.window_size is None:
            return self.attend(tokens, size)
        window = (self.window_size, self.window_size)
        windows = split_windows(tokens.unflatten(1, tuple(size)), window)
        mixed = self.attend(windows.flatten(1, 2), window).unflatten(1, window)
        return merge_windows(mixed, size).flatten(1, 2)

    def attend(self, tokens: Tensor, size: Grid) -> Tensor:
        """(B, N, C) of an (H, W) grid -> (B, N, C)."""
        parts = [part(tokens).unflatten(2, (self.num_heads, -1)) for part in self.parts]
        q, k, v = (part.transpose(1, 2) for part in parts)
        bias = None if self.rel_pos is None else self.rel_pos(q, size)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class TokenMlp(nn.Sequential):
    """Layers that see each token on its own."""

    def forward(self, tokens: Tensor, _: Grid | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return super().forward(tokens)


class GatedAggregation(nn.Module):
    """``(alpha * A(X) V + static(V)) W``: CONTAINER's mixer with beta in the static part.

    Queries, keys and values have a convolution each, so that nothing is split.
    """

    def __init__(self, mixer: ContextAggregation, static: nn.Module) -> None:
        super().__init__()
        alpha, _ = mixer.gate_weights()
        self.parts = nn.ModuleList(split_product(mixer.qkv, 3))
        self.static, self.proj, self.num_heads = static, mixer.proj, mixer.num_heads
        self.alpha = nn.Parameter(alpha.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        parts = [part(x) for part in self.parts]
        q, k, v = (to_tokens(part, self.num_heads) for part in parts)
        mixed = to_map(F.scaled_dot_product_attention(q, k, v), x.shape[2:])
        return self.proj(torch.addcmul(self.static(parts[2]), mixed, self.alpha))


def split_product(product: Any, count: int) -> list[nn.Module]:
    """Products that give equal shares of the output channels of a product each."""
    weights = product.weight.chunk(count)
    biases = [None] * count if product.bias is None else product.bias.chunk(count)
    parts = [copy.deepcopy(product) for _ in weights]
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        setattr(part, 'out_channels' if weight.ndim == 4 else 'out_features', len(weight))
        part.weight = nn.Parameter(weight.clone())
        part.bias = None if bias is None else nn.Parameter(bias.clone())
    return parts


def make_token_norm(norm: Any) -> nn.Module | None:
    """The same norm for tokens (B, N, C); None for norms that are not known."""
    plain = getattr(norm, 'weight', None) is None
    if norm is None:
        return nn.Identity()
    if type(norm) is GroupNorm1 and plain and norm.num_groups == 1:
        return TokenNorm(1, norm.eps)
    if type(norm) is not LayerNorm2d:
        return None
    if plain:
        return TokenNorm(2, norm.eps)
    tokens = nn.LayerNorm(norm.normalized_shape, norm.eps, bias=norm.bias is not None)
    tokens.weight, tokens.bias = norm.weight, norm.bias
    return tokens


def make_linear(product: Any) -> nn.Linear:
    """Linear layer from a linear layer or a 1x1 convolution."""
    weight = product.weight.flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=product.bias is not None)
    linear.weight, linear.bias = nn.Parameter(weight), product.bias
    return linear
