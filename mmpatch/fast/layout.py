"""Maps as rows of channels, one row a token, and the parts that go through an MLP at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

#: Hidden values of an MLP that are made and used up at a time on a CPU: they stay in the cache.
TILE = 2**20


def tiles(x: Tensor, hidden_dim: int) -> Iterator[slice]:
    """Parts of the tokens of a map that go through an MLP at a time."""
    size = step(x, hidden_dim)
    for start in range(0, len(x) * x.shape[2] * x.shape[3], size):
        yield slice(start, start + size)


def step(x: Tensor, hidden_dim: int) -> int:
    """Tokens of a part, about as many in each; all, where the memory is not the CPU's."""
    count = len(x) * x.shape[2] * x.shape[3]
    parts = max(1, round(count * hidden_dim / TILE)) if x.device.type == 'cpu' else 1
    return -(-count // parts)


def channels_last(x: Tensor) -> Tensor:
    """The same in the memory that fast forms need: native norms read tensors as they lie."""
    return x.contiguous(memory_format=torch.channels_last)


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * H * W, C), without a copy in channels_last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def maps(flat: Tensor, like: Tensor) -> Tensor:
    """(B * H * W, C) -> (B, C, H, W) in channels_last memory."""
    batch, _, height, width = like.shape
    return flat.view(batch, height, width, -1).permute(0, 3, 1, 2)
