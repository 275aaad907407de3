"""Depthwise convolution: a static affinity of one matrix a channel."""

from torch import Tensor, nn

from mmpatch.mixers.tokens import StaticMixer
from mmpatch.registry import MODELS


@MODELS.register_module()
class DepthwiseConv(StaticMixer):
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
        self.num_heads = dim
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding='same', groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.conv(x)
