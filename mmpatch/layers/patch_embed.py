"""Patch embedding: the stem and the downsampling between stages are the same layer."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mmpatch.registry import Factory


class PatchEmbed(nn.Module):
    """Strided convolution, an activation if there is one, then a norm.

    A convolution without padding of its own would drop the last rows and columns of a map that its
    stride does not divide: such a map is padded with zeros at the bottom and the right, and the
    output has ``ceil(n / stride)`` rows. With padding p the output has the convolution's own
    ``(n + 2 p - kernel_size) // stride + 1`` rows, as in the published networks.

    Args:
        in_channels: Channels of the input.
        dim: Channels of the output.
        kernel_size: Of the convolution.
        stride: Of the convolution.
        padding: Of the convolution, on each side.
        norm: Makes the norm from ``dim``; None for no norm.
        act: Activation class before the norm; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        norm: Factory | None = None,
        act: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, kernel_size, stride, padding)
        self.act = act() if act else nn.Identity()
        self.norm = norm(dim) if norm else nn.Identity()
        self.stride = stride
        self.pad = padding == 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, dim, about H / stride, about W / stride)."""
        if self.pad:
            # Also where there is nothing to pad: a branch here would be frozen into traced graphs.
            # Not by %, which OpenVINO lacks, nor of negative numbers, which it rounds otherwise.
            stride = self.stride
            missing = [(n + stride - 1) // stride * stride - n for n in x.shape[2:]]
            x = F.pad(x, (0, missing[1], 0, missing[0]))
        return self.norm(self.act(self.conv(x)))
