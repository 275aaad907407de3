"""Maps as tokens: (B, C, H, W) <-> (B, heads, N, C / heads) with N = H * W, row by row.

The first ``ahead`` rows may stand for tokens without a place, such as a class token: each repeats
one token, so that the map shows the grid of the others. Then N = ahead + (H - ahead) * W, and of
these rows the first column counts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Rows and columns of tokens.
Grid = Sequence[int]


def to_tokens(x: Tensor, heads: int = 1, ahead: int = 0) -> Tensor:
    """(B, C, H, W) -> (B, heads, N, C / heads)."""
    if ahead:
        rows = x.permute(0, 2, 3, 1)
        tokens = torch.cat([rows[:, :ahead, 0], rows[:, ahead:].flatten(1, 2)], 1)
        return tokens.unflatten(2, (heads, -1)).transpose(1, 2)
    return x.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)


def to_map(tokens: Tensor, size: Grid, ahead: int = 0) -> Tensor:
    """(B, heads, N, C / heads) -> (B, C, H, W), in channels_last memory."""
    merged = tokens.transpose(1, 2).flatten(2)
    if ahead:
        repeated = merged[:, :ahead, None].expand(-1, -1, size[1], -1)
        rows = torch.cat([repeated, merged[:, ahead:].unflatten(1, (-1, size[1]))], 1)
        return rows.permute(0, 3, 1, 2)
    return merged.transpose(1, 2).unflatten(2, tuple(size))


def make_impulses(size: Grid, like: Tensor) -> Tensor:
    """(N, 1, H, W): map n is 1 at token n, 0 elsewhere. Their images are the columns of a mixer."""
    count = size[0] * size[1]
    return torch.eye(count, dtype=like.dtype, device=like.device).view(count, 1, *size)


class StaticMixer(nn.Module):
    """A mixer whose affinity does not depend on the input: subclasses state their forward alone."""

    #: Heads of the affinity: channels of a head are mixed alike, so one of each tells it.
    num_heads = 1
    #: Rows in front of the map that stand for tokens without a place.
    token_rows = 0

    def affinity(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, N, N), the same for every input of one size."""
        probes = make_impulses(x.shape[2:], x).expand(-1, self.num_heads, -1, -1)
        seen = self(probes) - self(torch.zeros_like(probes[:1]))  # without the bias
        return seen.flatten(2).permute(1, 2, 0).expand(x.shape[0], -1, -1, -1)

    def values(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, N, C / heads)."""
        return to_tokens(x, self.num_heads, self.token_rows)

    def project(self, mixed: Tensor, size: Grid) -> Tensor:
        """Mixed values (B, heads, N, C / heads) -> (B, C, H, W); a bias is added."""
        maps = to_map(mixed, size, self.token_rows)
        return maps + self(torch.zeros_like(maps[:1]))
