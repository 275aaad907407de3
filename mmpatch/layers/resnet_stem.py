"""The ResNet in front of a hybrid ViT."""

from collections.abc import Sequence
from functools import partial

from timm.layers import GroupNormAct, StdConv2dSame, create_pool2d
from timm.models.resnetv2 import Bottleneck, DownsampleConv
from torch import Tensor, nn

from mmpatch.layers.patch_embed import PatchEmbed
from mmpatch.registry import MODELS

# The published code adds 1e-5 to the standard deviation of the weights. This layer adds epsilon to
# the variance, where 1e-8 reproduces the published outputs, as in timm.
Conv = partial(StdConv2dSame, eps=1e-8)
Norm = partial(GroupNormAct, num_groups=32)
WIDTH = 64


@MODELS.register_module()
class ResNetStem(nn.Module):
    """ResNet of weight-standardised convolutions and group norms, then a patch embedding.

    From hybrid ViTs (https://arxiv.org/abs/2010.11929, Section 3.1; ``models_resnet.py`` of
    ``google-research/vision_transformer``). All padding is TensorFlow's 'SAME', so that a map of n
    rows has ``ceil(n / 2)`` after a stride of 2.

    Args:
        in_channels: Channels of the image.
        dim: Channels of the output.
        stride: Of the output with respect to the image. The patch size is this over the stride of
            the ResNet.
        depths: Bottlenecks of each stage; none for the root convolution alone.

    Attributes:
        level_channels: Channels of the stages' maps.
        level_strides: Strides of the stages' maps.

    Raises:
        ValueError: If the stride is not a multiple of the ResNet's.
    """

    def __init__(
        self, in_channels: int, dim: int, *, stride: int, depths: Sequence[int] = (3, 4, 9)
    ) -> None:
        super().__init__()
        self.level_channels = tuple(4 * WIDTH * 2**i for i in range(len(depths)))
        self.level_strides = tuple(4 * 2**i for i in range(len(depths)))
        channels, reached = (WIDTH, *self.level_channels)[-1], (4, *self.level_strides)[-1]
        if stride % reached:
            raise ValueError(f"stride={stride} is not a multiple of the ResNet's stride {reached}")
        self.stride = stride
        self.root = Conv(in_channels, WIDTH, 7, stride=2)
        self.root_norm = nn.GroupNorm(32, WIDTH)
        self.act = nn.ReLU()
        self.pool = create_pool2d('max', 3, stride=2, padding='same')
        self.stages = nn.ModuleList()
        inputs = WIDTH
        make = partial(Bottleneck, conv_layer=Conv, norm_layer=Norm)
        for width, depth in zip(self.level_channels, depths, strict=True):
            first = make(inputs, width, stride=2 if self.stages else 1, proj_layer=DownsampleConv)
            # Last, as state dicts of this package have always had it.
            first.downsample = first._modules.pop('downsample')
            self.stages.append(nn.Sequential(first, *(make(width, width) for _ in range(1, depth))))
            inputs = width
        patch = stride // reached
        self.proj = PatchEmbed(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, dim, about H / stride, W / stride)."""
        return self.levels(x)[-1]

    def levels(self, x: Tensor) -> list[Tensor]:
        """Maps of the stages, then the output of :meth:`forward`."""
        # Rounding grows through standardised weights and group norms: in another memory format the
        # sums' order alone moves the last stage by 3e-5. So they are summed as they were published.
        maps = [self.pool(self.act(self.root_norm(self.root(x.contiguous()))))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [*maps[1:], self.proj(maps[-1])]
