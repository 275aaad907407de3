"""Checks that the classes of data and heads agree, and that there is something to learn."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch import nn

from mmpatch.engine.errors import MAX_NAMES, join_first
from mmpatch.engine.samples import SampleNamingPipeline, find_known_steps, is_label_reader

#: Label maps that are read before the first iteration.
MAX_MAPS = 50
#: Heads whose classes are not those of the data, by their place in a model, or by their type.
OTHER_PLACES = ('rpn_head', 'semantic_head')
OTHER_HEADS = {'RPNHead', 'GARPNHead', 'STDCHead', 'VPDDepthHead', 'LinearReIDHead'}
warn = partial(print_log, logger='current', level=logging.WARNING)


def check_dataset_types(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check the classes that a config gives to its datasets, and build none.

    Raises:
        ValueError: If they are one string, or cannot be those of a dataset type of mmseg.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in find_datasets(loader.dataset) if loader else ():
            place = f'{split}_dataloader.dataset.metainfo.classes'
            with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
                registry.import_from_location()
                kind = dataset.get('type')
                kind = registry.get(kind) if isinstance(kind, str) else kind
            classes = (dataset.get('metainfo') or {}).get('classes')
            if isinstance(classes, str):
                if not Path(classes).is_file():
                    raise ValueError(f'{place}={classes!r} is one string: write ({classes!r},)')
                classes = Path(classes).read_text().splitlines()  # as MMEngine reads it
            fixed = kind.METAINFO.get('classes') if hasattr(kind, 'get_label_map') else None
            if fixed and classes and not set(classes) <= set(fixed):
                other = [name for name in classes if name not in fixed]
                raise ValueError(
                    f'{place}: {join_first(other)}: not among the {len(fixed)} classes of '
                    f"{kind.__name__}; for classes of your own set type='BaseSegDataset'"
                )


def check_heads(model: nn.Module, dataset: Any) -> None:
    """Check that the heads of a model have as many classes as a dataset.

    A head is a module that the model has under a name with 'head'. Those whose classes are others
    are left out: region proposals, semantic branches of detectors, boundaries, depth, identities,
    and models that read the names of classes as text. Of panoptic data, heads for boxes and masks
    have the ``thing_classes``; they are left out if the data have classes of their own.

    Raises:
        ValueError: If not; names every head by its key in the config.
    """
    heads = {}
    for name, module in model.named_modules():
        place = name.rstrip('.0123456789').split('.')[-1]  # of a list, too
        kinds = {kind.__name__ for kind in type(module).__mro__}
        is_other = place in OTHER_PLACES or kinds & OTHER_HEADS
        if hasattr(module, 'num_classes') and place.endswith('head') and not is_other:
            heads[name] = module
    for part in find_datasets(dataset):
        info = getattr(part, 'metainfo', {})
        classes: Sequence[str] = info.get('classes') or ()
        things, stuff = info.get('thing_classes', classes), info.get('stuff_classes', ())
        is_known = set(classes) <= {*things, *stuff}
        things = [name for name in things if name in classes and is_known]
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


def check_label_maps(dataset: Any) -> None:
    """Read some label maps of a dataset of mmseg, spread over all, with their images; count pixels.

    Nothing is read if a step of one's own comes first: see
    :func:`mmpatch.engine.samples.find_known_steps`.

    Args:
        dataset: Whose pipeline was given to :func:`mmpatch.engine.samples.watch_samples`.

    Raises:
        SampleError: If one cannot be used; see :class:`mmpatch.engine.samples.LabelReader`.
        ValueError: If there are no classes, or no pixel belongs to one.
    """
    steps = find_known_steps(dataset)
    readers = [i for i, step in enumerate(steps) if is_label_reader(step)]
    kind, classes = type(dataset).__name__, dataset.metainfo.get('classes')
    if not readers or not (classes or hasattr(dataset, 'label_map')):
        return
    if not classes:
        raise ValueError(
            f"{kind} has no classes; set metainfo=dict(classes=('...', '...')) in the dataset, in "
            'the order of the labels'
        )
    images = [step for step in steps[: readers[0]] if hasattr(step, 'color_type')]
    load = SampleNamingPipeline(Compose([*images, steps[readers[0]]]))
    total, number = np.zeros(len(classes), np.int64), 0
    asked = min(MAX_MAPS, len(dataset))
    for k in range(asked):
        info = dataset.get_data_info(k * len(dataset) // asked)
        labels = (load(info) or {}).get('gt_seg_map')
        folder = Path(info['seg_map_path']).parent
        if labels is None:  # the picture is left out (ignore_empty)
            continue
        number += 1
        used = labels[(labels >= 0) & (labels < len(classes))]
        total += np.bincount(used.ravel().astype(np.int64), minlength=len(classes))
    if not number:
        return
    what = f'{kind} ({folder}): {len(dataset)} images'
    if not total.any() and number == len(dataset):
        raise ValueError(f'{what}: {number} label maps were read, and no pixel belongs to a class')
    sample = f'; pixels of {number} label maps' if number < len(dataset) else ', pixels'
    report_classes(f'{what}{sample}', 'pixel', total, classes)


def report_classes(what: str, unit: str, counts: Any, classes: Sequence[str]) -> None:
    """Print one line on what there is of each class, by label; warn of those without anything."""
    used = [i for i in range(len(classes)) if counts[i]]
    most = sorted(used, key=lambda i: -counts[i])[: 4 * MAX_NAMES]
    listed = [f'{classes[i]} {counts[i]}' for i in sorted(most)]
    listed += [f'{len(used) - len(most)} other classes'] * (len(used) > len(most))
    print_log(f'{what}: {", ".join(listed)}', logger='current')
    if empty := [name for i, name in enumerate(classes) if not counts[i]]:
        warn(f'{len(empty)} of {len(classes)} classes have no {unit} here: {join_first(empty)}')


def find_datasets(dataset: Any) -> Iterator[Any]:
    """Datasets, or configs of them, that wrappers hold."""
    get = dataset.get if isinstance(dataset, dict) else partial(getattr, dataset)
    inner = get('datasets', None) or get('dataset', None)
    parts = inner if isinstance(inner, list | tuple) else [inner]
    if not all(isinstance(part, dict) or hasattr(part, 'metainfo') for part in parts):
        yield dataset  # whose argument has another meaning
        return
    for part in parts:
        yield from find_datasets(part)
