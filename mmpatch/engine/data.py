"""Checks of data that name the wrong file at the start, instead of a failure hours later."""

import filecmp
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner

from mmpatch.engine.classes import check_label_maps, find_datasets, report_classes, warn
from mmpatch.engine.coco import check_coco, check_layout, complete_annotations
from mmpatch.engine.errors import join_first
from mmpatch.engine.model import as_list
from mmpatch.engine.samples import find_known_steps, watch_samples

DATA_SOURCES = {
    'CocoDataset': 'https://cocodataset.org/#download (train2017, val2017, annotations)',
    'ADE20KDataset': 'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
}
DRAW = '; to draw a small set of the same layout, run python tools/make_toy_data.py'


def check_paths(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that the folders and annotation files of a config exist.

    Args:
        cfg: Config of mmdet or mmseg.
        splits: Some of 'train', 'val' and 'test'.

    Raises:
        FileNotFoundError: Names the first path that is missing, and how to get the data.
        ValueError: If an evaluator reads another annotation file than the data that it evaluates.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        files: list[Path] = []  # of annotations
        for dataset in find_datasets(loader.dataset) if loader else ():
            kind = dataset.get('type', '')
            kind = str(getattr(kind, '__name__', kind)).split('.')[-1]
            root = Path(dataset.get('data_root') or '')
            if dataset.get('backend_args'):
                continue  # not on a local disk
            if root.is_file():
                raise FileNotFoundError(f'data_root={root} is a file; give the folder of the data')
            prefixes = dict(dataset.get('data_prefix') or {})
            if 'Annotation' not in str(dataset.get('pipeline')):  # no step reads labels
                prefixes.pop('seg_map_path', None)
            names = [dataset.get('ann_file') or '', *prefixes.values()]
            paths = [root / name for name in names if isinstance(name, str | Path)]  # no lists
            for path in [root, *paths]:
                if not path.exists():
                    source = DATA_SOURCES.get(kind)
                    how, draw = (f'; download it from {source}', DRAW) if source else ('', '')
                    raise FileNotFoundError(
                        f'{path} does not exist ({split} data of the config). {kind} reads it{how}.'
                        f' To train elsewhere, pass --cfg-options data_root=FOLDER{draw}.'
                    )
            files += paths[:1]
        if files and files[0].is_file():
            _check_evaluators(cfg, split, files[0], len(files) == 1 and 'Panoptic' not in kind)


def _check_evaluators(cfg: Config, split: str, file: Path, is_same: bool) -> None:
    """Metrics of COCO read annotations again: of panoptic data, or of several sets, other files."""
    way = f'; set it to that of the data, {file}'
    for evaluator in as_list(cfg.get(f'{split}_evaluator')):
        given = evaluator.get('ann_file')
        if evaluator.get('backend_args') or not isinstance(given, str | Path):
            continue
        what = f'{split}_evaluator.ann_file={given}'
        if not Path(given).exists():
            raise FileNotFoundError(f'{what} does not exist{way}')
        if is_same and not filecmp.cmp(file, given):
            raise ValueError(f'{what} is another file{way}')


def replace_data_root(cfg: Config, data_root: str) -> None:
    """Change ``data_root`` of a config, and every path of its data below it.

    Raises:
        KeyError: If the config has no ``data_root``.
    """
    if 'data_root' not in cfg:
        raise KeyError('data_root: the config has no data_root to replace')
    old = cfg.data_root.rstrip('/')

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return type(value)({key: move(item) for key, item in value.items()})
        if isinstance(value, list | tuple):
            return type(value)(move(item) for item in value)
        if isinstance(value, str) and f'{value}/'.startswith(f'{old}/'):
            return f'{data_root.rstrip("/")}{value[len(old) :]}'
        return value

    for key in list(cfg):
        if key.endswith(('_dataloader', '_evaluator')):
            cfg[key] = move(cfg[key])
    cfg.data_root = data_root


def check_dataset(dataset: Any) -> None:
    """Check the files and labels of a built dataset, and make errors of its pipeline name samples.

    One line says what there is of each class. Labels without an image, which the hosts skip, give
    one warning with their number. Datasets that are not on a local disk are left alone, and so is
    what is read after a step of one's own, which may change samples.

    Args:
        dataset: Of MMEngine, or a wrapper of several.

    Raises:
        FileNotFoundError: If images or labels are missing or empty; names the first few.
        ValueError: If there is nothing to learn, a label is no class, or a mask is missing.
    """
    totals: list[tuple[str, int]] = []  # objects of each training set
    for part in find_datasets(dataset):
        if not isinstance(part, BaseDataset) or getattr(part, 'backend_args', None):
            continue
        watch_samples(part)
        if part.pipeline.is_checked:
            continue
        kind = type(part).__name__
        bad: list[str] = []
        labels: dict[str, set[str]] = {}  # names by folder
        objects: Counter[int] | None = None  # by label
        unmasked, steps = 0, find_known_steps(part)
        with_mask = any(
            getattr(step, 'with_mask', False) and 'Panoptic' not in type(step).__name__
            for step in steps  # masks of panoptic data are PNGs
        )
        kinds = str([type(getattr(step, 'inner', step)).__name__ for step in steps])
        is_read = {'img_path': 'ImageFrom' in kinds, 'seg_map_path': 'Annotation' in kinds}
        for i in range(len(part)):  # one sample at a time: all of COCO's would take gigabytes
            info = part.get_data_info(i)
            paths = [p for key in is_read if is_read[key] for p in as_list(info.get(key)) if p]
            bad += (p for p in paths if not (os.path.exists(p) and os.path.getsize(p)))
            if info.get('seg_map_path') in paths:
                folder, name = os.path.split(info['seg_map_path'])
                labels.setdefault(folder, set()).add(name)
            if 'instances' in info:
                objects = objects or Counter()
                boxes = [box for box in info['instances'] if 'bbox_label' in box]
                objects.update(box['bbox_label'] for box in boxes if not box.get('ignore_flag'))
                unmasked += with_mask and sum('mask' not in box for box in boxes)
        if bad:
            raise FileNotFoundError(
                f'{len(bad)} of the files that {kind} names are missing or empty: {join_first(bad)}'
            )
        if unmasked:
            raise ValueError(
                f'{unmasked} objects of {kind} ({part.ann_file}) have no usable '
                'segmentation, and its pipeline loads masks (with_mask=True): add them to the '
                'file, or remove these objects'
            )
        suffix = getattr(part, 'seg_map_suffix', '')
        for folder, used in sorted(labels.items()):
            is_part = part.ann_file or part._indices is not None  # of the files there
            names = () if is_part else sorted(set(os.listdir(folder)) - used)
            if extra := [n for n in names if n.endswith(suffix) and not n.startswith('.')]:
                warn(
                    f'{len(extra)} labels in {folder} have no image and are not used: '
                    f'{join_first(extra)}'
                )
        if objects is not None and part.metainfo.get('classes'):
            what = f'{kind} ({part.ann_file}): {len(part)} images, {objects.total()} objects'
            report_classes(what, 'object', objects, part.metainfo['classes'])
            if is_read['seg_map_path'] and not part.test_mode:
                totals.append((f'{kind} ({part.ann_file})', objects.total()))
        if objects is None:
            check_label_maps(part)
        part.pipeline.is_checked = True
    if totals and not any(total for _, total in totals):
        raise ValueError(
            f'{", ".join(name for name, _ in totals)}: no image has an object that can be used; '
            'the annotation file must list some, of categories that are named as the classes'
        )


def build_dataloader(*args: Any, **kwargs: Any) -> Any:
    """``Runner.build_dataloader``, which has samples checked before workers start.

    Loops by iteration start theirs before the first hook.
    """
    loader = Runner.build_dataloader(*args, **kwargs)
    watch_loader(loader)
    return loader


def watch_loader(loader: Any) -> None:
    """Have the samples of a data loader checked: see :func:`watch_samples`; there must be some."""
    parts = [part for part in find_datasets(loader.dataset) if isinstance(part, BaseDataset)]
    if parts and all(part._fully_initialized and not len(part) for part in parts):
        _refuse_empty(parts[0])
    for part in parts:
        watch_samples(part)


def check_annotation_files(host: str) -> None:
    """Check annotation files of COCO's format while mmdet has them in memory; name empty datasets.

    Args:
        host: 'mmdet' or 'mmseg'.
    """
    BaseDataset._serialize_data = _serialize_some
    if host != 'mmdet':
        return
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.api_wrappers import COCO
    from mmdet.evaluation.metrics import coco_metric

    class NamedCOCO(COCO):
        def __init__(self, annotation_file: str) -> None:
            self.file = str(annotation_file)
            super().__init__(annotation_file)

    class CheckedCOCO(NamedCOCO):
        def __init__(self, annotation_file: str) -> None:
            try:
                super().__init__(annotation_file)
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ValueError(f'{self.file} is no JSON, or cut off: {error}') from error
            except AssertionError:  # of pycocotools, for a list or a number
                raise ValueError(f'{self.file} does not hold the dict of a COCO file') from None

        def createIndex(self) -> None:  # noqa: N802, the name in pycocotools
            check_layout(self.dataset, self.file)
            super().createIndex()

        def get_cat_ids(self, cat_names: Any = (), *args: Any, **kwargs: Any) -> Any:
            check_coco(self, self.file, cat_names)  # mmdet calls this once, with its classes
            return super().get_cat_ids(cat_names, *args, **kwargs)

    class CompleteCOCO(NamedCOCO):
        def createIndex(self) -> None:  # noqa: N802
            complete_annotations(self.dataset)
            super().createIndex()

    CocoDataset.COCOAPI = CheckedCOCO
    coco_metric.COCO = CompleteCOCO


def _serialize_some(self: Any, serialize: Any = BaseDataset._serialize_data) -> Any:
    """MMEngine's ``_serialize_data``, which fails without a word on a dataset without images."""
    if not self.data_list:
        _refuse_empty(self)
    return serialize(self)


def _refuse_empty(dataset: Any) -> None:
    """Raise a ValueError that says why a dataset may have no image."""
    suffix, folder = getattr(dataset, 'img_suffix', ''), dataset.data_prefix.get('img_path')
    if suffix and folder and not dataset.ann_file:
        found = {path.name: path.suffix for path in Path(folder).rglob('*.*')}
        if not any(name.endswith(suffix) for name in found):
            kind = min(found.values(), default='')
            hint = f'; set img_suffix={kind!r} in the dataset' if found else ''
            raise ValueError(f'no file in {Path(folder)} ends with {suffix}{hint}')
    where = dataset.ann_file or next(iter(dataset.data_prefix.values()), dataset.data_root)
    raise ValueError(
        f'{type(dataset).__name__} ({where}) has no image that can be used: none is listed there, '
        'or none is left by indices or filter_cfg (no object of the classes, or below min_size)'
    )
