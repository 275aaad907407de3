"""Errors about a model's settings before it is built, instead of at its first iteration."""

from collections.abc import Sequence
from typing import Any

import torch

from mmpatch.registry import MODELS


def check_model(cfg: Any) -> None:
    """Check that backbone, neck and heads of a config of mmdet or mmseg fit each other.

    Only models whose backbone is one of mmpatch's are looked at.

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
    if neck is not None:
        channels, strides = _through(neck, channels, strides, backbone)
    _check_padding(cfg, strides)
    _check_heads(cfg, channels, strides)


def _through(
    neck: Any, channels: list[int], strides: list[float], backbone: Any
) -> tuple[list[int], list[float]]:
    """Channels and strides behind a neck."""
    kind = str(neck['type']).split('.')[-1]
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
    if kind in ('FPN', 'ChannelMapper'):
        reached = strides[neck.get('start_level', 0) :]
        count = neck.get('num_outs') or len(reached)
        while len(reached) < count:
            reached.append(reached[-1] * 2)
        return [neck['out_channels']] * count, reached[:count]
    return channels, strides


def _check_padding(cfg: Any, strides: list[float]) -> None:
    """The stride that images must be a multiple of: the largest that is no mere pooling of it."""
    padded = (cfg.get('data_preprocessor') or {}).get('pad_size_divisor')
    if padded is None or padded <= 1:
        return
    patch = strides[0]
    while patch != int(patch):
        patch *= 2
    if padded % int(patch):
        raise ValueError(
            f'model.data_preprocessor.pad_size_divisor={padded} is no multiple of the stride '
            f'{int(patch)}: maps would not cover the image evenly; use '
            f'{-(-padded // int(patch)) * int(patch)}'
        )


def _check_heads(cfg: Any, channels: list[int], strides: list[float]) -> None:
    for place in ('bbox_head', 'rpn_head'):
        head = cfg.get(place) or {}
        anchors = (head.get('anchor_generator') or {}).get('strides')
        if anchors is not None and list(anchors) != strides:
            raise ValueError(
                f'model.{place}.anchor_generator.strides={list(anchors)}, but the levels have '
                f'strides {strides}'
            )
        _check_channels(f'model.{place}', head, channels)
    roi_head = cfg.get('roi_head') or {}
    for place in ('bbox_roi_extractor', 'mask_roi_extractor'):
        extractor = roi_head.get(place) or {}
        given = extractor.get('featmap_strides')
        if given is not None and list(given) != strides[: len(given)]:
            raise ValueError(
                f'model.roi_head.{place}.featmap_strides={list(given)}, but the levels have '
                f'strides {strides}'
            )
    head = cfg.get('decode_head') or {}
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


def _check_channels(place: str, head: Any, channels: list[int]) -> None:
    given = head.get('in_channels')
    if given is None or not channels:
        return
    listed = list(given) if isinstance(given, Sequence) else [given] * len(channels)
    if listed != channels:
        raise ValueError(f'{place}.in_channels={given}, but the levels have {channels}')
