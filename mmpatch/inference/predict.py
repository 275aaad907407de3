"""Predictions of trained detectors and segmentors on pictures and videos."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress as suppress_errors
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.structures import InstanceData, PixelData
from mmengine.utils import track_iter_progress
from PIL import Image, UnidentifiedImageError

from mmpatch.deployment.files import first_line
from mmpatch.inference.results import KINDS, Shot, Writer, Written
from mmpatch.inference.slices import Grid, suppress
from mmpatch.inference.trained import File, load_inferencer

PICTURES = ('.jpg', '.jpeg', '.png', '.ppm', '.pgm', '.bmp', '.tif', '.tiff', '.webp')  # of mmdet
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
#: Longest side of a drawn picture, in pixels; for larger ones the hosts need gigabytes.
MAX_DRAWN = 1600
#: Most objects that are drawn, the best; the host holds a mask of each.
MAX_OBJECTS = 200
LOADING = threading.Lock()  # the hosts build in a scope that all threads share


def predict(
    config: File | Config | None,
    checkpoint: File,
    inputs: File | Sequence[File],
    *,
    out: File | None = None,
    progress: bool = False,
    **settings: Any,
) -> list[dict[str, Any]] | Written:
    """Predict boxes, masks or class maps with a trained detector or segmentor.

    Args:
        config: See :class:`Predictor`, as for ``checkpoint`` and the ``settings``: ``slice``,
            ``overlap``, ``score_thr``, ``device``, ``cfg_options``.
        checkpoint: File that a training wrote.
        inputs: A picture, a folder of pictures, a video, or several of these.
        out: Folder for ``predictions.json``, drawn pictures and class maps, which are written one
            by one and whole at any time. No prediction stays in memory.
        progress: Whether to show a progress bar.
        settings: See above.

    Returns:
        Without ``out``, a dict of each picture or frame: ``file``, ``frame`` in a video, ``size``
        (width, height), and what :class:`Predictor` finds. With ``out``, what was written. A file
        that cannot be read is named in the log, and has ``error`` instead of a prediction.

    Raises:
        FileNotFoundError: If there is no such input, or a folder has no pictures.
        NotADirectoryError: If ``out`` is a file.
        ValueError: If ``out`` would overwrite inputs, or another process writes there. For more
            errors, see :class:`Predictor`.
    """
    files = list_files([inputs] if isinstance(inputs, str | os.PathLike) else inputs)
    folder = None if out is None else Path(out).expanduser()
    if folder and folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f'{folder} is a file; predictions need a folder')
    targets = [(folder / kind).resolve() for kind in KINDS] if folder else []
    if lost := next((file for file in files if file.parent.resolve() in targets), None):
        raise ValueError(f'{lost} could be overwritten; give another folder than {folder} as out')
    predictor = Predictor(config, checkpoint, **settings)
    found = _predict_all(predictor, files, progress, with_drawing=folder is not None)
    if folder is None:
        return [{**shot.describe(), **result} for shot, result, _ in found]
    with Writer(folder, {'checkpoint': str(checkpoint), **predictor.meta}) as writer:
        for shot, result, drawn in found:
            writer.add(shot, result, drawn)
    return Written(writer.path, writer.count, writer.failed)


def list_files(inputs: Sequence[File]) -> list[Path]:
    """Pictures and videos that inputs name. Folders below a folder are not searched.

    Raises:
        FileNotFoundError: If there is no such file, or a folder has no pictures.
    """
    files: list[Path] = []
    for path in (Path(given).expanduser() for given in inputs):
        names = sorted(path.iterdir()) if path.is_dir() else []
        found = [file for file in names if file.suffix.lower() in PICTURES]
        if path.is_dir() and not found:
            raise FileNotFoundError(f'folder {path} has no pictures ({" ".join(PICTURES)})')
        if not path.exists():
            raise FileNotFoundError(f'there is no picture, folder or video {path}')
        if others := [x.name for x in names if x.is_file() and x.suffix.lower() not in PICTURES]:
            text = f'{path}: {len(others)} files are left out: {", ".join(others[:5])}'
            print_log(text, logger='current', level=logging.WARNING)
        files += found or [path]
    return files


def _predict_all(
    predictor: 'Predictor', files: list[Path], progress: bool, with_drawing: bool
) -> Iterator[tuple[Shot, dict[str, Any], np.ndarray | None]]:
    """Yield what is read, one by one, with what is found in it, or wrong with it, and a drawing."""
    shots: Any = (shot for file in files for shot in predictor.read(file))
    by_tile = progress and predictor.slice is not None
    if progress and not by_tile:
        shots = track_iter_progress((shots, sum(map(_count_shots, files))), file=sys.stderr)
    for shot in shots:
        error = shot.error
        if shot.picture is not None:
            if by_tile:
                print(shot.name, file=sys.stderr)
            try:
                found = predictor(shot.picture, by_tile)
                yield shot, found, predictor.draw(shot.picture, found) if with_drawing else None
                continue
            except Exception as reason:  # too small for the network, or too thin for OpenCV, say
                error = f'{shot.name} cannot be predicted: {first_line(reason)}'
        print_log(error, logger='current', level=logging.WARNING)
        yield shot._replace(picture=None), {'error': error}, None


def _count_shots(file: Path) -> int:
    """Frames of a video, as its header says, or 1."""
    if file.suffix.lower() not in VIDEOS:
        return 1
    return max(1, int(cv2.VideoCapture(str(file)).get(cv2.CAP_PROP_FRAME_COUNT)))


class Predictor:
    """A trained detector or segmentor: ``Predictor(config, checkpoint)(picture)``.

    Args:
        config: Path of a config of mmdet or mmseg, name of one of mmpatch, a Config, or None for
            the one that the checkpoint carries, which is read without running code in it.
        checkpoint: File that a training wrote. Its weights must fit the model, all of them.
        slice: Side in pixels of the square tiles into which larger pictures are cut; each goes
            through the config's test pipeline like a picture of its own. None for no tiles.
        overlap: Share of a side that neighbouring tiles have in common. A detector finds objects
            that take up to seven eighths of it whole; larger ones may come out in parts.
        score_thr: Boxes of lower scores are left out.
        device: As torch names it; by default a GPU if there is one.
        cfg_options: Settings that override those of the config.

    Attributes:
        meta: ``classes``, their names, and ``palette``, their colours: those of the checkpoint, or
            of ``metainfo`` in the config's test dataset if the checkpoint names none.

    Raises:
        ValueError: If the weights do not fit, the checkpoint names no classes or too few, the
            model cannot be built, or a setting is wrong. The message is one line.
        FileNotFoundError: If there is no such config or checkpoint.
        ImportError: If the host is not installed.
        RuntimeError: If the checkpoint is damaged.
        pickle.UnpicklingError: If it holds types that could run code.
    """

    def __init__(
        self,
        config: File | Config | None,
        checkpoint: File,
        *,
        slice: int | None = None,
        overlap: float = 0.2,
        score_thr: float = 0.3,
        device: str | None = None,
        cfg_options: dict[str, Any] | None = None,
    ) -> None:
        if not 0 <= overlap <= 0.9:
            raise ValueError(f'overlap={overlap} is not a share of a tile from 0 to 0.9')
        if not 0 <= score_thr <= 1:
            raise ValueError(f'score_thr={score_thr} is no score: take 0 to 1')
        self.slice, self.overlap, self.score_thr = slice, overlap, score_thr
        with LOADING:
            self.inferencer = load_inferencer(config, checkpoint, device, cfg_options)
        self.model = self.inferencer.model
        self.meta = self.model.dataset_meta
        self.is_detector = self.inferencer.cfg.default_scope == 'mmdet'
        stride = max(getattr(self.model.backbone, 'out_strides', (32,)))
        if slice is not None and slice < stride:
            raise ValueError(f'slice={slice} is less than the stride of the network, {stride}')
        steps = self.inferencer.pipeline.transforms
        self._load = next(step for step in steps if type(step).__name__ == 'InferencerLoader')

    def read(self, file: Path) -> Iterator[Shot]:
        """Yield a picture, or the frames of a video, as the host reads them."""
        if file.suffix.lower() in VIDEOS:
            yield from _read_frames(file)
            return
        try:
            _check_picture(file)
            yield Shot(file, self._load(str(file))['img'])
        except Exception as error:  # of any codec
            yield Shot(file, None, f'{file} cannot be read: {first_line(error)}')

    @torch.no_grad()
    def __call__(self, picture: np.ndarray, progress: bool = False) -> dict[str, Any]:
        """Predict a picture (H, W, 3), uint8, blue first, as ``cv2.imread`` gives it.

        Returns:
            Of a detector, by falling score: ``boxes`` as [x1, y1, x2, y2] in pixels, ``scores``,
            ``labels`` (numbers of classes), ``names`` of them, and ``masks`` in COCO's run-length
            code if the network has masks. Of a segmentor: ``class_map`` (H, W), whole numbers.

        Raises:
            TypeError: If it is another array; its numbers would be taken for 0 to 255.
        """
        shape, given = np.shape(picture), np.asarray(picture).dtype
        if len(shape) != 3 or (given != np.uint8 and not self._load.from_file.to_float32):
            raise TypeError(f'a picture is (H, W, 3) of uint8, blue first; got {shape} of {given}')
        grid = Grid(picture.shape[1], picture.shape[0], self.slice, self.overlap)
        tiles: Any = track_iter_progress(grid.tiles, file=sys.stderr) if progress else grid.tiles
        parts = ((tile, self._run(grid.crop(picture, tile))) for tile in tiles)
        if self.is_detector:
            return self._merge_objects(grid, parts)
        kind = np.uint8 if len(self.meta['classes']) <= 256 else np.uint16
        class_map = np.zeros(picture.shape[:2], kind)
        for tile, sample in parts:
            grid.place(class_map, tile, sample.pred_sem_seg.data[0].cpu().numpy())
        return {'class_map': class_map}

    def _run(self, picture: np.ndarray) -> Any:
        """Data sample of the host with what it finds in a picture or tile."""
        inferencer = self.inferencer
        return inferencer.forward(inferencer.collate_fn([inferencer.pipeline(picture)]))[0]

    def _merge_objects(self, grid: Grid, parts: Iterator[Any]) -> dict[str, Any]:
        from mmdet.structures.mask import encode_mask_results, mask2bbox

        boxes, scores = [torch.zeros(0, 4, dtype=torch.float64)], [torch.zeros(0)]
        labels, masks = [torch.zeros(0, dtype=torch.int64)], []
        for tile, sample in parts:
            if 'pred_instances' not in sample:
                raise ValueError('the network finds no objects; panoptic maps are not written')
            found = sample.pred_instances.cpu()
            found = found[found.scores >= self.score_thr]
            if 'masks' in found and not found.get('bboxes', torch.zeros(0)).any():
                found.bboxes = mask2bbox(found.masks)  # of networks without boxes, such as SOLO
            placed = found.bboxes.double() + torch.tensor(grid.get_corner(tile)).repeat(2)
            keep = ~grid.find_cut(tile, placed)
            boxes.append(placed[keep])
            scores.append(found.scores[keep])
            labels.append(found.labels[keep])
            if 'masks' in found:
                masks += [(tile, code) for code in encode_mask_results(found.masks[keep])]
        box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        order = torch.arange(len(box))
        if len(grid.tiles) > 1:
            test = self.inferencer.cfg.model.get('test_cfg') or {}
            settings = (test.get('rcnn') or test).get('nms') or {}
            order = suppress(box, score, label, settings.get('iou_threshold', 0.5))
        numbers = label[order].tolist()
        result: dict[str, Any] = {
            'boxes': [[round(x, 2) for x in row] for row in box[order].tolist()],
            'scores': [round(x, 4) for x in score[order].tolist()],
            'labels': numbers,
            'names': [self.meta['classes'][number] for number in numbers],
        }
        if masks or self.inferencer.model.with_mask:
            codes = (grid.paste_mask(masks[i][1], masks[i][0]) for i in order.tolist())
            result['masks'] = [{**code, 'counts': code['counts'].decode()} for code in codes]
        return result

    def draw(self, picture: np.ndarray, found: dict[str, Any]) -> np.ndarray:
        """Draw what was found over a picture (H, W, 3), in blue, green and red, as the host does.

        Pictures with a side of more than :data:`MAX_DRAWN` pixels are shrunk to it, and no more
        than :data:`MAX_OBJECTS` are drawn.
        """
        scale = min(1.0, MAX_DRAWN / max(picture.shape[:2]))
        size = tuple(max(1, round(n * scale)) for n in picture.shape[1::-1])
        if scale < 1:
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        picture = picture[..., ::-1].astype(np.uint8)
        draw = self.inferencer.visualize
        if not self.is_detector:
            from mmseg.structures import SegDataSample

            small = cv2.resize(found['class_map'], size, interpolation=cv2.INTER_NEAREST)
            data = torch.from_numpy(small.astype(np.int64))[None]
            sample = SegDataSample(pred_sem_seg=PixelData(data=data))
            return draw([picture], [sample], return_vis=True, opacity=0.5)[0][..., ::-1]
        from mmdet.structures import DetDataSample
        from pycocotools import mask as coco

        # in one go, because each pass of the host moves some rows of the picture by a pixel
        best = np.s_[:MAX_OBJECTS]
        objects = InstanceData(
            bboxes=torch.tensor(found['boxes'][best]).reshape(-1, 4) * scale,
            scores=torch.tensor(found['scores'][best]),
            labels=torch.tensor(found['labels'][best], dtype=torch.int64),
        )
        if found.get('masks'):
            decoded = (coco.decode(code) for code in found['masks'][best])
            objects.masks = np.stack([cv2.resize(mask, size, None, 0, 0, 0) for mask in decoded])
        sample = DetDataSample(pred_instances=objects)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of boxes that end where the picture does
            return draw([picture], [sample], return_vis=True, pred_score_thr=-1)[0][..., ::-1]


def _check_picture(file: Path) -> None:
    """Raise an error if a picture is cut off, which OpenCV 4 fills with grey."""
    unknown = UnidentifiedImageError, Image.DecompressionBombError  # which the host may read
    with warnings.catch_warnings(), suppress_errors(*unknown):
        warnings.simplefilter('ignore')
        with Image.open(file) as picture:
            picture.draft(None, (1, 1))  # all of the file, at an eighth of the size if possible
            picture.load()


def _read_frames(file: Path) -> Iterator[Shot]:
    """Yield the frames of a video one by one."""
    video = cv2.VideoCapture(str(file))
    rate, number = video.get(cv2.CAP_PROP_FPS) or 25.0, 0
    while (frame := video.read())[0]:
        yield Shot(file, frame[1], frame=number, rate=rate)
        number += 1
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    if not number:
        yield Shot(file, None, f'video {file} cannot be opened')
    elif number < count:
        yield Shot(file, None, f'video {file} ends after {number} of {count} frames', number)
