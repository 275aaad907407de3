"""Which models of the hosts cannot be exported whole, and why."""

from typing import Any

from mmengine.model import BaseModel
from torch import nn


def find_kind(model: nn.Module, preprocessor: Any) -> tuple[str, str | None]:
    """'maps', 'segmentor' or 'detector', and why such a model cannot be exported, or None."""
    if not isinstance(model, BaseModel):
        return 'maps', None
    if hasattr(model, 'decode_head'):
        return 'segmentor', find_hindrance_of_segmentor(model, preprocessor)
    if hasattr(model, 'bbox_head'):
        return 'detector', find_hindrance_of_detector(model)
    return 'maps', 'it is neither a segmentor nor a single-stage detector'


def find_hindrance_of_segmentor(model: Any, preprocessor: Any) -> str | None:
    """Why the class map of a segmentor cannot be exported; None if it can."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.segmentors import EncoderDecoder

    head, padding = model.decode_head, getattr(preprocessor, 'test_cfg', None) or {}
    if not keeps_methods(model, EncoderDecoder, 'extract_feat', 'encode_decode', 'inference'):
        return 'its steps are not those of EncoderDecoder'
    if not keeps_methods(head, BaseDecodeHead, 'predict', 'predict_by_feat'):
        return f'{type(head).__name__} does not predict as BaseDecodeHead'
    if model.test_cfg.get('mode', 'whole') != 'whole':
        return f'test_cfg.mode={model.test_cfg["mode"]!r} is not "whole"'
    return 'its preprocessor pads to a fixed size' if padding.get('size') else None


def find_hindrance_of_detector(model: Any) -> str | None:
    """Why the boxes of a detector cannot be exported; None if they can."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.detectors import SingleStageDetector
    from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder

    if not keeps_methods(model, SingleStageDetector, 'extract_feat', 'predict'):
        return 'its steps are not those of SingleStageDetector'
    head, cfg = model.bbox_head, model.bbox_head.test_cfg or {}
    priors, coder = (getattr(head, name, None) for name in ('prior_generator', 'bbox_coder'))
    steps = 'predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process'
    if not keeps_methods(head, BaseDenseHead, *steps):
        return f'{type(head).__name__} does not predict as BaseDenseHead'
    if not keeps_methods(priors, AnchorGenerator, 'grid_priors', 'single_level_grid_priors'):
        return f'{type(priors).__name__} is not an AnchorGenerator'
    if type(coder) is not DeltaXYWHBBoxCoder or getattr(coder, 'add_ctr_clamp', False):
        return f'{type(coder).__name__} is not a DeltaXYWHBBoxCoder without add_ctr_clamp'
    custom = getattr(head.loss_cls, 'custom_cls_channels', False)
    if custom or not getattr(head, 'use_sigmoid_cls', False):
        return 'its scores are not sigmoids of one logit for each class'
    if hasattr(head, 'loss_centerness'):
        return f'{type(head).__name__} multiplies scores by centerness'
    nms = dict(cfg.get('nms') or {})
    if nms.get('type', 'nms') != 'nms' or 'iou_threshold' not in nms:
        return f'test_cfg.nms={nms} is not plain NMS with an iou_threshold'
    if others := nms.keys() - {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}:
        return f'test_cfg.nms has {sorted(others)}'
    found = {key: cfg.get(key, -1) for key in ('nms_pre', 'max_per_img')}
    return None if min(found.values()) > 0 else f'test_cfg has no positive values of {found}'


def keeps_methods(thing: Any, base: type, *names: str) -> bool:
    """Whether an object is of a class and has its methods, not others of a subclass."""
    same = (getattr(type(thing), name, None) is getattr(base, name) for name in names)
    return isinstance(thing, base) and all(same)
