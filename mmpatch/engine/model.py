"""Errors about a model's settings before it is built, instead of at its first iteration."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from mmpatch.registry import MODELS


def check_model(cfg: Any) -> None:
    """Check that backbone, neck and heads of a config of mmdet or mmseg fit each other.

    Only models whose backbone is one of mmpatch's are looked at, and what comes behind a neck that
    is not known here is taken as it is.

    Args:
        cfg: ``model`` of the config.

    Raises:
        ValueError: If channels or strides do not match, or padded images do not fit the strides;
            the message names the settings.
    """
    backbone_cfg = cfg.get('backbone') or {}
    if not str(backbone_cfg.get('type', '')).startswith('mmpatch.'):
        return
    with torch.device('meta'):
        backbone = MODELS.build({**backbone_cfg, 'init_cfg': None})
    channels, strides = list(backbone.out_channels), list(backbone.out_strides)
    neck = cfg.get('neck')
    own = len(strides)  # levels that are no mere pooling of the one before
    if neck is not None:
        if not isinstance(neck, dict):
            return
        levels = _through(neck, channels, strides, backbone)
        if levels is None:
            return
        own = len(neck.get('scale_factors') or strides)
        channels, strides = levels
    _check_heads(cfg, channels, strides)
    _check_padding(cfg, strides[:own])


def _through(
    neck: Any, channels: list[int], strides: list[float], backbone: Any
) -> tuple[list[int], list[float]] | None:
    """Channels and strides behind a neck; None if it is not known here."""
    kind = str(neck['type']).split('.')[-1]
    if kind not in ('SimpleFeaturePyramid', 'FPN', 'ChannelMapper'):
        return None
    given = neck.get('in_channels')
    if given is not None:
        listed = list(given) if isinstance(given, Sequence) else [given]
        if listed != channels:
            raise ValueError(
                f'model.neck.in_channels={given}, but the backbone gives {channels}: '
                'set the one to the other (out_indices of the backbone says which)'
            )
    if kind == 'SimpleFeaturePyramid':
        with torch.device('meta'):
            pyramid = MODELS.build({**neck, 'backbone': backbone})
        return list(pyramid.out_channels), list(pyramid.out_strides)
    reached = strides[neck.get('start_level', 0) :]
    count = neck.get('num_outs') or len(reached)
    while len(reached) < count:
        reached.append(reached[-1] * 2)
    return [neck['out_channels']] * count, reached[:count]


def _check_padding(cfg: Any, strides: list[float]) -> None:
    """Padded images must be multiples of all strides that are whole numbers."""
    padded = (cfg.get('data_preprocessor') or {}).get('pad_size_divisor')
    needed = math.lcm(*(int(stride) for stride in strides if stride == int(stride)))
    if padded is not None and padded > 1 and padded % needed:
        raise ValueError(
            f'model.data_preprocessor.pad_size_divisor={padded} is no multiple of {needed}: maps '
            f'of strides {strides} would not cover the image evenly; use '
            f'{-(-padded // needed) * needed}'
        )


def _check_heads(cfg: Any, channels: list[int], strides: list[float]) -> None:
    for place in ('bbox_head', 'rpn_head'):
        head = _one(cfg.get(place))
        anchors = (head.get('anchor_generator') or {}).get('strides')
        if anchors is not None and list(anchors) != strides:
            raise ValueError(
                f'model.{place}.anchor_generator.strides={list(anchors)}, but the levels have '
                f'strides {strides}'
            )
        _check_channels(f'model.{place}', head, channels)
    roi_head = _one(cfg.get('roi_head'))
    for place in ('bbox_roi_extractor', 'mask_roi_extractor'):
        extractor = _one(roi_head.get(place))
        given = extractor.get('featmap_strides')
        if given is not None and list(given) != strides[: len(given)]:
            raise ValueError(
                f'model.roi_head.{place}.featmap_strides={list(given)}, but the levels have '
                f'strides {strides}'
            )
    head = _one(cfg.get('decode_head'))
    indices = head.get('in_index')
    if isinstance(indices, Sequence):
        wrong = [i for i in indices if i >= len(channels)]
        if wrong:
            raise ValueError(
                f'model.decode_head.in_index={list(indices)}, but there are {len(channels)} levels'
            )
        _check_channels('model.decode_head', head, [channels[i] for i in indices])
    ratios = head.get('feature_strides')
    if ratios is not None and [s / ratios[0] for s in ratios] != [
        s / strides[0] for s in strides[: len(ratios)]
    ]:
        raise ValueError(
            f'model.decode_head.feature_strides={list(ratios)} do not grow as the strides '
            f'{strides} of the levels'
        )


def _one(head: Any) -> Any:
    """A head; of several (cascades) none is looked at."""
    return head if isinstance(head, dict) else {}


def _check_channels(place: str, head: Any, channels: list[int]) -> None:
    given = head.get('in_channels')
    if given is None or not channels:
        return
    listed = list(given) if isinstance(given, Sequence) else [given] * len(channels)
    if listed != channels:
        raise ValueError(f'{place}.in_channels={given}, but the levels have {channels}')
