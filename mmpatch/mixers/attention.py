"""Self-attention: an affinity that depends on the input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpatch.mixers.tokens import Grid, to_map, to_tokens
from mmpatch.registry import MODELS


@MODELS.register_module()
class Attention(nn.Module):
    """Multi-head self-attention over all tokens of a map (https://arxiv.org/abs/2010.11929).

    Args:
        dim: Channels.
        num_heads: Heads; must divide ``dim``.
        head_dim: Channels of a head, instead of ``num_heads``.
        attn_drop: Dropout rate of the affinity.
        proj_drop: Dropout rate of the output.
        qkv_bias: Whether queries, keys and values have a bias.
        rel_pos_size: Grid (H, W), or its side, of decomposed relative positions, which are added to
            the logits (MViTv2, https://arxiv.org/abs/2112.01526, eq. 4, as in ViTDet); they are
            interpolated for other grids. None for none.

    Raises:
        ValueError: If ``num_heads`` or ``head_dim`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        rel_pos_size: int | tuple[int, int] | None = None,
        head_dim: int | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if head_dim is not None:
            if dim % head_dim:
                raise ValueError(f'head_dim={head_dim} does not divide dim={dim}')
            num_heads = dim // head_dim
        if dim % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide dim={dim}')
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop) if proj_drop else nn.Identity()
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        #: Whether tokens without a position on the map may be among the others.
        self.takes_tokens = rel_pos_size is None
        self.rel_pos = None
        if rel_pos_size is not None:
            size = (rel_pos_size, rel_pos_size) if isinstance(rel_pos_size, int) else rel_pos_size
            self.rel_pos = RelativePosition(dim // num_heads, size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = self._split(x)
        bias = None if self.rel_pos is None else self.rel_pos(q, x.shape[2:])
        drop = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop)
        return self.project(mixed, x.shape[2:])

    def affinity(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, N, N), rows of sum 1."""
        q, k, _ = self._split(x)
        bias = 0 if self.rel_pos is None else self.rel_pos(q, x.shape[2:])
        return (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1)

    def values(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, N, C / heads)."""
        return self._split(x)[2]

    def project(self, mixed: Tensor, size: Grid) -> Tensor:
        """Mixed values (B, heads, N, C / heads) -> (B, C, H, W)."""
        mixed = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return to_map(mixed[:, None], size)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (B, heads, N, C / heads) each."""
        qkv = self.qkv(to_tokens(x)[:, 0]).unflatten(2, (3, self.num_heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)


class RelativePosition(nn.Module):
    """Logits from the distances of tokens in rows and in columns, one vector a distance.

    The vectors are stored for the distances of one grid and interpolated for others.
    """

    def __init__(self, head_dim: int, size: Grid) -> None:
        super().__init__()
        self.h = nn.Parameter(torch.zeros(2 * size[0] - 1, head_dim))
        self.w = nn.Parameter(torch.zeros(2 * size[1] - 1, head_dim))

    def forward(self, q: Tensor, size: Grid) -> Tensor:
        """Queries (B, heads, N, head_dim) of an (H, W) grid -> (B, heads, N, N)."""
        grid = q.unflatten(2, tuple(size))
        rows = self.multiply(grid, _distances(self.h, size[0]))
        columns = self.multiply(grid.transpose(2, 3), _distances(self.w, size[1])).transpose(2, 3)
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)

    def multiply(self, lines: Tensor, tables: Tensor) -> Tensor:
        """Lines (B, heads, L, M, C) of queries, and a table (L, C, L) -> (B, heads, L, M, L)."""
        return lines @ tables


def _distances(table: Tensor, length: int) -> Tensor:
    """(L, C, L) with the vector of distance i - j at (i, :, j)."""
    if len(table) != 2 * length - 1:
        table = F.interpolate(table.T[None], size=2 * length - 1, mode='linear')[0].T
    at = torch.arange(length, device=table.device)
    return table[at[:, None] - at[None, :] + length - 1].mT
