"""Absolute positions, and tokens that belong to no place."""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn


class PositionEmbed(nn.Module):
    """Learned positions of a grid, and tokens in front of it (ViT, arXiv 2010.11929, Section 3.1).

    The positions are stored for the grid of the pre-training and resampled, in one step, for the
    grid of every input: by its rows and columns, not by its number of tokens.

    Args:
        dim: Channels C.
        grid: Tokens (H, W), or the side of a square, for which positions are stored.
        num_tokens: 1 for a class token, 2 with DeiT's distillation token, 0 for none.
        antialias: Whether resampling is antialiased, as in timm; ViTDet, DeiT and MAE do without.
    """

    def __init__(
        self,
        dim: int,
        grid: int | tuple[int, int] = 14,
        num_tokens: int = 0,
        antialias: bool = True,
    ) -> None:
        super().__init__()
        self.antialias = antialias
        self.num_tokens = num_tokens
        size = (grid, grid) if isinstance(grid, int) else tuple(grid)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, *size))
        zeros = torch.zeros(1, dim, 1, num_tokens)
        self.cls_token = nn.Parameter(zeros) if num_tokens else None
        self.cls_pos_embed = nn.Parameter(zeros.clone()) if num_tokens else None
        for parameter in self.parameters():
            trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> the same with positions, and tokens (B, C, 1, num_tokens) or None."""
        positions: Tensor = self.pos_embed
        if positions.shape[2:] != x.shape[2:]:
            positions = F.interpolate(
                positions.float(), size=x.shape[2:], mode='bicubic', antialias=self.antialias
            )
        x = x + positions.to(x.dtype)
        if self.cls_token is None or self.cls_pos_embed is None:
            return x, None
        return x, (self.cls_token + self.cls_pos_embed).to(x.dtype).expand(x.shape[0], -1, -1, -1)
