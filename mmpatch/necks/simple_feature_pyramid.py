"""A feature pyramid from one map, or from several of one stride."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmpatch.layers import make_norm_factory
from mmpatch.registry import MODELS, Factory


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """ViTDet's pyramid without top-down path (https://arxiv.org/abs/2203.16527, Section 3).

    Each level is its input, scaled by transposed convolutions or max-pooling, then a 1x1 and a 3x3
    convolution with norms and without activation (``SimpleFeaturePyramid`` in ``vit.py`` of
    detectron2). Its inputs are one map for all levels, or one for each level, such as the outputs
    of an isotropic network after each quarter of its blocks.

    Args:
        in_channels: Channels of each input, or one number; None takes those of ``backbone``.
        out_channels: Channels of every level; None leaves them, and the two convolutions out.
        scale_factors: Size of each level with respect to its input: powers of two, falling.
        num_outs: Levels; those behind the last scale take every second row and column of the level
            before them. By default as many as scales.
        norm_cfg: Norm behind every convolution, and between two transposed ones: see
            :func:`mmpatch.layers.make_norm_factory`.
        in_stride: Stride of the inputs, for ``out_strides``; None takes that of ``backbone``.
        backbone: A backbone, or the config of one, whose ``out_channels`` and ``out_strides`` are
            the inputs'; a config is built on the meta device.
        init_cfg: As in MMEngine.

    Attributes:
        out_strides: Strides of the levels; None if the stride of the inputs is not known.

    Raises:
        ValueError: If a scale is not a power of two, scales do not fall, or channels are not known
            or differ from the backbone's.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int] | None = None,
        out_channels: int | None = 256,
        scale_factors: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int | None = None,
        norm_cfg: Any = 'LN2d',
        in_stride: float | None = None,
        backbone: Any = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        scales = tuple(scale_factors)
        for scale in scales:
            if scale <= 0 or not math.log2(scale).is_integer():
                raise ValueError(f'scale_factors={scales}: {scale} is not a power of two')
        if list(scales) != sorted(set(scales), reverse=True):
            raise ValueError(f'scale_factors={scales} must fall, from the finest level on')
        channels = (in_channels,) if isinstance(in_channels, int) else tuple(in_channels or ())
        strides: tuple[float, ...] = () if in_stride is None else (in_stride,)
        if isinstance(backbone, dict):
            with torch.device('meta'):
                backbone = MODELS.build({**backbone, 'init_cfg': None})
        if backbone is not None:
            found = tuple(backbone.out_channels)
            if channels not in ((), found):
                raise ValueError(f'in_channels={channels}, but the backbone gives {found}')
            channels, strides = found, strides or tuple(backbone.out_strides)
        if not channels:
            raise ValueError(f'{type(self).__name__} needs in_channels, or a backbone')
        if len(channels) not in (1, len(scales)):
            raise ValueError(
                f'{len(channels)} inputs for {len(scales)} scale_factors: give one input for all '
                'levels (out_indices of the last stage alone) or one for each'
            )
        if num_outs is not None and num_outs < len(scales):
            raise ValueError(f'num_outs={num_outs} is less than {len(scales)} scale_factors')
        self.in_channels = channels
        self.num_outs = num_outs or len(scales)
        norm = make_norm_factory(norm_cfg)
        copies = len(scales) // len(channels)
        self.levels = nn.ModuleList(
            _make_level(c, out_channels, int(math.log2(scale)), norm)
            for c, scale in zip(channels * copies, scales, strict=True)
        )
        widths = [out_channels or c for c in channels * copies]
        self.out_channels = (*widths, *widths[-1:] * (self.num_outs - len(scales)))
        self.out_strides: tuple[float, ...] | None = None
        if strides:
            per_level = strides * (len(scales) // len(strides))
            reached = [stride / s for stride, s in zip(per_level, scales, strict=True)]
            reached += [reached[-1] * 2**i for i in range(1, self.num_outs - len(scales) + 1)]
            self.out_strides = tuple(int(s) if s == int(s) else s for s in reached)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One map, or one a scale s, (B, C, H, W) -> levels (B, out_channels, H * s, W * s)."""
        count, given = len(self.in_channels), len(inputs)
        if given != count:
            raise ValueError(f'{type(self).__name__} was made for {count} inputs, got {given}')
        maps = [*inputs] * (len(self.levels) // count)
        outs = [level(x) for level, x in zip(self.levels, maps, strict=True)]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


@MODELS.register_module()
class TapPyramid(SimpleFeaturePyramid):
    """Levels of a plain ViT, one from each tap, without convolutions behind: an FPN follows.

    Scaling by 4 is two transposed convolutions with a norm and GELU in between, scaling by 2 is
    one; channels stay. With a backbone whose outputs have a norm each (``out_norm=True``) this is
    the plain ViT of ViT-Adapter (https://arxiv.org/abs/2205.08534, ``vit_baseline.py`` of
    czczup/ViT-Adapter); with ``norm_cfg='SyncBN'`` it is mmseg's ``Feature2Pyramid``.

    Args:
        in_channels: As in :class:`SimpleFeaturePyramid`, and so are all others.
        scale_factors: Size of each level with respect to its tap.
        norm_cfg: Norm between two transposed convolutions, by default groups of channels.
        in_stride: Stride of the taps.
        backbone: A backbone, or the config of one, that gives the taps.
        init_cfg: As in MMEngine.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int] | None = None,
        scale_factors: Sequence[float] = (4, 2, 1, 0.5),
        norm_cfg: Any = 'GN',
        in_stride: float | None = None,
        backbone: Any = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        settings = (scale_factors, None, norm_cfg, in_stride, backbone, init_cfg)
        super().__init__(in_channels, None, *settings)
        transposed: Any = [m for m in self.modules() if isinstance(m, nn.ConvTranspose2d)]
        for layer in transposed:
            nn.init.normal_(layer.weight, std=(2 / (4 * layer.out_channels)) ** 0.5)
            nn.init.zeros_(layer.bias)


def _make_level(
    channels: int, out_channels: int | None, octaves: int, norm: Factory
) -> nn.Sequential:
    """Make one level: scaling by ``2 ** octaves``, then the two convolutions, if there are some."""
    # An odd row or column at the end counts, too.
    layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-octaves)]
    for i in range(octaves):
        layers += [norm(channels), nn.GELU()] if i else []
        width = channels // 2 if out_channels else channels
        layers.append(nn.ConvTranspose2d(channels, width, 2, stride=2))
        channels = width
    if out_channels is None:
        return nn.Sequential(*layers)
    layers += [nn.Conv2d(channels, out_channels, 1, bias=False), norm(out_channels)]
    layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), norm(out_channels)]
    return nn.Sequential(*layers)
