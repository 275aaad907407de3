"""Blocks in a row, behind a downsampling."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mmpatch.fast.forms import run


class Stage(nn.Module):
    """Downsampling, then blocks.

    Args:
        downsample: Applied first.
        blocks: Applied in order.
    """

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, with_cp: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) and tokens (B, C, 1, T) or None -> (B, C', H', W') and tokens.

        Tokens have no place on the map, so with them the blocks see one row of T + H * W tokens.
        ``with_cp`` keeps little of every block for the backward pass.
        """
        x = self.downsample(x)
        size = x.shape[2:]
        if tokens is not None:
            # Joined as rows of channels, so that the memory stays channels_last.
            rows = [tokens.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1)]
            x = torch.cat(rows, 2).permute(0, 3, 1, 2)
        for block in self.blocks:
            x = run(block, x, with_cp)
        if tokens is None:
            return x, None
        count = tokens.shape[3]
        return x[..., count:].squeeze(2).unflatten(2, size), x[..., :count]
