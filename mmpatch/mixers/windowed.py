"""Any mixer, within windows."""

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
        windows = split_windows(x, (self.window_size, self.window_size))
        return merge_windows(self.mixer(windows), x.shape[2:])


def split_windows(x: Tensor, window: Grid) -> Tensor:
    """(B, C, H, W) -> (B * windows, C, *window), padded at the bottom and the right."""
    x = F.pad(x, (0, -x.shape[3] % window[1], 0, -x.shape[2] % window[0]))
    grid = x.permute(0, 2, 3, 1).unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return grid.transpose(2, 3).flatten(0, 2).permute(0, 3, 1, 2)


def merge_windows(windows: Tensor, size: Grid) -> Tensor:
    """Inverse of :func:`split_windows` for a map of (H, W) tokens; what was padded is cut off."""
    height, width = windows.shape[2:]
    rows, columns = -(-size[0] // height), -(-size[1] // width)
    grid = windows.permute(0, 2, 3, 1).unflatten(0, (-1, rows, columns))
    whole = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return whole[:, : size[0], : size[1]].permute(0, 3, 1, 2)
