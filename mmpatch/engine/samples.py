"""Pipelines that check what they read of every sample, and name the sample that they fail on."""

import os
from itertools import takewhile
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from PIL import Image

from mmpatch.engine.errors import SampleError, join_first

PATH_KEYS = ('img_path', 'seg_map_path')


def watch_samples(dataset: Any) -> None:
    """Make the pipeline of a dataset check pictures and label maps, and name samples in errors.

    A picture must have the size that its annotations state, and the labels of a map of mmseg must
    be classes. Errors are :class:`SampleError`, also in processes that load data.

    Args:
        dataset: Of MMEngine; nothing is done a second time.
    """
    if isinstance(dataset.pipeline, SampleNamingPipeline):
        return
    dataset.pipeline = SampleNamingPipeline(_watch_steps(dataset.pipeline, dataset))


def _watch_steps(step: Any, dataset: Any) -> Any:
    """Wrap a step that reads files, or those inside a step that holds others."""
    if hasattr(step, 'color_type'):  # LoadImageFromFile
        return ImageReader(step)
    if is_label_reader(step) and dataset.metainfo.get('classes'):
        return LabelReader(step, dataset)
    for name in ('transforms', 'subroutines'):  # the second of test-time augmentation
        inner = getattr(step, name, None)
        if isinstance(inner, list):
            inner[:] = [_watch_steps(part, dataset) for part in inner]
        elif hasattr(inner, name):  # a pipeline
            _watch_steps(inner, dataset)
    return step


def is_hosts(step: Any) -> bool:
    """Whether a step is one of mmcv, mmdet or mmseg, and does what is known of it."""
    module = type(getattr(step, 'inner', step)).__module__
    return module.split('.')[0] in ('mmcv', 'mmdet', 'mmseg')


def find_known_steps(dataset: Any) -> list[Any]:
    """Steps of a dataset's pipeline that get its samples as it lists them.

    They are those of the hosts ahead of the first step of one's own, which may do anything to a
    sample; so may a dataset with a ``prepare_data`` of its own.
    """
    if type(dataset).prepare_data is not BaseDataset.prepare_data:
        return []
    return list(takewhile(is_hosts, getattr(dataset.pipeline, 'transforms', ())))


def is_label_reader(step: Any) -> bool:
    """Whether a step reads label maps as mmseg does; those of mmdet come with boxes."""
    kinds = type(getattr(step, 'inner', step)).__mro__
    return hasattr(step, 'reduce_zero_label') and any(
        kind.__module__.startswith('mmseg.') for kind in kinds
    )


class Wrapper:
    """A pipeline, or a step of one, with all its attributes.

    Args:
        inner: Any callable on a dict of sample information.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return repr(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == 'inner':  # not set yet, when a worker unpickles this
            raise AttributeError(name)
        return getattr(self.inner, name)


class SampleNamingPipeline(Wrapper):
    """A pipeline whose errors say which sample they come from."""

    is_checked = False

    def __call__(self, info: dict[str, Any]) -> Any:
        """Run the pipeline on one sample.

        Raises:
            SampleError: If the pipeline fails; names the files of the sample.
        """
        is_one = isinstance(info, dict)  # a pipeline of one's own may get several
        paths = [str(info[key]) for key in PATH_KEYS if is_one and info.get(key)]
        try:
            return self.inner(info)
        except SampleError:
            raise
        except Exception as error:
            raise SampleError(
                f'the data pipeline failed on {" with ".join(paths) or "a sample"}: '
                f'{type(error).__name__}: {error}'
            ) from error


class ImageReader(Wrapper):
    """A step that reads a picture, whose size must be that of the annotations."""

    def __call__(self, info: dict[str, Any]) -> Any:
        """Read it.

        Raises:
            SampleError: If its height and width are not those that the annotations state.
        """
        stated = info.get('height'), info.get('width')
        result = self.inner(info)
        read = (result or {}).get('ori_shape')
        if not all(stated) or read is None or tuple(read) == stated:
            return result
        (height, width), path = read, info['img_path']
        hint = ''
        if (width, height) == stated and os.path.isfile(path) and _is_turned(path):
            hint = (
                '. The orientation in its EXIF data turns it: if the boxes are those of the '
                "stored picture, set color_type='color_ignore_orientation' in LoadImageFromFile"
            )
        raise SampleError(
            f'{path} has {width}x{height} pixels, but {stated[1]}x{stated[0]} in the annotations, '
            f'so that boxes would be wrong{hint}'
        )


class LabelReader(Wrapper):
    """A step of mmseg that reads a label map, whose labels must be classes.

    Args:
        inner: The step.
        dataset: Whose classes they are.
    """

    def __init__(self, inner: Any, dataset: Any) -> None:
        super().__init__(inner)
        self.count = len(dataset.metainfo['classes'])
        self.ignored = getattr(dataset, 'ignore_index', 255)

    def __call__(self, info: dict[str, Any]) -> Any:
        """Read it, ``reduce_zero_label`` and the mapping of classes included.

        Raises:
            SampleError: If there is none, it is no picture of one byte a pixel, has another size
                than its image, or a number in it is no class.
        """
        path, is_reduced = info.get('seg_map_path'), info.get('reduce_zero_label', False)
        shape = info.get('ori_shape')  # of the picture, if it has been read
        if is_known := is_hosts(self.inner):
            result = self._read(path, info)
        else:  # may read other files
            result, path = self.inner(info), path or info.get('img_path')
        labels = (result or {}).get('gt_seg_map')
        if labels is None:  # mmseg takes another sample, or a later step makes the map
            return result
        if labels.ndim != 2:
            raise SampleError(f'{path} was read as an array of shape {labels.shape}, not (H, W)')
        if is_known and shape and labels.shape != tuple(shape):
            own, size = ('x'.join(map(str, s[::-1])) for s in (labels.shape, shape))
            raise SampleError(f'{path} has {own} pixels, its image {info["img_path"]} has {size}')
        count = self.count
        others = labels[((labels < 0) | (labels >= count)) & (labels != self.ignored)]
        if wrong := [str(i) for i in np.unique(others)]:
            hint = '. If label 0 is no class, set reduce_zero_label=True in the dataset'
            raise SampleError(
                f'{path} has the labels {join_first(wrong)}, but there are {count} classes: 0 to '
                f'{count - 1}, and {self.ignored} for pixels to ignore '
                f'(reduce_zero_label={is_reduced})'
                f'{hint if wrong == [str(count)] and not is_reduced else ""}'
            )
        return result

    def _read(self, path: str | None, info: dict[str, Any]) -> Any:
        if path is None:
            raise SampleError(
                f'{info.get("img_path")} has no label map: set data_prefix=dict(seg_map_path=...)'
            )
        own, stated = self.reduce_zero_label, info.get('reduce_zero_label')
        if own not in (None, stated):  # mmseg asserts the same
            raise SampleError(
                f'{path}: reduce_zero_label={stated} in the dataset, {own} in LoadAnnotations of '
                'its pipeline; set both to the same. True ignores label 0 and counts the classes '
                'from label 1'
            )
        mode = 'L'  # of backends that do not tell
        try:
            if self.imdecode_backend == 'pillow' and not self.backend_args:
                with Image.open(path) as image:
                    mode = image.mode
            if mode in ('1', 'L', 'P'):
                return self.inner(info)
        except Exception as error:  # of every format its own, and one for too many pixels
            raise SampleError(f'{path} cannot be read: {type(error).__name__}: {error}') from error
        raise SampleError(
            f'{path} is a picture of mode {mode}, not a label map: one byte a pixel, the number of '
            'its class'
        )


def _is_turned(path: str) -> bool:
    """Whether the orientation in its EXIF data swaps width and height; a PNG is decoded for it."""
    with Image.open(path) as image:
        return image.getexif().get(0x0112, 1) >= 5
