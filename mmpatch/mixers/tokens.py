"""Maps as tokens: (B, C, H, W) <-> (B, heads, N, C / heads) with N = H * W, row by row."""

from collections.abc import Sequence

import torch
from torch import Tensor

#: Rows and columns of tokens.
Grid = Sequence[int]


def to_tokens(x: Tensor, heads: int = 1) -> Tensor:
    """(B, C, H, W) -> (B, heads, H * W, C / heads)."""
    return x.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)


def to_map(tokens: Tensor, size: Grid) -> Tensor:
    """(B, heads, H * W, C / heads) -> (B, C, H, W), in channels_last memory."""
    merged = tokens.transpose(1, 2).flatten(2)
    return merged.transpose(1, 2).unflatten(2, tuple(size))


def impulses(size: Grid, like: Tensor) -> Tensor:
    """(N, 1, H, W): map n is 1 at token n, 0 elsewhere. Their images are the columns of a mixer."""
    count = size[0] * size[1]
    return torch.eye(count, dtype=like.dtype, device=like.device).view(count, 1, *size)
