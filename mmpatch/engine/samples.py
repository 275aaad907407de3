"""Pipelines that check what they read of every sample, and name the sample that they fail on."""

from typing import Any

import numpy as np
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
    steps = getattr(dataset.pipeline, 'transforms', [])
    for i, step in enumerate(steps):
        if hasattr(step, 'color_type'):  # LoadImageFromFile
            steps[i] = ImageReader(step)
        elif is_label_reader(step) and dataset.metainfo.get('classes'):
            steps[i] = LabelReader(step, dataset)
    dataset.pipeline = SampleNamingPipeline(dataset.pipeline)


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
        paths = [str(info[key]) for key in PATH_KEYS if info.get(key)]
        try:
            return self.inner(info)
        except SampleError:
            raise
        except Exception as error:
            raise SampleError(
                f'the data pipeline failed on {" with ".join(paths)}: '
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
        if None in stated or read is None or tuple(read) == stated:
            return result
        (height, width), path = read, info['img_path']
        hint = ''
        if (width, height) == stated:
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
        self.count, self.ignored = len(dataset.metainfo['classes']), dataset.ignore_index

    def __call__(self, info: dict[str, Any]) -> Any:
        """Read it, ``reduce_zero_label`` and the mapping of classes included.

        Raises:
            SampleError: If it is no picture of one byte a pixel, has another size than its image,
                or a number in it is no class.
        """
        path, count, is_reduced = info['seg_map_path'], self.count, info['reduce_zero_label']
        if self.imdecode_backend == 'pillow' and not self.backend_args:
            _check_headers(path, info['img_path'])
        try:
            result = self.inner(info)
        except Exception as error:
            raise SampleError(f'{path} cannot be read: {type(error).__name__}: {error}') from error
        seen = np.flatnonzero(np.bincount(result['gt_seg_map'].ravel(), minlength=256))
        if wrong := [str(i) for i in seen if i >= count and i != self.ignored]:
            hint = '. If label 0 is no class, set reduce_zero_label=True in the dataset'
            raise SampleError(
                f'{path} has the labels {join_first(wrong)}, but there are {count} classes: 0 to '
                f'{count - 1}, and {self.ignored} for pixels to ignore '
                f'(reduce_zero_label={is_reduced})'
                f'{hint if wrong == [str(count)] and not is_reduced else ""}'
            )
        return result


def _check_headers(path: str, image_path: str) -> None:
    """Check a label map by the headers of its file and of its image."""
    try:
        with Image.open(path) as label, Image.open(image_path) as image:
            mode, size, image_size = label.mode, label.size, image.size
            turned = image.getexif().get(0x0112, 1) >= 5  # orientation; readers turn such images
    except Exception as error:  # of every format its own, and one for pictures that are too large
        raise SampleError(f'{path} or {image_path} cannot be read: {error}') from error
    if mode not in ('1', 'L', 'P'):
        raise SampleError(
            f'{path} is a picture of mode {mode}, not a label map: one byte a pixel, the number of '
            'its class'
        )
    if size != (image_size[::-1] if turned else image_size):
        raise SampleError(
            f'{path} has {size[0]}x{size[1]} pixels, its image {image_path} has '
            f'{image_size[0]}x{image_size[1]}'
        )
