"""Checks of a model's settings before it is built, instead of errors at its first iteration."""

import logging
import math
import re
import warnings
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpatch.checkpoint.published import SCHEME, list_published
from mmpatch.registry import MODELS


def check_model(cfg: Any, scope: str | None = None) -> None:
    """Check that backbone, neck and heads of a config of mmdet or mmseg fit each other.

    Only models with a backbone of mmpatch are checked. Necks, and the heads of segmentors, run on
    the meta device, without memory; one that does not run there is not checked. A warning names
    outputs of the backbone that no head reads.

    Args:
        cfg: ``model`` of the config.
        scope: ``default_scope`` of the config; MMEngine's current scope if None.

    Raises:
        ValueError: If arguments, channels or strides do not match, or padded images do not fit the
            strides; the message names the settings.
    """
    backbone_cfg = cfg.get('backbone') or {}
    kind = backbone_cfg.get('type', '')  # a name, or a class in a config that imports it
    if not (kind if isinstance(kind, str) else kind.__module__).startswith('mmpatch.'):
        return
    _check_pixels(cfg)
    with torch.device('meta'), MODELS.switch_scope_and_registry(scope) as registry:
        backbone: Any = _build(registry, 'backbone', {**backbone_cfg, 'init_cfg': None})
        if getattr(backbone, 'pooled', None):
            raise ValueError(
                f'model.backbone.pooled={backbone.pooled!r} adds an output that is no level of a '
                'pyramid; necks and heads take pooled=None'
            )
        side = 64 * math.lcm(*backbone.out_strides)
        pairs = zip(backbone.out_channels, backbone.out_strides, strict=True)
        maps = [torch.empty(1, c, side // s, side // s, requires_grad=True) for c, s in pairs]
        levels = _run_necks(registry, as_list(cfg.get('neck')), maps)
        if levels is None:
            return
        strides = [int(s) if s == int(s) else s for s in (side / x.shape[3] for x in levels)]
        _check_heads(cfg, [level.shape[1] for level in levels], strides)
        _check_padding(cfg, strides, max(backbone.out_strides))
        _warn_of_unread_outputs(backbone, _find_unread(registry, cfg, maps, levels))


def _check_pixels(cfg: Any) -> None:
    """Warn if pixels are not normalised as published weights expect them."""
    init_cfg = cfg['backbone'].get('init_cfg')
    given = init_cfg.get('checkpoint') if isinstance(init_cfg, dict) else None
    published = list_published().get(str(given).removeprefix(SCHEME))
    pixels = cfg.get('data_preprocessor')
    if published is None or not str(given).startswith(SCHEME) or not isinstance(pixels, dict):
        return
    mean, std = published.normalisation
    right: dict[str, Any] = {'mean': list(mean), 'std': list(std), 'bgr_to_rgb': True}
    wrong = [
        key
        for key, value in right.items()
        if np.shape(x := pixels.get(key) or 0) != np.shape(value) or not np.allclose(x, value, 1e-3)
    ]
    if wrong:
        told = ', '.join(f'{key}={pixels.get(key)}' for key in wrong)
        print_log(
            f'model.data_preprocessor has {told}; {given} was trained on RGB pixels with '
            + ', '.join(f'{key}={right[key]}' for key in wrong),
            logger='current',
            level=logging.WARNING,
        )


def _build(registry: Any, place: str, cfg: Any) -> nn.Module:
    """Build one part of a model; an argument that its type does not take is a ValueError."""
    try:
        return registry.build(deepcopy(cfg))
    except TypeError as error:
        match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if match is None or match[1] not in cfg:
            raise
        raise ValueError(
            f'model.{place}: {cfg["type"]} takes no argument {match[1]!r}. If an inherited config '
            f'brings it along, add _delete_=True to this {place}'
        ) from error


def _run_necks(registry: Any, cfgs: list[Any], maps: list[Tensor]) -> list[Tensor] | None:
    """Levels behind the necks; None if one does not run on the meta device."""
    necks: list[nn.Module] = []
    levels = maps
    try:
        necks = [_build(registry, 'neck', cfg) for cfg in cfgs]
        for neck in necks:
            levels = list(neck.eval()(tuple(levels)))
        return levels if all(level.ndim == 4 for level in levels) else None
    except Exception as error:  # a neck may ask for anything that is not there yet
        given = cfgs[0].get('in_channels')
        channels = [x.shape[1] for x in maps]
        if necks and given is not None and as_list(given) != channels:
            raise ValueError(
                f'model.neck.in_channels={given}, but the backbone gives {channels}: '
                'make them equal (out_indices of the backbone says which)'
            ) from error
        if isinstance(error, ValueError):
            raise
        return None


def _find_unread(registry: Any, cfg: Any, maps: list[Tensor], levels: list[Tensor]) -> list[int]:
    """Positions of the backbone's outputs that get no gradient.

    Heads of segmentors may read some levels only; those of detectors read all.
    """
    heads, others = as_list(cfg.get('decode_head')), as_list(cfg.get('auxiliary_head'))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # heads warn again when they are built to train
            modules = [registry.build(deepcopy(head)).eval() for head in (*others, *heads)]
            read = [x for head in modules[: len(others)] for x in as_list(head(levels))]
            previous: list[Any] = []  # a later head of a cascade reads the output of the one before
            for head in modules[len(others) :]:
                previous = [head(levels, *previous)]
                read += as_list(previous[0])
            total = torch.stack([x.sum() for x in (read if heads else levels)]).sum()
            gradients = torch.autograd.grad(total, maps, allow_unused=True)
    except Exception:  # heads that need samples, say, and parts that do not run on meta
        return []
    return [i for i, gradient in enumerate(gradients) if gradient is None]


def _warn_of_unread_outputs(backbone: Any, unread: list[int]) -> None:
    """Warn if outputs that no head reads leave parameters without a gradient."""
    if not hasattr(backbone, 'stages'):  # an exported file; timm's networks have no norms here
        return
    first = len(backbone.stem_indices)  # outputs of the stem have no norm
    stages = [backbone.out_indices[i - first] for i in unread if i >= first]
    idle = [backbone.out_norms[str(i)] for i in stages if backbone.out_norms]
    if backbone.out_indices[-1] in stages:
        idle.append(backbone.stages[-1])
    if any(p.requires_grad for module in idle for p in module.parameters()):
        read = tuple(i for i in backbone.out_indices if i not in stages)
        warnings.warn(
            f'model.backbone: no head reads the outputs of stages {stages}. Some of their '
            'parameters get no gradient, and distributed training stops with an error. Set '
            f'out_indices={read} and adapt in_channels and start_level of the neck or in_index of '
            'the heads; or, if only norms are left over, set out_norm=False',
            stacklevel=3,
        )


def _check_padding(cfg: Any, strides: list[float], coarsest: float) -> None:
    """Padded images must be multiples of whole strides, but for levels pooled from others."""
    scales = [s for neck in as_list(cfg.get('neck')) for s in neck.get('scale_factors') or ()]
    strides = [stride for stride in strides if stride <= coarsest / min(scales, default=1)]
    padded = (cfg.get('data_preprocessor') or {}).get('pad_size_divisor') or 1
    needed = math.lcm(*(stride for stride in strides if isinstance(stride, int)))
    if padded > 1 and padded % needed:
        raise ValueError(
            f'model.data_preprocessor.pad_size_divisor={padded} is not a multiple of {needed}: '
            f'maps of strides {strides} would not cover the image evenly; use '
            f'{-(-padded // needed) * needed}'
        )


def _check_heads(cfg: Any, channels: list[int], strides: list[float]) -> None:
    levels = f'but the levels have strides {strides}'
    for place, head in _find_parts(cfg, 'model', 'bbox_head', 'rpn_head', 'panoptic_head'):
        given = (head.get('anchor_generator') or {}).get('strides') or strides
        anchors = [as_list(stride)[0] for stride in given]
        # YOLACT's anchors are spread over the image, at strides that are not whole numbers.
        if anchors != strides and all(s == int(s) for s in anchors):
            raise ValueError(f'{place}.anchor_generator.strides={list(given)}, {levels}')
        _check_channels(place, head, channels)
    for place, extractor in _find_parts(
        cfg.get('roi_head') or {}, 'model.roi_head', 'bbox_roi_extractor', 'mask_roi_extractor'
    ):
        given = as_list(extractor.get('featmap_strides'))
        if given != strides[: len(given)]:
            raise ValueError(f'{place}.featmap_strides={given}, {levels}')
    for place, head in _find_parts(cfg, 'model', 'decode_head', 'auxiliary_head'):
        given = head.get('in_index')
        if any(not -len(channels) <= i < len(channels) for i in as_list(given)):
            raise ValueError(f'{place}.in_index={given}, but there are {len(channels)} levels')
        _check_channels(place, head, [channels[i] for i in as_list(given)])
        given = as_list(head.get('feature_strides'))
        if [s / given[0] for s in given] != [s / strides[0] for s in strides[: len(given)]]:
            raise ValueError(
                f"{place}.feature_strides={given} do not grow as the levels' strides {strides}"
            )


def _check_channels(place: str, head: Any, channels: list[int]) -> None:
    given = head.get('in_channels')
    if given is not None and channels not in ([], as_list(given), [given] * len(channels)):
        raise ValueError(f'{place}.in_channels={given}, but the levels have {channels}')


def _find_parts(cfg: Any, place: str, *names: str) -> list[tuple[str, Any]]:
    """Configs of the parts that have one of the names, each with its place."""
    return [(f'{place}.{name}', part) for name in names for part in as_list(cfg.get(name))]


def as_list(value: Any) -> list[Any]:
    """One or several as a list; None is none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | nn.ModuleList) else [value]
