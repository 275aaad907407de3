"""The base class of all networks here: a stem, then stages of blocks that differ in their mixer."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmpatch.backbones.arguments import (
    broadcast_to_blocks,
    broadcast_to_stages,
    check_drop_path_rate,
    check_increasing,
    get_compile_settings,
)
from mmpatch.backbones.base import Backbone
from mmpatch.blocks import ConvMixerBlock, MetaFormerBlock, Stage
from mmpatch.checkpoint import Layout, Published, rename_in_place
from mmpatch.layers import PatchEmbed, PositionEmbed, make_norm_factory
from mmpatch.registry import MODELS, make_factory

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    'GELU': nn.GELU,
    'ReLU': nn.ReLU,
    'SiLU': nn.SiLU,
}

BLOCKS: dict[str, Callable[..., nn.Module]] = {
    'MetaFormerBlock': MetaFormerBlock,
    'ConvMixerBlock': ConvMixerBlock,
}
MEMORY_FORMATS = {
    'auto': None,
    'channels_last': torch.channels_last,
    'contiguous': torch.contiguous_format,
}


@MODELS.register_module()
class MetaFormer(Backbone):
    """Stem and stages of residual blocks (https://arxiv.org/abs/2111.11418, Fig. 1 and 2).

    An isotropic network is a pyramid whose later strides are 1: ``strides=(16, 1, 1, 1)`` with
    ``depths=(3, 3, 3, 3)`` is a ViT-B tapped after its blocks 3, 6, 9 and 12.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage, or one number for all.
        token_mixers: What :func:`mmpatch.registry.make_factory` takes: one for all blocks, one for
            each stage, or one for each block.
        strides: Of the stem and of the downsampling before each later stage; where the stride is 1
            and the channels stay, there is none.
        in_channels: Channels of the image.
        stem: Arguments of :class:`PatchEmbed`: ``kernel_size`` (the stride unless given),
            ``padding``, ``norm``, ``act``; or, with ``type``, another registered stem, such as
            :class:`ResNetStem`. It is built as (in_channels, dim, stride=...) and has a ``stride``.
        downsample: The same for the downsampling between stages.
        block: 'MetaFormerBlock', 'ConvMixerBlock', or a callable with their arguments.
        block_args: Further arguments of the block.
        mlp_ratios: Hidden channels of the MLPs over the channels, for all stages or for each; None
            leaves it to the block.
        norm_cfg: Norm of the blocks and of the outputs: 'GN1', 'LN2d', 'BN', 'SyncBN', 'GN', None
            for no norm, or a dict with ``type``.
        act: 'GELU', 'ReLU' or 'SiLU'.
        layer_scale: Initial value of the scales on the residual branches; None for no scales.
        pos_embed: Layer whose output is added to the input of every block; None leaves it out.
        positions: Arguments of :class:`PositionEmbed`, absolute positions and tokens that join
            behind the stem; the mixers of a network with such tokens must take them, as
            :class:`mmpatch.mixers.Attention` does without relative positions, and
            :class:`mmpatch.mixers.ContextAggregation` with ``token_rows``. None for none.
        stage_positions: For each stage None, or arguments of :class:`PositionEmbed` but
            ``num_tokens``, for positions that are added before its blocks; None for no stage.
        out_norm: Whether each output goes through a norm of its own, which is not part of published
            classifiers; False gives the raw outputs of the stages. A name or dict says which norm,
            by default that of ``norm_cfg``.
        drop_path_rate: Drop rate of the last residual branches; it grows linearly from 0.
        out_indices: Stages whose outputs are returned, increasing. Later stages are not built.
        stem_indices: Levels of a stem that has such (:class:`ResNetStem`) to return before those.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and the first i stages with the
            norms of their outputs.
        norm_eval: Whether batch norms keep their statistics in training.
        with_cp: Whether blocks recompute their activations in the backward pass, to save memory
            (:func:`torch.utils.checkpoint.checkpoint` around each block).
        memory_format: Layout of the maps that enter the stem and the first stage: 'channels_last',
            'contiguous' (NCHW), or 'auto': channels_last on a CPU; on CUDA contiguous for networks
            with group norms or depthwise kernels larger than 7x7 and channels_last for others, by
            timm's published benchmarks (``results/benchmark-infer-amp-*-nchw-*`` beside ``-nhwc-``;
            not measured here); contiguous on other devices.
        compile: True or arguments of :func:`torch.compile` for the backbone alone; its parameters
            keep their names.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads published weights strictly: see
            :func:`mmpatch.checkpoint.load_pretrained`.

    Attributes:
        out_channels: Channels of each output.
        out_strides: Stride of each output with respect to the image.

    Raises:
        ValueError: If arguments do not fit each other; the message names the one at fault.
    """

    #: Of a family: what names of its networks start with, if not with the class's; named sizes,
    #: layouts of published files, and those files.
    NAME: ClassVar[str] = ''
    ARCHS: ClassVar[dict[str, dict[str, Any]]] = {}
    LAYOUTS: ClassVar[tuple[Layout, ...]] = ()
    PUBLISHED: ClassVar[dict[str, Published]] = {}

    def __init__(
        self,
        depths: Sequence[int],
        dims: int | Sequence[int],
        token_mixers: Any,
        *,
        strides: Sequence[int] = (4, 2, 2, 2),
        in_channels: int = 3,
        stem: dict[str, Any] | None = None,
        downsample: dict[str, Any] | None = None,
        block: str | Callable[..., nn.Module] = 'MetaFormerBlock',
        block_args: dict[str, Any] | None = None,
        mlp_ratios: float | Sequence[float] | None = None,
        norm_cfg: Any = 'GN1',
        act: str = 'GELU',
        layer_scale: float | None = None,
        pos_embed: Any = None,
        positions: dict[str, Any] | None = None,
        stage_positions: Sequence[dict[str, Any] | None] | None = None,
        out_norm: Any = True,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        stem_indices: Sequence[int] = (),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        memory_format: str = 'auto',
        compile: bool | dict[str, Any] = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        name, count = type(self).__name__, len(depths)
        dims = broadcast_to_stages('dims', dims, count)
        strides = broadcast_to_stages('strides', strides, count)
        mlp_ratios = broadcast_to_stages('mlp_ratios', mlp_ratios, count)
        places = broadcast_to_stages('stage_positions', stage_positions, count)
        mixers = [
            make_factory(spec) for spec in broadcast_to_blocks('token_mixers', token_mixers, depths)
        ]
        self.out_indices = check_increasing(f'{name}: out_indices', 'stages', out_indices, count)
        if not self.out_indices:
            raise ValueError(f'{name}: out_indices=() must name stages of 0..{count - 1}')
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= count:
            raise ValueError(f'{name}: frozen_stages={frozen_stages} is not in -1..{count}')
        check_drop_path_rate(name, drop_path_rate)
        compiling = get_compile_settings(name, compile)
        for key, value, choices in (
            ('block', block, BLOCKS),
            ('act', act, ACTIVATIONS),
            ('memory_format', memory_format, MEMORY_FORMATS),
        ):
            if value not in choices and not (key == 'block' and callable(value)):
                raise ValueError(f'{name}: {key}={value!r} is not one of {sorted(choices)}')
        self.in_channels = in_channels
        self.memory_format = memory_format
        self.depths = tuple(depths)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        norm = make_norm_factory(norm_cfg)
        make_out_norm = norm if out_norm is True else make_norm_factory(out_norm or None)
        make_block = BLOCKS[block] if isinstance(block, str) else block
        settings = dict(block_args or {})
        if layer_scale is not None:
            settings['layer_scale'] = layer_scale
        if pos_embed is not None:
            settings['pos_embed'] = make_factory(pos_embed)
        drop_paths = [drop_path_rate * j / max(sum(depths) - 1, 1) for j in range(sum(depths))]

        self.stem: Any = _make_stem(in_channels, dims[0], strides[0], stem)
        self.positions = PositionEmbed(dims[0], **positions) if positions is not None else None
        self.stages: Any = nn.ModuleList()
        self.out_norms = nn.ModuleDict()
        for i in range(self.out_indices[-1] + 1):
            first = sum(depths[:i])
            blocks = [
                make_block(
                    dims[i],
                    mixers[j],
                    norm=norm,
                    act=ACTIVATIONS[act],
                    drop_path=drop_paths[j],
                    **({} if mlp_ratios[i] is None else {'mlp_ratio': mlp_ratios[i]}),
                    **settings,
                )
                for j in range(first, first + depths[i])
            ]
            down: nn.Module = nn.Identity()
            if i and (strides[i] != 1 or dims[i] != dims[i - 1]):
                down = _make_patch_embed(dims[i - 1], dims[i], strides[i], downsample)
            embed = None if places[i] is None else PositionEmbed(dims[i], **places[i])
            self.stages.append(Stage(down, blocks, embed))
            if out_norm and i in self.out_indices:
                self.out_norms[str(i)] = make_out_norm(dims[i])

        widths = getattr(self.stem, 'level_channels', ())
        levels = getattr(self.stem, 'level_strides', ())
        self.stem_indices = check_increasing(
            f'{name}: stem_indices', 'levels of the stem', stem_indices, len(levels)
        )
        totals = list(accumulate(strides, mul))
        maps = [(widths[i], levels[i]) for i in self.stem_indices]
        maps += [(dims[i], totals[i]) for i in self.out_indices]
        self.out_channels, self.out_strides = zip(*maps, strict=True)
        self._nchw_on_cuda = any(map(_is_slow_in_channels_last, self.stages.modules()))
        self._check_tokens()
        self._freeze()
        if compiling is not None:
            self.compile(**compiling)

    @classmethod
    def get_arch_settings(cls, arch: str) -> dict[str, Any]:
        """Arguments that an ``arch`` of the family stands for.

        Raises:
            ValueError: If the family has no such architecture; the message lists those it has.
        """
        if arch not in cls.ARCHS:
            raise ValueError(f'{cls.__name__} has no arch {arch!r}; choose from {list(cls.ARCHS)}')
        return cls.ARCHS[arch]

    @classmethod
    def infer_settings(cls, arch: str, tensors: dict[str | None, Tensor]) -> dict[str, Any]:
        """Arguments besides ``arch`` that the tensors of a file tell, by their names in a model."""
        return {}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> one (B, C_i, about H / stride_i, W / stride_i) per output."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} takes (B, {self.in_channels}, H, W), got {tuple(x.shape)}'
            )
        if not x.is_floating_point():
            raise TypeError(
                f'{type(self).__name__} takes normalised floating-point images, got {x.dtype}: '
                'x.float(), less mean, over std'
            )
        if min(x.shape[2:]) < self.stem.stride:
            raise ValueError(
                f'{type(self).__name__}: an image of {x.shape[2]}x{x.shape[3]} (H x W) is smaller '
                f'than the stride {self.stem.stride} of the stem'
            )
        memory_format = self._choose_memory_format(x.device)
        x = x.contiguous(memory_format=memory_format)
        outs: list[Tensor] = []
        if self.stem_indices:
            *levels, x = self.stem.levels(x)
            outs += [levels[i] for i in self.stem_indices]
        else:
            x = self.stem(x)
        x = x.contiguous(memory_format=memory_format)
        tokens = None
        if self.positions is not None:
            x, tokens = self.positions(x)
        for i, stage in enumerate(self.stages):
            x, tokens = stage(x, tokens, with_cp=self.with_cp and self.training)
            if i in self.out_indices:
                outs.append(self.out_norms[str(i)](x) if self.out_norms else x)
        return *outs, *self._pool(outs[-1], tokens)

    def _pool(self, last: Tensor, tokens: Tensor | None) -> tuple[Tensor, ...]:
        """Further outputs of a family, from the last map and the tokens (B, C, 1, T) beside it."""
        return ()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take tensors as published code names them, too: whole detectors hold such backbones."""
        rename_in_place(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning rates (BEiT, ViTDet).

        Args:
            param_name: Name in the state dict, behind ``prefix``.
            prefix: Such as 'backbone.'.

        Returns:
            0 for the stem and the positions, i + 1 for the i-th block and the downsampling before
            it, the last depth for everything else; and the number of depths, two more than the
            blocks.
        """
        last = sum(self.depths) + 1
        parts = param_name.removeprefix(prefix).split('.')
        if parts[0] in ('stem', 'positions'):
            return 0, last + 1
        if parts[0] != 'stages':
            return last, last + 1
        block = int(parts[3]) if parts[2] == 'blocks' else 0
        return sum(self.depths[: int(parts[1])]) + block + 1, last + 1

    def _choose_memory_format(self, device: torch.device) -> torch.memory_format:
        """The one place that asks for a device: see ``memory_format`` of the constructor."""
        chosen = MEMORY_FORMATS[self.memory_format]
        nchw = self._nchw_on_cuda if device.type == 'cuda' else device.type not in ('cpu', 'meta')
        return chosen or (torch.contiguous_format if nchw else torch.channels_last)

    def _freeze(self) -> None:
        """Freeze the stem and the first ``frozen_stages`` stages, batch statistics included."""
        if self.frozen_stages < 0:
            return
        norms = [n for i, n in self.out_norms.items() if int(i) < self.frozen_stages]
        for module in (self.stem, self.positions, *self.stages[: self.frozen_stages], *norms):
            if module is not None:
                module.eval().requires_grad_(False)

    def _check_tokens(self) -> None:
        """Raise if tokens without a place would reach a mixer that needs every token's place."""
        count = 0 if self.positions is None else self.positions.num_tokens
        downs = [stage.downsample for stage in self.stages if count]
        lost = {'a downsampling' for down in downs if not isinstance(down, nn.Identity)}
        for stage in self.stages:
            mixers = [getattr(block, 'token_mixer', block) for block in stage.blocks]
            if stage.token_rows:
                lost |= {type(m).__name__ for m in mixers if getattr(m, 'token_rows', 0) != count}
            elif count:
                lost |= {type(m).__name__ for m in mixers if not getattr(m, 'takes_tokens', False)}
        if lost:
            raise ValueError(
                f'{type(self).__name__}: class tokens have no position on the feature map, which '
                f'{", ".join(sorted(lost))} needs; leave them out (with_cls_token=False, '
                f'positions=dict(num_tokens=0)), or give all mixers of a stage token_rows={count}'
            )


def _is_slow_in_channels_last(module: nn.Module) -> bool:
    """Whether a layer is slower in channels_last than in NCHW memory on CUDA."""
    if isinstance(module, nn.Conv2d):
        return module.groups > 1 and max(module.kernel_size) > 7
    return isinstance(module, nn.GroupNorm)


def _make_stem(in_channels: int, dim: int, stride: int, cfg: dict[str, Any] | None) -> nn.Module:
    if cfg is None or 'type' not in cfg:
        return _make_patch_embed(in_channels, dim, stride, cfg)
    make: Callable[..., nn.Module] = make_factory(cfg)
    return make(in_channels, dim, stride=stride)


def _make_patch_embed(
    in_channels: int, dim: int, stride: int, cfg: dict[str, Any] | None
) -> PatchEmbed:
    cfg = {'kernel_size': stride, **(cfg or {})}
    if cfg.get('norm') is not None:
        cfg['norm'] = make_norm_factory(cfg['norm'])
    if cfg.get('act') is not None:
        cfg['act'] = ACTIVATIONS[cfg['act']]
    return PatchEmbed(in_channels, dim, stride=stride, **cfg)
