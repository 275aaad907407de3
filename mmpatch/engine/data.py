"""Checks of data that name the wrong file at the start, instead of a failure hours later."""

import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

MAX_NAMES = 5
PATH_KEYS = ('img_path', 'seg_map_path')
DATA_SOURCES = {
    'CocoDataset': 'https://cocodataset.org/#download (train2017, val2017, annotations)',
    'ADE20KDataset': 'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
}
_warn = partial(print_log, logger='current', level=logging.WARNING)


def check_paths(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that the folders and annotation files of a config exist.

    Args:
        cfg: Config of mmdet or mmseg.
        splits: Some of 'train', 'val' and 'test'.

    Raises:
        FileNotFoundError: Names the first path that is missing, and how to get the data.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in _find_datasets(loader.dataset) if loader else ():
            root = Path(dataset.get('data_root') or '')
            if dataset.get('backend_args'):
                continue  # not on a local disk
            names = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
            for path in [root, *(root / name for name in names if name)]:
                if not path.exists():
                    kind = str(dataset.get('type', '')).split('.')[-1]
                    how = f'; download it from {DATA_SOURCES[kind]}' if kind in DATA_SOURCES else ''
                    raise FileNotFoundError(
                        f'{path} does not exist ({split} data of the config). {kind} reads it{how}.'
                        ' To train elsewhere, pass --cfg-options data_root=FOLDER; to draw a small '
                        'set of the same layout, run python tools/make_toy_data.py.'
                    )


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
    """Check the files of a built dataset, and make errors of its pipeline name their sample.

    Labels without an image, which the hosts skip, give one warning with their number. Datasets that
    are not on a local disk are left alone.

    Raises:
        FileNotFoundError: If images or labels are missing or empty; names the first few.
    """
    for part in _find_datasets(dataset):
        if not isinstance(part, BaseDataset) or getattr(part, 'backend_args', None):
            continue
        if isinstance(part.pipeline, SampleNamingPipeline):
            continue
        bad: list[str] = []
        labels: dict[str, set[str]] = {}  # names by folder
        for i in range(len(part)):  # one sample at a time: all of COCO's would take gigabytes
            info = part.get_data_info(i)
            paths = [info[key] for key in PATH_KEYS if info.get(key)]
            bad += (p for p in paths if not (os.path.exists(p) and os.path.getsize(p)))
            if info.get('seg_map_path'):
                folder, name = os.path.split(info['seg_map_path'])
                labels.setdefault(folder, set()).add(name)
        if bad:
            raise FileNotFoundError(
                f'{len(bad)} of the files that {type(part).__name__} names are missing or empty: '
                f'{_join_first(bad)}'
            )
        suffix = getattr(part, 'seg_map_suffix', '')
        for folder, used in sorted(labels.items()):
            extra = sorted(n for n in set(os.listdir(folder)) - used if n.endswith(suffix))
            if extra:
                _warn(
                    f'{len(extra)} labels in {folder} have no image and are not used: '
                    f'{_join_first(extra)}'
                )
        part.pipeline = SampleNamingPipeline(part.pipeline)


def warn_of_lost_annotations() -> None:
    """Make mmdet warn of annotations whose image the annotation file does not list."""
    from mmdet.datasets import CocoDataset

    class CountingCOCO(CocoDataset.COCOAPI):
        def createIndex(self) -> None:  # noqa: N802, the name in pycocotools
            super().createIndex()
            listed = self.dataset.get('annotations', ())
            lost = [str(a['id']) for a in listed if a['image_id'] not in self.imgs]
            if lost:
                _warn(
                    f'{len(lost)} annotations belong to images that the annotation file does not '
                    f'list and are not used: ids {_join_first(lost)}'
                )

    CocoDataset.COCOAPI = CountingCOCO


class SampleNamingPipeline:
    """A pipeline whose errors say which sample they come from.

    Args:
        pipeline: Any callable on a dict of sample information.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __call__(self, info: dict[str, Any]) -> Any:
        """Run the pipeline on one sample.

        Raises:
            RuntimeError: If the pipeline fails; names the files of the sample.
        """
        paths = [str(info[key]) for key in PATH_KEYS if info.get(key)]
        try:
            return self.pipeline(info)
        except Exception as error:
            raise RuntimeError(
                f'the data pipeline failed on {" with ".join(paths)}: '
                f'{type(error).__name__}: {error}'
            ) from error

    def __getattr__(self, name: str) -> Any:
        if name == 'pipeline':  # not set yet, when a worker unpickles this
            raise AttributeError(name)
        return getattr(self.pipeline, name)


def _find_datasets(dataset: Any) -> Iterator[Any]:
    """Datasets, or configs of them, that wrappers hold."""
    get = dataset.get if isinstance(dataset, dict) else partial(getattr, dataset)
    inner = get('datasets', None) or get('dataset', None)
    if inner is None:
        yield dataset
        return
    for part in inner if isinstance(inner, list | tuple) else [inner]:
        yield from _find_datasets(part)


def _join_first(names: list[str]) -> str:
    return ', '.join(names[:MAX_NAMES]) + (', ...' if len(names) > MAX_NAMES else '')
