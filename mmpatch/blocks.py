"""The block that all networks here share, ConvMixer's variant of it, and the stage that calls them.

A block is called as ``block(x)`` in training and evaluation, under autocast, compilers, activation
checkpointing and hooks, on every device. Its ``forward`` is what runs.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmpatch.layers import DropPath, GroupNorm1, LayerScale, Mlp, PositionEmbed
from mmpatch.registry import Factory


class MetaFormerBlock(nn.Module):
    """Residual token mixer, then residual channel MLP (https://arxiv.org/abs/2111.11418, eq. 1, 2).

    ``x = x + scale1 * token_mixer(norm1(x))`` and ``x = x + scale2 * mlp(norm2(x))``, on maps of
    shape (B, C, H, W). The networks of this package differ only in the mixer and the arrangement.

    Args:
        dim: Channels C.
        token_mixer: Makes the mixer from C. It is given C, not a module, which would be shared.
        mlp_ratio: Hidden channels of the MLP over C; 0 for a block without MLP.
        norm: Makes both norms from C.
        act: Activation class of the MLP.
        layer_scale: Initial value of the two per-channel scales; None leaves them out.
        drop: Dropout rate behind both layers of the MLP.
        drop_path: Probability of dropping a residual branch of a sample in training.
        residual: Whether the branches are residual; if not, their outputs replace their inputs,
            without scales.
        pos_embed: Makes a position layer whose output is added to the input; None leaves it out.
    """

    def __init__(
        self,
        dim: int,
        token_mixer: Factory,
        *,
        mlp_ratio: float = 4.0,
        norm: Factory = GroupNorm1,
        act: Callable[[], nn.Module] = nn.GELU,
        layer_scale: float | None = None,
        drop: float = 0.0,
        drop_path: float = 0.0,
        residual: bool = True,
        pos_embed: Factory | None = None,
    ) -> None:
        super().__init__()
        for factory in (token_mixer, norm, pos_embed):
            if isinstance(factory, nn.Module):
                raise TypeError(f'{type(factory).__name__} would be shared; give a callable')
        self.pos_embed = pos_embed(dim) if pos_embed else None
        self.norm1 = norm(dim)
        self.token_mixer = token_mixer(dim)
        self.layer_scale1 = LayerScale(dim, layer_scale, residual)
        self.norm2: Any = norm(dim) if mlp_ratio else None
        self.mlp: Any = Mlp(dim, int(dim * mlp_ratio), act, drop) if mlp_ratio else None
        self.layer_scale2: Any = LayerScale(dim, layer_scale, residual) if mlp_ratio else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.pos_embed is not None:
            x = x + self.pos_embed(x)
        x = self.layer_scale1(x, self.drop_path(self.token_mixer(self.norm1(x))))
        if self.mlp is None:
            return x
        return self.layer_scale2(x, self.drop_path(self.mlp(self.norm2(x))))


class ConvMixerBlock(nn.Module):
    """Residual depthwise convolution, then a plain 1x1 convolution (ConvMixer, arXiv 2201.09792).

    ``x = x + norm1(act(token_mixer(x)))`` and ``x = norm2(act(mlp(x)))``: the norms come last, and
    the channel mixing has neither a hidden layer nor a residual. So this is not a MetaFormer block
    with other arguments, but it has the same slots.

    Args:
        dim: Channels C.
        token_mixer: Makes the mixer from C.
        norm: Makes both norms from C.
        act: Activation class.
        drop_path: Probability of dropping the residual branch of a sample in training.
        residual: Whether the input of the token mixer is added to its output.
    """

    def __init__(
        self,
        dim: int,
        token_mixer: Factory,
        *,
        norm: Factory = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = nn.GELU,
        drop_path: float = 0.0,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.token_mixer = token_mixer(dim)
        self.norm1 = norm(dim)
        self.mlp = nn.Conv2d(dim, dim, 1)
        self.norm2 = norm(dim)
        self.act = act()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mixed = self.drop_path(self.norm1(self.act(self.token_mixer(x))))
        x = x + mixed if self.residual else mixed
        return self.norm2(self.act(self.mlp(x)))


class Stage(nn.Module):
    """Downsampling, positions if there are some, then blocks.

    Args:
        downsample: Applied first.
        blocks: Applied in order.
        positions: Added before the first block; None for none.
    """

    def __init__(
        self,
        downsample: nn.Module,
        blocks: Iterable[nn.Module],
        positions: PositionEmbed | None = None,
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.positions = positions
        if positions is not None and positions.num_tokens:
            raise ValueError('stage_positions take no num_tokens: tokens join behind the stem')
        self.blocks = nn.ModuleList(blocks)
        mixers = [getattr(block, 'token_mixer', block) for block in self.blocks]
        self.token_rows: int = max((getattr(m, 'token_rows', 0) for m in mixers), default=0)

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, with_cp: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) and tokens (B, C, 1, T) or None -> (B, C', H', W') and tokens.

        Class tokens have no position on the feature map, so with them the blocks see one row of
        T + H * W tokens. Mixers that must know the grid have ``token_rows`` = T: their blocks see
        T + H rows, of which the first T repeat one token each; norms over places would count it W
        times. ``with_cp`` recomputes each block in the backward pass instead of keeping its
        activations.
        """
        x = self.downsample(x)
        if self.positions is not None:
            x, _ = self.positions(x)
        size = x.shape[2:]
        if tokens is not None:
            # Joined as rows of channels, so that the memory stays channels_last.
            ahead, rows = tokens.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
            if self.token_rows:
                x = torch.cat([ahead.transpose(1, 2).expand(-1, -1, size[1], -1), rows], 1)
            else:
                x = torch.cat([ahead, rows.flatten(1, 2).unsqueeze(1)], 2)
            x = x.permute(0, 3, 1, 2)
        for block in self.blocks:
            x = _recompute(block, x) if with_cp else block(x)
        if tokens is None:
            return x, None
        count = tokens.shape[3]
        if self.token_rows:
            return x[:, :, count:], x[:, :, :count, :1].mT
        return x[..., count:].squeeze(2).unflatten(2, size), x[..., :count]


def _recompute(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)`` by torch's checkpointing, with one update of batch norm statistics, not two."""
    norms: Any = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    norms = [m for m in norms if m.training and m.num_batches_tracked is not None]
    if not norms or torch.compiler.is_compiling():  # a compiled graph updates them once
        return checkpoint(block, x, use_reentrant=False)
    contexts = nullcontext(), _KeptStatistics(norms)
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: contexts)


class _KeptStatistics:
    """Context in which batch norms in training mode leave their running statistics as they are.

    It is entered once for each backward pass through the graph.
    """

    def __init__(self, norms: list[Any]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.kept, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
