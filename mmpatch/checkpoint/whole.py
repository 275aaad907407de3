"""Strict loading of whole published detectors and segmentors into models of mmdet and mmseg."""

import os
import re
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmpatch.checkpoint.layout import METAFORMER_LAYOUT, Grid, Layout, Tensors, find_layout
from mmpatch.checkpoint.load import read_checkpoint, unwrap
from mmpatch.checkpoint.match import (
    Report,
    compare_tensors,
    describe_problems,
    join_names,
    match_tensors,
)

BACKBONE = 'backbone.'


def _repeat_mask_head(tensors: Tensors, grid: Grid = None) -> Tensors:
    """Give each stage of a cascade its mask head, as mmdet has it; detectron2 has one for all.

    mmdet averages the masks of the stages, so that equal heads predict what the one does.
    """
    boxes = (re.match(r'roi_heads\.box_head\.(\d)\.', key) for key in tensors)
    stages = sorted({match[1] for match in boxes if match})
    start, repeated = 'roi_heads.mask_head.', dict[str, Tensor]()
    for key, tensor in tensors.items():
        heads = [f'{start}{i}.' for i in stages] or [start]
        for head in heads if key.startswith(start) else ['']:
            repeated[head + (key.removeprefix(start) if head else key)] = tensor
    return repeated


def _name_level(match: re.Match[str]) -> str:
    """Name a layer of the pyramid; detectron2 counts a convolution and its norm as one."""
    octave, layer, norm, rest = match.groups()
    level, index = int(octave) - 2, int(layer)
    scaling = (4, 1, 0, 1)[level]  # layers before the two convolutions
    return f'neck.levels.{level}.{index + max(index - scaling, 0) + bool(norm)}.{rest}'


def _name_conv(match: re.Match[str]) -> str:
    """Name a convolution of a head, or its norm; the first group is the stage of a cascade."""
    stage, kind, number, norm, rest = match.groups()
    place = {'conv': f'bbox_head.{stage}shared_convs', 'mask_fcn': f'mask_head.{stage}convs'}[kind]
    return f'roi_head.{place}.{int(number) - 1}.{"ln" if norm else "conv"}.{rest}'


RPN, BOX, MASK = r'proposal_generator\.rpn_head', r'roi_heads\.box', r'roi_heads\.mask_head'
STAGE = r'((?:\d\.)?)'
#: Layouts of whole models, in the order in which they are tried.
WHOLE_LAYOUTS = (
    Layout(
        'detectron2 ViTDet',
        r'backbone\.net\.patch_embed\.proj\.weight',
        (
            (r'backbone\.net\.(.+)', r'backbone.\1'),
            (r'backbone\.simfp_([2-5])\.(\d)\.(norm\.)?(weight|bias)', _name_level),
            (rf'{RPN}\.conv\.conv(\d)\.(.+)', r'rpn_head.rpn_conv.\1.conv.\2'),
            (rf'{RPN}\.objectness_logits\.(.+)', r'rpn_head.rpn_cls.\1'),
            (rf'{RPN}\.anchor_deltas\.(.+)', r'rpn_head.rpn_reg.\1'),
            (rf'{BOX}_head\.{STAGE}(conv)(\d)\.(norm\.)?(weight|bias)', _name_conv),
            (rf'{BOX}_head\.{STAGE}fc1\.(.+)', r'roi_head.bbox_head.\1shared_fcs.0.\2'),
            (rf'{BOX}_predictor\.{STAGE}cls_score\.(.+)', r'roi_head.bbox_head.\1fc_cls.\2'),
            (rf'{BOX}_predictor\.{STAGE}bbox_pred\.(.+)', r'roi_head.bbox_head.\1fc_reg.\2'),
            (rf'{MASK}\.{STAGE}(mask_fcn)(\d)\.(norm\.)?(weight|bias)', _name_conv),
            (rf'{MASK}\.{STAGE}deconv\.(.+)', r'roi_head.mask_head.\1upsample.\2'),
            (rf'{MASK}\.{STAGE}predictor\.(.+)', r'roi_head.mask_head.\1conv_logits.\2'),
            (r'pixel_(mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d', None),
        ),
        _repeat_mask_head,
    ),
    Layout(
        'ViT-Adapter plain ViT',
        r'backbone\.up1\.0\.weight',
        (
            (r'backbone\.up1\.(.+)', r'neck.0.levels.0.\1'),
            (r'backbone\.up2\.(.+)', r'neck.0.levels.1.0.\1'),
            (r'neck\.(.+)', r'neck.1.\1'),
            (r'(backbone|rpn_head|roi_head|decode_head)\..+', r'\g<0>'),
        ),
    ),
    Layout('mmdet or mmseg', r'backbone\..+', ((r'.+', r'\g<0>'),)),
)


def load_whole(model: nn.Module, checkpoint: str | os.PathLike[str], content: Any = None) -> Report:
    """Load a published detector or segmentor, heads included: every tensor, or none and an error.

    Args:
        model: A model of mmdet or mmseg.
        checkpoint: As in :func:`mmpatch.checkpoint.load_pretrained`.
        content: What is in it, if it has been read.

    Raises:
        ValueError: If a key is unknown, a tensor is missing or has another shape or type, or a
            number is not finite; the message lists the culprits. And see
            :func:`mmpatch.checkpoint.load_pretrained`.
    """
    tensors, report = fit_whole(model, os.fspath(checkpoint), content)
    model.load_state_dict(tensors)
    print_log(str(report), logger='current')
    return report


def fit_whole(model: Any, source: str, content: Any = None) -> tuple[Tensors, Report]:
    """Name the tensors of a file as a model's, all of them; see :func:`load_whole`."""
    content = read_checkpoint(source) if content is None else content
    tensors, report = unwrap(content, source, prefixes=('module.',))
    layouts = (x for x in WHOLE_LAYOUTS if any(re.fullmatch(x.marker, key) for key in tensors))
    layout = next(layouts, None)
    if layout is None:
        keys = join_names(list(tensors))
        raise ValueError(f'{source} is no detector or segmentor: its keys are such as {keys}')
    parts: tuple[Tensors, Tensors] = {}, {}  # heads and necks, backbone
    unknown: list[str] = []
    own = hasattr(model.backbone, 'LAYOUTS')
    for key, tensor in layout.convert(tensors).items():
        name = layout.rename(key)
        if name:
            inside = own and name.startswith(BACKBONE)
            parts[inside][name.removeprefix(BACKBONE) if inside else name] = tensor
        else:
            (report.dropped if name is None else unknown).append(key)
    wanted = model.state_dict()
    wanted = {k: v for k, v in wanted.items() if not (own and k.startswith(BACKBONE))}
    found, wrong = parts[0], compare_tensors(parts[0], wanted)
    if own:
        inner = find_layout(parts[1]) or METAFORMER_LAYOUT
        fitted, culprits = match_tensors(parts[1], inner, model.backbone, report)
        found |= {BACKBONE + name: tensor for name, tensor in fitted.items()}
        # a whole model has trained what a classifier lacks
        for what, names in [*culprits.items(), ('tensors that the file lacks', report.new)]:
            wrong[what] = wrong.get(what, []) + [BACKBONE + name for name in names]
    wrong['keys that no rule explains'] = unknown + wrong.get('keys that no rule explains', [])
    report.layout, report.matched, report.new = layout.name, list(found), []
    if text := describe_problems(wrong):
        where = f'{source} ({layout.name} layout) does not fit this {type(model).__name__}'
        raise ValueError(f'{where}; {text}')
    return found, report
