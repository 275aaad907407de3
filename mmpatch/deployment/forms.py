"""Forms of layers that engines run as they are: same parameters, same outputs, other operators.

torch and engines are fast, or right, in different ways. These forms are for ONNX and OpenVINO
files. They take the place of a layer by its class, since a layer and its form share their state.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpatch.backbones import MetaFormer
from mmpatch.deployment.folded import PooledResidual, TokenNorm
from mmpatch.layers import GroupNorm1, LayerNorm2d, PositionEmbed
from mmpatch.mixers.attention import RelativePosition


class MapNorm(GroupNorm1):
    """Group norm of one group as a layer norm over (C, H, W).

    OpenVINO has it as one operator in channels_last memory. It computes a group norm as a layer
    norm of (B, 1, C * H * W), which costs two changes of layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = F.layer_norm(x, x.shape[1:], eps=self.eps)
        if self.weight is None:
            return x
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class ChannelNorm(LayerNorm2d):
    """Layer norm over channels on tokens (B, H * W, C).

    OpenVINO has an operator for the last of three dimensions; of four, it computes the norm in
    several passes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        tokens = F.layer_norm(tokens, tokens.shape[2:], self.weight, self.bias, self.eps)
        return tokens.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class NormedPooling(PooledResidual):
    """Folded pooling with its norm written out, which is one pass in an engine, as in MapNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        normed = F.layer_norm(x, x.shape[1:], eps=self.eps)
        return x + self.scale.view(-1, 1, 1) * (self.pool(normed) - normed)


class ExactNorm(GroupNorm1):
    """Group norm of one group by its formula, means over places before means over channels.

    onnxruntime's layer norm loses digits over so many values (1e-4 of the largest at 128x128).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = _whiten(x, (2, 3), 1, self.eps)
        if self.weight is None:
            return x
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class ExactTokenNorm(TokenNorm):
    """The same for tokens; a norm over channels alone stays a layer norm."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return super().forward(tokens) if self.first_dim == 2 else _whiten(tokens, 1, 2, self.eps)


def _whiten(x: Tensor, places: Any, channels: int, eps: float) -> Tensor:
    centred = x - x.mean(places, keepdim=True).mean(channels, keepdim=True)
    variance = centred.square().mean(places, keepdim=True).mean(channels, keepdim=True)
    return centred * torch.rsqrt(variance + eps)


class LineProducts(RelativePosition):
    """Relative positions by one product for a row, or column, of all images and heads.

    OpenVINO runs few large products faster than many small ones; torch does not.
    """

    def multiply(self, lines: Tensor, tables: Tensor) -> Tensor:
        """Lines (B, heads, L, M, C) of queries, and a table (L, C, L) -> (B, heads, L, M, L)."""
        first = lines.permute(2, 0, 1, 3, 4)
        products = first.flatten(1, 3) @ tables
        return products.unflatten(1, first.shape[1:4]).permute(1, 2, 0, 3, 4)


class ProductPositions(PositionEmbed):
    """Positions resampled by two products with matrices, rows and columns apart.

    Engines lack torch's antialiased resampling or compute it otherwise. The weights are those of
    ``upsample_bicubic2d`` of ATen (``UpSample.h``): Keys' cubic with a = -0.5 where antialiased,
    else -0.75, or linear with aligned corners.
    """

    def resample(self, positions: Tensor, size: Any) -> Tensor:
        """Positions (1, C, H, W) of one grid for another, (1, C, *size), in float32."""
        rows, columns = map(self.make_matrix, positions.shape[2:], size)
        if self.interpolation == 'bicubic' and not self.antialias:
            positions = F.pad(positions, (2, 2, 2, 2), mode='replicate')
        return rows.to(positions) @ positions @ columns.to(positions).mT

    def make_matrix(self, stored: int, wanted: int) -> Tensor:
        """(wanted, stored) weights, or (wanted, stored + 4) where two more stand at each end."""
        at = torch.arange(wanted).float()[:, None]
        if self.interpolation == 'linear':
            at = at * (stored - 1) / at.amax().clamp(min=1)
            return F.relu(1 - (torch.arange(stored) - at).abs())
        scale = stored / torch.ones_like(at).sum()
        centres = (at + 0.5) * scale - 0.5
        if not self.antialias:
            return _cubic(torch.arange(-2, stored + 2) - centres, -0.75)
        weights = _cubic((torch.arange(stored) - centres) / scale.clamp(min=1), -0.5)
        return weights / weights.sum(1, keepdim=True)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic kernel (IEEE ASSP 29(6), 1981)."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


#: Forms that files of a suffix need, and those that are faster or more exact there.
NEEDED: dict[type, type] = {PositionEmbed: ProductPositions}
BETTER: dict[str, dict[type, type]] = {
    '.xml': {
        GroupNorm1: MapNorm,
        LayerNorm2d: ChannelNorm,
        PooledResidual: NormedPooling,
        RelativePosition: LineProducts,
    },
    '.onnx': {GroupNorm1: ExactNorm, LayerNorm2d: ChannelNorm, TokenNorm: ExactTokenNorm},
}


def use_engine_forms(model: nn.Module, suffix: str, better: bool = True) -> nn.Module:
    """Give the layers of a model, in place, the forms that engines run.

    Args:
        model: Any model.
        suffix: Of the file, '.onnx' or '.xml'.
        better: Whether also layers that an engine would run less well.
    """
    forms = {**NEEDED, **(BETTER[suffix] if better else {})}
    for module in model.modules():
        if isinstance(module, MetaFormer):
            module.memory_format = 'contiguous'  # engines choose layouts themselves
        form = forms.get(type(module))
        if form is not None and not (isinstance(module, GroupNorm1) and module.num_groups != 1):
            module.__class__ = form
    return model
