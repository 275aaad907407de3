"""Grad-CAM (https://arxiv.org/abs/1610.02391): where a detector or segmentor sees a class."""

import sys
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from visualization import picture
from visualization.subject import Subject


def weigh(features: Tensor, gradients: Tensor) -> Tensor:
    """Channels (C, h, w) weighted by their mean gradients, summed, positive part: (h, w)."""
    return (features * gradients.mean((1, 2), keepdim=True)).sum(0).clamp(min=0)


def find_classes(cfg: Any) -> list[str]:
    """Names of the classes of the data that a config evaluates on; none if it says none."""
    from mmengine.registry import DATASETS

    data = (cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}).get('dataset') or {}
    names = (data.get('metainfo') or {}).get('classes')
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        cls = registry.get(data['type']) if 'type' in data else None
    return list(names or getattr(cls, 'METAINFO', {}).get('classes', ()))


def find_class(name: str, classes: list[str]) -> int:
    """Number of a class by its name or number; SystemExit if there is none."""
    if name.isdecimal() and (not classes or int(name) < len(classes)):
        return int(name)
    if name not in classes:
        sys.exit(f'error: no class {name!r}; the data has {", ".join(classes) or "no names"}')
    return classes.index(name)


def let_all_through(cfg: Any) -> None:
    """Lower the least score of boxes to 0, so that an untrained detector predicts, too."""
    test = cfg.model.get('test_cfg') or {}
    for part in (test, test.get('rcnn') or {}):
        if 'score_thr' in part:
            part.score_thr = 0.0


def find_score(model: Any, x: Tensor, number: int | None) -> tuple[Tensor, Any, int]:
    """Score of a class, where it is (the best box, or the map of its logits), and its number.

    Without a number, the class of the best box, or the one of most pixels, is taken.

    Raises:
        SystemExit: If a detector finds no box of the class.
    """
    size = tuple(x.shape[2:])
    meta = {'batch_input_shape': size, 'img_shape': size, 'pad_shape': size, 'ori_shape': size}
    meta['scale_factor'] = 1.0, 1.0
    if hasattr(model, 'decode_head'):
        logits = model.encode_decode(x, [meta])[0]
        if number is None:
            number = int(logits.argmax(0).flatten().bincount().argmax())
        return logits[number].mean(), logits[number], number
    from mmdet.models.dense_heads import base_dense_head
    from mmdet.structures import DetDataSample

    # Heads of one stage cut scores off from the graph, here alone.
    def select(levels: list[Tensor], image: int, detach: bool = True) -> list[Tensor]:
        return [level[image] for level in levels]

    with patch.object(base_dense_head, 'select_single_mlvl', select):
        found = model.predict(x, [DetDataSample(metainfo=meta)], rescale=False)[0].pred_instances
    of_class = found if number is None else found[found.labels == number]
    if not len(of_class):
        seen = sorted({int(i) for i in found.labels})
        sys.exit(f'error: no box of class {number}; there are boxes of the classes {seen}')
    best = int(of_class.scores.argmax())
    return of_class.scores[best], of_class.bboxes[best], int(of_class.labels[best])


def explain(model: Any, x: Tensor, number: int | None) -> tuple[list[Tensor], float, Any, int]:
    """Compute a map for each output of the backbone; score, place and number of the class."""
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, out: Any) -> tuple[Tensor, ...]:
        kept.extend(out)
        return tuple(out)

    hook = model.backbone.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            score, where, number = find_score(model, x.requires_grad_(), number)
            if not score.requires_grad:
                sys.exit(f'error: {type(model).__name__} cuts its scores off from the backbone')
            gradients = torch.autograd.grad(score, kept, allow_unused=True)
    finally:
        hook.remove()
    maps = [
        torch.zeros(a.shape[2:]) if g is None else weigh(a[0].detach(), g[0])
        for a, g in zip(kept, gradients, strict=True)
    ]
    return maps, score.item(), where.detach(), number


def draw(subject: Subject, photo: np.ndarray, name: str | None) -> Any:
    """The photograph with the best box or the logits, then a panel for each output."""
    if not hasattr(subject.model, 'backbone'):
        sys.exit(f'error: {subject.name} is a backbone without classes; give a config')
    classes = find_classes(subject.cfg)
    chosen = None if name is None else find_class(name, classes)
    maps, score, where, number = explain(subject.model, subject.prepare(photo), chosen)
    label = classes[number] if classes else f'class {number}'
    title = f'Grad-CAM of {label}: {subject.title}'
    aspect = photo.shape[0] / photo.shape[1]
    figure, axes = picture.make_panels(1, 1 + len(maps), title, aspect, 3.2)
    if where.ndim == 1:
        left, top, right, bottom = where.tolist()
        picture.show_photo(axes[0][0], photo, f'best box, score {score:.3g}')
        picture.mark(axes[0][0], left, top, right - left, bottom - top)
    else:
        picture.show_map(axes[0][0], where.numpy(), f'logits of {label}', photo)
    for i, (axis, values) in enumerate(zip(axes[0][1:], maps, strict=True)):
        shown = values.numpy()
        size = f'output {i + 1}: {shown.shape[0]}x{shown.shape[1]}'
        text = size if shown.any() else f'{size}, no positive evidence'
        picture.show_map(axis, shown, text, photo)
    return figure
