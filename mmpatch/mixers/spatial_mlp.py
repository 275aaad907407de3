"""Spatial MLP: an affinity that is learned and does not depend on the input."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpatch.layers import is_grid
from mmpatch.mixers.tokens import Grid, StaticMixer, to_map, to_tokens
from mmpatch.mixers.windowed import mix_windows
from mmpatch.registry import MODELS


@MODELS.register_module()
class SpatialMLP(StaticMixer):
    """Linear maps over the tokens of a fixed grid, the same for all channels of a head.

    With one head: ResMLP's token mixing (https://arxiv.org/abs/2105.03404) and, without bias, the
    spatial FC of PoolFormer's Table 5; with several, CONTAINER's static MLP affinity
    (https://arxiv.org/abs/2106.01401, Section 3.3); with ``hidden``, MLP-Mixer's two layers with a
    GELU between (https://arxiv.org/abs/2105.01601), which have no affinity.

    A map of another grid is served as ``other_grids`` says, and one log line tells so.

    Args:
        dim: Channels; ``num_heads`` must divide it.
        grid: Tokens (H, W), or the side of a square, for which the matrices are made.
        num_heads: Matrices, each for a share of the channels.
        hidden: Tokens between two layers; None for one layer.
        bias: Whether output tokens (and hidden ones) have a bias.
        other_grids: 'resample' interpolates the matrices in both of their grids, 'window' splits
            the map into windows of ``grid``.
        token_rows: Rows in front of a map that stand for tokens without a place, such as a class
            token (:class:`mmpatch.blocks.Stage`). These tokens come first in the matrices.

    Raises:
        ValueError: If the heads do not divide the channels, or ``other_grids`` is neither, or is
            'window' with such tokens.
    """

    def __init__(
        self,
        dim: int,
        grid: int | tuple[int, int] = 14,
        num_heads: int = 1,
        hidden: int | None = None,
        bias: bool = True,
        other_grids: str = 'resample',
        token_rows: int = 0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide dim={dim}')
        if other_grids not in ('resample', 'window'):
            raise ValueError(f"other_grids={other_grids!r} is neither 'resample' nor 'window'")
        if token_rows and other_grids == 'window':
            raise ValueError("token_rows cannot be combined with other_grids='window'")
        self.grid = (grid, grid) if isinstance(grid, int) else tuple(grid)
        self.num_heads = num_heads
        self.token_rows = token_rows
        self.other_grids = other_grids
        tokens = token_rows + self.grid[0] * self.grid[1]
        self.fc1 = TokenLinear(num_heads, tokens, hidden or tokens, bias, token_rows)
        self.fc2 = TokenLinear(num_heads, hidden, tokens, bias, token_rows) if hidden else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        size = self._get_size(x)
        if not torch.compiler.is_compiling() and size != self.grid:
            _log_other_grid(self.grid, self.other_grids)
        if self.other_grids == 'resample' or size == self.grid:
            return self._mix(x)
        return mix_windows(x, self.grid, self._mix)

    def affinity(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, N, N), the same for every input of one size.

        Raises:
            ValueError: With two layers, or in windows, where mixing is not one matrix of this size.
        """
        if self.fc2 is not None:
            raise ValueError('two layers with an activation between have no affinity')
        if self.other_grids == 'window' and tuple(x.shape[2:]) != self.grid:
            raise ValueError(f'in windows of {self.grid} the affinity is one of each window')
        size = self._get_size(x)
        return self.fc1.get_weight(self.grid, size, size).expand(x.shape[0], -1, -1, -1)

    def _get_size(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of the tokens that have a place."""
        return x.shape[2] - self.token_rows, x.shape[3]

    def _mix(self, x: Tensor) -> Tensor:
        size = self._get_size(x)
        tokens = to_tokens(x, self.num_heads, self.token_rows)
        tokens = self.fc1(tokens, self.grid, size, size if self.fc2 is None else None)
        if self.fc2 is not None:
            tokens = self.fc2(F.gelu(tokens), self.grid, None, size)
        return to_map(tokens, x.shape[2:], self.token_rows)


@lru_cache
def _log_other_grid(grid: Grid, other_grids: str) -> None:
    """Say once in a process, not once per module, how maps of another grid are served."""
    how = {'resample': 'matrices are resampled', 'window': 'it runs in windows'}
    print_log(f'SpatialMLP of {grid} tokens on another grid: {how[other_grids]}', logger='current')


class TokenLinear(nn.Module):
    """One matrix a head from input tokens to output tokens; the first ``ahead`` have no place."""

    def __init__(self, heads: int, inputs: int, outputs: int, bias: bool, ahead: int = 0) -> None:
        super().__init__()
        self.ahead = ahead
        self.weight = nn.Parameter(torch.empty(heads, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(heads, outputs)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(
        self, tokens: Tensor, stored: Grid, inputs: Grid | None, outputs: Grid | None
    ) -> Tensor:
        """(B, heads, tokens in, c) -> (B, heads, tokens out, c).

        Weight and bias, stored for one grid, are interpolated for others, and inputs scaled by the
        share of their number, so that sums over tokens stay what they were. Hidden tokens have no
        grid (None).
        """
        weight = self.get_weight(stored, inputs, outputs)
        bias: Tensor | None = self.bias
        if bias is None:
            return weight @ tokens
        if outputs is not None and not is_grid(outputs, stored):
            bias = _resample(bias[:, None], stored, outputs, self.ahead)[:, 0]
        return weight @ tokens + bias[..., None]

    def get_weight(self, stored: Grid, inputs: Grid | None, outputs: Grid | None) -> Tensor:
        """Weight (heads, tokens out, tokens in) of such grids."""
        weight: Tensor = self.weight
        if inputs is not None and not is_grid(inputs, stored):
            scale = stored[0] * stored[1] / (inputs[0] * inputs[1])
            weight = _resample(weight, stored, inputs, self.ahead, scale)
        if outputs is not None and not is_grid(outputs, stored):
            weight = _resample(weight.mT, stored, outputs, self.ahead).mT
        return weight


def _resample(x: Tensor, old: Grid, new: Grid, ahead: int, scale: float = 1.0) -> Tensor:
    """(heads, n, ahead + old tokens) -> (heads, n, ahead + new tokens), bicubic in their grid."""
    grid = x[..., ahead:].unflatten(2, tuple(old))
    grid = F.interpolate(grid, size=tuple(new), mode='bicubic').flatten(2) * scale
    return torch.cat([x[..., :ahead], grid], 2) if ahead else grid
