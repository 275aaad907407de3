"""Absolute positions, and tokens that belong to no place."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

KINDS, MODES = ('learned', '1d', '2d', 'sincos', 'none'), ('bicubic', 'linear')


class PositionEmbed(nn.Module):
    """Positions of a grid, and tokens in front of it (ViT, arXiv 2010.11929, Section 3.1).

    The positions are stored for the grid of the pre-training and resampled, in one step, for the
    grid of every input: by its rows and columns, not by its number of tokens.

    Args:
        dim: Channels C.
        grid: Tokens (H, W), or the side of a square, for which positions are stored.
        num_tokens: 1 for a class token, 2 with DeiT's distillation token, 0 for none.
        antialias: Whether resampling is antialiased, as in timm; ViTDet, DeiT and MAE do without.
        kind: 'learned' (the paper's '1d', Appendix D.4): one vector per place. '2d': one vector
            per column (first half of the channels) and one per row (second half). 'sincos': fixed
            sines and cosines in this order, as in MAE. 'none': tokens alone.
        interpolation: 'bicubic', or 'linear' with aligned corners (and no antialiasing), as
            ``checkpoint.py`` of google-research/vision_transformer does it.
        drop: Dropout rate of the sum, of tokens too.

    Raises:
        ValueError: If an argument is none of its choices, or 4 does not divide sines' channels.
    """

    def __init__(
        self,
        dim: int,
        grid: int | tuple[int, int] = 14,
        num_tokens: int = 0,
        antialias: bool = True,
        kind: str = 'learned',
        interpolation: str = 'bicubic',
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in KINDS or interpolation not in MODES:
            given = f'kind={kind!r}, interpolation={interpolation!r}'
            raise ValueError(f'positions with {given}: choose from {KINDS} and {MODES}')
        self.antialias = antialias
        self.interpolation = interpolation
        self.num_tokens = num_tokens
        self.grid = (grid, grid) if isinstance(grid, int) else tuple(grid)
        height, width = self.grid
        whole, half = kind in ('learned', '1d'), dim // 2 if kind == '2d' else 0
        tokens = (dim, 1, num_tokens) if num_tokens else None
        self.pos_embed = _make_parameter((dim, height, width) if whole else None)
        self.pos_embed_x = _make_parameter((half, 1, width) if half else None)
        self.pos_embed_y = _make_parameter((dim - half, 1, height) if half else None)
        self.cls_token = _make_parameter(tokens)
        self.cls_pos_embed = _make_parameter(tokens if whole or half else None)
        waves = _make_waves(dim, height, width) if kind == 'sincos' else None
        self.register_buffer('waves', waves, persistent=False)
        self.waves: Tensor | None
        self.drop = nn.Dropout(drop) if drop else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> the same with positions, and tokens (B, C, 1, num_tokens) or None."""
        positions: Tensor | None = self.waves if self.pos_embed is None else self.pos_embed
        if self.pos_embed_x is not None and self.pos_embed_y is not None:
            columns = self.pos_embed_x.expand(-1, -1, self.grid[0], -1)
            rows = self.pos_embed_y.mT.expand(-1, -1, -1, self.grid[1])
            positions = torch.cat([columns, rows], 1)
        if positions is not None:
            if not is_grid(x.shape[2:], positions.shape[2:]):
                positions = self.resample(positions, x.shape[2:])
            x = x + positions.to(x.dtype)
        if self.cls_token is None:
            return self.drop(x), None
        tokens = self.cls_token + (0 if self.cls_pos_embed is None else self.cls_pos_embed)
        return self.drop(x), self.drop(tokens.to(x.dtype).expand(x.shape[0], -1, -1, -1))

    def equals(self, positions: Tensor) -> bool:
        """Whether positions (1, C, H, W) of a file are the fixed ones; True if there are none."""
        if self.waves is None or self.waves.is_meta:
            return True
        return torch.allclose(_make_waves(*positions.shape[1:]), positions.float(), atol=1e-4)

    def resample(self, positions: Tensor, size: torch.Size) -> Tensor:
        """Positions (1, C, H, W) of one grid for another, (1, C, *size), in float32."""
        # Antialiasing of contiguous maps is wrong where one column comes out (torch 2.11, CPU).
        positions = positions.float().contiguous(memory_format=torch.channels_last)
        if self.interpolation == 'linear':
            return F.interpolate(positions, size, mode='bilinear', align_corners=True)
        return F.interpolate(positions, size, mode='bicubic', antialias=self.antialias)


def is_grid(size: Sequence[int], grid: Sequence[int]) -> bool:
    """Whether a map has the rows and columns of a grid; False where torch.export leaves it open.

    A comparison would bind an exported graph to other grids than this one.
    """
    return all(type(n) is int for n in size) and tuple(size) == tuple(grid)


def _make_parameter(shape: tuple[int, int, int] | None) -> nn.Parameter | None:
    return shape and nn.Parameter(trunc_normal_(torch.zeros(1, *shape), std=0.02))


def _make_waves(dim: int, height: int, width: int) -> Tensor:
    """(1, C, H, W) of sines and cosines of the column, then of the row, C / 4 frequencies each."""
    if dim % 4:
        raise ValueError(f'4 does not divide dim={dim}: no sines and cosines of two coordinates')
    rates = 10000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    columns = torch.outer(rates, torch.arange(width))[:, None].expand(-1, height, -1)
    rows = torch.outer(rates, torch.arange(height))[..., None].expand(-1, -1, width)
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()])[None]
