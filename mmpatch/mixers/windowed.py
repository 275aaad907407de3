"""Any mixer, within windows."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmpatch.mixers.tokens import Grid
from mmpatch.registry import MODELS, make_factory


@MODELS.register_module()
class Windowed(nn.Module):
    """A mixer that sees windows instead of the map (ViTDet, https://arxiv.org/abs/2203.16527).

    The map is padded with zeros at the bottom and the right to whole windows; padded tokens take
    part and are cut off again, as in the authors' code. Windows do not overlap and do not shift.

    Args:
        dim: Channels.
        mixer: What mixes within a window: what :func:`mmpatch.registry.make_factory` takes.
        window_size: Side of a window in tokens.

    Raises:
        ValueError: If the mixer takes rows of tokens without a place (``token_rows``).
    """

    def __init__(self, dim: int, mixer: Any, window_size: int = 14) -> None:
        super().__init__()
        self.mixer = make_factory(mixer)(dim)
        if getattr(self.mixer, 'token_rows', 0):
            raise ValueError('Windowed: a mixer in windows has no token_rows')
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return mix_windows(x, (self.window_size, self.window_size), self.mixer)


def mix_windows(x: Tensor, window: Grid, mixer: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W), mixed within windows (B * windows, C, *window)."""
    windows = split_windows(x.permute(0, 2, 3, 1), window)
    mixed = mixer(windows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return merge_windows(mixed, x.shape[2:]).permute(0, 3, 1, 2)


def split_windows(grid: Tensor, window: Grid) -> Tensor:
    """(B, H, W, C) -> (B * windows, *window, C), padded at the bottom and the right."""
    grid = F.pad(grid, (0, 0, 0, -grid.shape[2] % window[1], 0, -grid.shape[1] % window[0]))
    windows = grid.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return windows.transpose(2, 3).flatten(0, 2)


def merge_windows(windows: Tensor, size: Grid) -> Tensor:
    """Inverse of :func:`split_windows` for a grid (H, W); what was padded is cut off."""
    height, width = windows.shape[1:3]
    rows, columns = -(-size[0] // height), -(-size[1] // width)
    grid = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return grid[:, : size[0], : size[1]]
