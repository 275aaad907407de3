"""Checks that the classes of data and heads agree, and that there is something to learn."""

import inspect
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch import nn

from mmpatch.engine.errors import MAX_NAMES, join_first
from mmpatch.engine.samples import is_label_reader

#: Label maps that are read before the first iteration.
MAX_MAPS = 50
#: Words in the types of heads whose classes are not those of the data.
OTHER_HEADS = ('RPN', 'Semantic', 'PanopticFPN')
warn = partial(print_log, logger='current', level=logging.WARNING)


def check_dataset_types(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check what the datasets of a config say of classes, suffixes and label 0, and build none.

    Raises:
        ValueError: If the classes cannot be those of the dataset type, a dataset of mmseg has none,
            no picture has its suffix, or ``reduce_zero_label`` is set in one place of two.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in find_datasets(loader.dataset) if loader else ():
            place = f'{split}_dataloader.dataset'
            with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
                registry.import_from_location()
                kind = dataset.get('type')
                kind = registry.get(kind) if isinstance(kind, str) else kind
            classes = (dataset.get('metainfo') or {}).get('classes')
            if isinstance(classes, str):
                if not Path(classes).is_file():
                    raise ValueError(
                        f'{place}.metainfo.classes={classes!r} is one string: write ({classes!r},)'
                    )
                classes = Path(classes).read_text().splitlines()  # as MMEngine reads it
            if hasattr(kind, 'get_label_map'):  # mmseg
                _check_segmentation(place, dataset, kind, classes)


def _check_segmentation(place: str, dataset: Any, kind: Any, classes: Any) -> None:
    fixed = kind.METAINFO.get('classes')
    if not fixed and not classes:
        raise ValueError(
            f"{place}: {kind.__name__} has no classes; set metainfo=dict(classes=('...', '...')), "
            'in the order of the labels'
        )
    if fixed and classes and not set(classes) <= set(fixed):
        other = [name for name in classes if name not in fixed]
        raise ValueError(
            f'{place}.metainfo.classes: {join_first(other)}: not among the {len(fixed)} classes of '
            f"{kind.__name__}; for classes of your own set type='BaseSegDataset'"
        )
    # a subclass may hand arguments on as keywords
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    reduced = dataset.get('reduce_zero_label', defaults.get('reduce_zero_label'))
    for step in dataset.get('pipeline') or ():
        own = step.get('reduce_zero_label')  # of LoadAnnotations
        if own is not None and bool(own) != bool(reduced):
            raise ValueError(
                f'{place}: reduce_zero_label={reduced} in the dataset, {own} in LoadAnnotations '
                'of its pipeline; set both to the same. True ignores label 0 and counts the '
                'classes from label 1'
            )
    if dataset.get('ann_file') or dataset.get('backend_args'):
        return
    prefix: dict[str, str] = dataset.get('data_prefix') or {}
    folder = Path(dataset.get('data_root') or '', prefix.get('img_path', ''))
    suffix = dataset.get('img_suffix', defaults.get('img_suffix'))
    if suffix and not any(True for _ in folder.rglob(f'*{suffix}')):
        found = sorted({path.suffix for path in folder.rglob('*.*')})
        hint = f'; set {place}.img_suffix={found[0]!r}' if found else ''
        raise ValueError(f'no file in {folder} ends with {suffix}{hint}')


def check_heads(model: nn.Module, dataset: Any) -> None:
    """Check that the heads of a model have as many classes as a dataset.

    Heads whose classes are others are left out: region proposals, semantic branches of detectors,
    and models that read the names of classes as text. Of panoptic data, heads for boxes and masks
    have the ``thing_classes``.

    Raises:
        ValueError: If not; names every head by its key in the config.
    """
    heads = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith('Head')
        and not any(word in type(module).__name__ for word in OTHER_HEADS)
        and hasattr(module, 'num_classes')
    }
    for part in find_datasets(dataset):
        info = getattr(part, 'metainfo', {})
        classes: Sequence[str] = info.get('classes') or ()
        things = [name for name in info.get('thing_classes', ()) if name in classes] or classes
        wrong: dict[tuple[str, ...], list[str]] = {}
        for name, module in heads.items():
            is_joint = hasattr(module, 'num_things_classes')  # Mask2Former's
            key = '(num_things_classes+num_stuff_classes)' if is_joint else 'num_classes'
            names = tuple(classes if is_joint else things)
            if names and module.num_classes != len(names):
                head = f'model.{name.removeprefix("module.")}.{key}={module.num_classes}'
                wrong.setdefault(names, []).append(head)
        if wrong and not hasattr(model, 'language_model'):
            lines = [
                f'{", ".join(sorted(found))}, but {type(part).__name__} has {len(names)} classes '
                f'({join_first(names)}): set {len(names)} in these heads'
                for names, found in wrong.items()
            ]
            raise ValueError('; '.join(lines))


def report_objects(dataset: Any, counts: Counter[int]) -> None:
    """Print the objects of each class; warn of classes without one.

    Args:
        dataset: Of mmdet.
        counts: Objects by label.

    Raises:
        ValueError: If there is nothing to train on.
    """
    classes = dataset.metainfo['classes']
    place = f'{type(dataset).__name__} ({dataset.ann_file})'
    if not counts and not dataset.test_mode:
        raise ValueError(
            f'{place}: {len(dataset)} images without one object that can be used; the annotation '
            'file must list some, of categories that are named as the classes'
        )
    what = f'{len(dataset)} images, {sum(counts.values())} objects'
    _report(f'{place}: {what}', 'object', [counts[i] for i in range(len(classes))], classes)


def check_label_maps(dataset: Any) -> None:
    """Read some label maps of a dataset of mmseg, spread over all, as in training; count pixels.

    Args:
        dataset: Whose pipeline was given to :func:`mmpatch.engine.samples.watch_samples`.

    Raises:
        SampleError: If one cannot be used; see :class:`mmpatch.engine.samples.LabelReader`.
        ValueError: If no pixel of these maps belongs to a class.
    """
    load: Any = next(filter(is_label_reader, getattr(dataset.pipeline, 'transforms', ())), None)
    classes = dataset.metainfo.get('classes')
    if load is None or not classes:
        return
    total, number = np.zeros(len(classes), np.int64), 0
    asked = min(MAX_MAPS, len(dataset))
    for k in range(asked):
        info = dataset.get_data_info(k * len(dataset) // asked)
        folder = Path(info['seg_map_path']).parent
        labels = (load(info) or {}).get('gt_seg_map')
        if labels is None:  # a later step makes the map
            continue
        number += 1
        used = labels[(labels >= 0) & (labels < len(classes))]
        total += np.bincount(used.ravel().astype(np.int64), minlength=len(classes))
    if not number:
        return
    what = f'{type(dataset).__name__} ({folder}): {len(dataset)} images'
    if not total.sum():
        raise ValueError(f'{what}: {number} label maps were read, and no pixel belongs to a class')
    sample = f'; pixels of {number} label maps' if number < len(dataset) else ', pixels'
    _report(f'{what}{sample}', 'pixel', total.tolist(), classes)


def _report(what: str, unit: str, counts: list[int], classes: Sequence[str]) -> None:
    """One line on what there is of each class, and a warning if there is nothing of some."""
    most = sorted(range(len(classes)), key=lambda i: -counts[i])[: 4 * MAX_NAMES]
    listed = [f'{classes[i]} {counts[i]}' for i in sorted(most) if counts[i]]
    more = sum(map(bool, counts)) - len(listed)
    listed += [f'{more} other classes'] * bool(more)
    print_log(f'{what}: {", ".join(listed)}', logger='current')
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        warn(f'{len(empty)} of {len(classes)} classes have no {unit} here: {join_first(empty)}')


def find_datasets(dataset: Any) -> Iterator[Any]:
    """Datasets, or configs of them, that wrappers hold."""
    get = dataset.get if isinstance(dataset, dict) else partial(getattr, dataset)
    inner = get('datasets', None) or get('dataset', None)
    if inner is None:
        yield dataset
        return
    for part in inner if isinstance(inner, list | tuple) else [inner]:
        yield from find_datasets(part)
