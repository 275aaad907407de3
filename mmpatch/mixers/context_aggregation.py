"""CONTAINER's context aggregation: a dynamic and a static affinity, added."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpatch.mixers.conv import DepthwiseConv
from mmpatch.mixers.spatial_mlp import SpatialMLP
from mmpatch.mixers.tokens import Grid, to_map, to_tokens
from mmpatch.registry import MODELS


@MODELS.register_module()
class ContextAggregation(nn.Module):
    """``((alpha * A(X) + beta * A) V) W`` (CONTAINER, https://arxiv.org/abs/2106.01401, eq. 5).

    A(X) is the affinity of self-attention, A a learned one: a depthwise convolution or a spatial
    MLP. Special cases: alpha = 1, beta = 0 is self-attention; alpha = 0, beta = 1 depthwise
    convolution, or with one matrix MLP-Mixer's token mixing, with several MH-MLP. The released code
    (``models.py`` of ``allenai/container``) has ``s = sigmoid(gate)`` for alpha and ``1 - s`` for
    beta in its last stage, and no dynamic affinity in the others. The paper's listing of
    CONTAINER-PAM, on DeiT, is ``static='mlp', gate=None, token_rows=1``.

    Args:
        dim: Channels.
        num_heads: Heads of the dynamic affinity and of the static MLP; must divide ``dim``.
        dynamic: Whether there is an A(X).
        static: 'conv', 'mlp' or None.
        gate: 'sigmoid' for the released single gate, 'learned' for free alpha and beta, None for
            alpha = beta = 1. Without one of the two affinities the other has the weight 1 and there
            is no gate.
        kernel_size: Of the static convolution.
        grid: Of the static MLP.
        token_rows: Rows that stand for tokens without a place: see :class:`SpatialMLP`.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: Dropout rate of the affinity. With a static MLP it applies to the sum of both,
            as in the paper's listing; with a static convolution, only to the dynamic one.
        proj_drop: Dropout rate of the output.

    Raises:
        ValueError: If there is neither affinity, an argument is none of its choices, or a static
            convolution is to take tokens.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        dynamic: bool = True,
        static: str | None = 'conv',
        gate: str | None = 'sigmoid',
        kernel_size: int = 5,
        grid: int | tuple[int, int] = 14,
        token_rows: int = 0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if static not in ('conv', 'mlp', None):
            raise ValueError(f"static={static!r} is none of 'conv', 'mlp', None")
        if gate not in ('sigmoid', 'learned', None):
            raise ValueError(f"gate={gate!r} is none of 'sigmoid', 'learned', None")
        if not dynamic and static is None:
            raise ValueError('a context aggregation needs a dynamic or a static affinity')
        if dim % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide dim={dim}')
        if static == 'conv' and token_rows:
            raise ValueError(f"token_rows={token_rows} have no place, which static='conv' needs")
        self.num_heads = num_heads
        self.token_rows = token_rows
        self.dynamic = dynamic
        self.qkv = nn.Conv2d(dim, 3 * dim if dynamic else dim, 1, bias=qkv_bias)
        self.static: Any = DepthwiseConv(dim, kernel_size) if static == 'conv' else None
        if static == 'mlp':
            self.static = SpatialMLP(dim, grid, num_heads, bias=False, token_rows=token_rows)
        self.proj = nn.Conv2d(dim, dim, 1)
        for layer in (self.qkv, self.proj) if static == 'mlp' else ():  # start as in DeiT
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop) if proj_drop else nn.Identity()
        both = dynamic and static is not None
        self.gate = nn.Parameter(torch.zeros(1)) if both and gate == 'sigmoid' else None
        self.alpha = nn.Parameter(torch.ones(1)) if both and gate == 'learned' else None
        self.beta = nn.Parameter(torch.ones(1)) if both and gate == 'learned' else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        drop = self.attn_drop.p if self.training else 0.0
        if drop and isinstance(self.static, SpatialMLP):
            return self.project(self.attn_drop(self.affinity(x)) @ self.values(x), x.shape[2:])
        parts = self._split(x)
        if not self.dynamic:
            return self.proj_drop(self.proj(self.static(parts[-1])))
        q, k, v = (to_tokens(part, self.num_heads, self.token_rows) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
        mixed = to_map(mixed, x.shape[2:], self.token_rows)
        if self.static is not None:
            alpha, beta = self.gate_weights()
            mixed = torch.addcmul(beta * self.static(parts[-1]), mixed, alpha)
        return self.proj_drop(self.proj(mixed))

    def affinity(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, N, N); with a static convolution every channel is a head."""
        values = self._split(x)[-1]
        if not self.dynamic:
            return self.static.affinity(values)
        dynamic = self.dynamic_affinity(x)
        if self.static is None:
            return dynamic
        static = self.static.affinity(values)
        alpha, beta = self.gate_weights()
        dynamic = dynamic.repeat_interleave(static.shape[1] // self.num_heads, 1)
        return alpha * dynamic + beta * static

    def dynamic_affinity(self, x: Tensor) -> Tensor:
        """A(X) alone, without alpha: (B, C, H, W) -> (B, num_heads, N, N), rows of sum 1."""
        q, k = (to_tokens(x, self.num_heads, self.token_rows) for x in self._split(x)[:2])
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)

    def values(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, N, C / heads), heads as in the affinity."""
        return to_tokens(self._split(x)[-1], (self.static or self).num_heads, self.token_rows)

    def project(self, mixed: Tensor, size: Grid) -> Tensor:
        """Mixed values (B, heads, N, C / heads) -> (B, C, H, W)."""
        maps = to_map(mixed, size, self.token_rows)
        if self.static is not None:  # the affinity leaves out its bias
            beta = self.gate_weights()[1] if self.dynamic else 1.0
            maps = maps + beta * self.static(torch.zeros_like(maps[:1]))
        return self.proj_drop(self.proj(maps))

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, or values alone, (B, C, H, W) each."""
        return self.qkv(x).chunk(3 if self.dynamic else 1, 1)

    def gate_weights(self) -> tuple[Tensor, Tensor]:
        """Weights alpha and beta of the dynamic and the static affinity."""
        if self.gate is not None:
            alpha = self.gate.sigmoid()
            return alpha, 1 - alpha
        if self.alpha is None or self.beta is None:
            return (self.proj.weight.new_ones(1),) * 2
        return self.alpha, self.beta
