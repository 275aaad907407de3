"""Depthwise convolution: a static affinity of one matrix a channel."""

from torch import Tensor, nn

from mmpatch.mixers.tokens import Grid, impulses, to_map, to_tokens
from mmpatch.registry import MODELS


@MODELS.register_module()
class DepthwiseConv(nn.Module):
    """Depthwise convolution with output as large as the input (2111.11418, Table 5; ConvMixer).

    CONTAINER's static affinity, alpha = 0, beta = 1, with as many heads as channels
    (https://arxiv.org/abs/2106.01401, Section 3.3).

    Args:
        dim: Channels.
        kernel_size: Of the convolution; an even kernel is padded by one more at the bottom and the
            right, as ``padding='same'`` does.
        bias: Whether each channel has a bias.
    """

    def __init__(self, dim: int, kernel_size: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding='same', groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.conv(x)

    def affinity(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, N, N): every channel is a head."""
        size = x.shape[2:]
        bias = 0 if self.conv.bias is None else self.conv.bias.view(-1, 1, 1)
        seen = self.conv(impulses(size, x).expand(-1, x.shape[1], -1, -1)) - bias
        return seen.flatten(2).permute(1, 2, 0).expand(x.shape[0], -1, -1, -1)

    def values(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, N, 1)."""
        return to_tokens(x, x.shape[1])

    def project(self, mixed: Tensor, size: Grid) -> Tensor:
        """Mixed values (B, C, N, 1) -> (B, C, H, W): the bias is added."""
        maps = to_map(mixed, size)
        return maps if self.conv.bias is None else maps + self.conv.bias.view(-1, 1, 1)
