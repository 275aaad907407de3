"""Files that predictions are written to, one by one."""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from mmpatch.compat.weight_files import write_whole

#: Folders of drawn pictures and of class maps.
KINDS = 'pictures', 'class_maps'
#: Ends the JSON file. Each prediction is written over it, with a new end behind.
TAIL = b'\n]}\n'


class Shot(NamedTuple):
    """A picture, or a frame of a video, or what is wrong with it.

    Attributes:
        file: Where it comes from.
        picture: (H, W, 3), uint8, blue first; None if it cannot be read.
        error: Why not, in one line.
        frame: Number in the video, from 0.
        rate: Frames of the video in a second.
    """

    file: Path
    picture: np.ndarray | None
    error: str = ''
    frame: int | None = None
    rate: float = 0.0

    @property
    def name(self) -> str:
        """File, and number of the frame."""
        return str(self.file) if self.frame is None else f'{self.file}, frame {self.frame}'

    def describe(self) -> dict[str, Any]:
        """Where it comes from, and its size as (width, height)."""
        frame = {} if self.frame is None else {'frame': self.frame}
        size = {} if self.picture is None else {'size': list(self.picture.shape[1::-1])}
        return {'file': str(self.file), **frame, **size}


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        file: JSON file of all predictions.
        count: Pictures and frames that were predicted.
        failed: A line on each of the others.
    """

    file: Path
    count: int
    failed: list[str]


class Writer:
    """Writes predictions as they come.

    ``predictions.json`` is whole after each, other files appear when they are complete.

    Args:
        folder: Where to write; it is made if it is missing. An earlier ``predictions.json`` in it
            is replaced.
        about: What the JSON file starts with.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.path = folder, folder / 'predictions.json'
        self.count, self.failed = 0, list[str]()
        self._names = set[str]()
        self._file, self._name = Path(), ''  # of the last shot
        self._video: Any = None
        folder.mkdir(parents=True, exist_ok=True)
        self._json = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b', 0)
        try:
            fcntl.flock(self._json, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
        except BlockingIOError as error:
            raise ValueError(f'another run writes to {folder}; give another folder') from error
        self._json.truncate()  # only now: the file could be that of the other run
        self._json.write(json.dumps(about).encode()[:-1] + b', "predictions": [' + TAIL)

    def __enter__(self) -> 'Writer':
        return self

    def __exit__(self, *_: object) -> None:
        self._end_video()
        self._json.close()

    def add(self, shot: Shot, found: dict[str, Any], drawn: np.ndarray | None) -> None:
        """Write a prediction, and the picture in which it is drawn if there is one."""
        record = {**shot.describe(), **found}
        if shot.file != self._file:
            self._end_video()
            self._file, self._name = shot.file, self._find_name(shot.file.stem)
        if drawn is None:
            self.failed.append(found['error'])
        elif shot.frame is None:
            record['picture'] = self._write('pictures', f'{self._name}.jpg', drawn)
        else:
            record['picture'] = self._add_frame(drawn, shot.rate)
        if 'class_map' in found:
            number = '' if shot.frame is None else f'_{shot.frame:06}'
            name = f'{self._name}{number}.png'
            record['class_map'] = self._write('class_maps', name, found['class_map'])
        comma = b',\n' if self.count + len(self.failed) > (drawn is None) else b'\n'
        self.count += drawn is not None
        # one call, so that a process that is killed leaves the file whole
        self._json.seek(-len(TAIL), os.SEEK_END)
        self._json.write(comma + json.dumps(record).encode() + TAIL)

    def _find_name(self, stem: str) -> str:
        """Name that no other file has, since inputs may come from several folders."""
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f'{stem}_{number}'
        self._names.add(name)
        return name

    def _write(self, kind: str, name: str, picture: np.ndarray) -> str:
        """Write a picture, completely or not at all; return its path in the folder."""
        path = self.folder / kind / name
        path.parent.mkdir(exist_ok=True)
        write_whole(path, cv2.imencode(path.suffix, picture)[1].tobytes())
        return f'{kind}/{name}'

    def _add_frame(self, drawn: np.ndarray, rate: float) -> str:
        name = f'{self._name}.mp4'
        path = self.folder / 'pictures' / name
        if self._video is None:
            path.parent.mkdir(exist_ok=True)
            code = cv2.VideoWriter.fourcc(*'mp4v')
            part = path.with_name(f'.{self._name}.part.mp4')
            self._video = cv2.VideoWriter(str(part), code, rate, drawn.shape[1::-1]), part, path
            if not self._video[0].isOpened():
                raise OSError(f'OpenCV cannot write the video {path}')
        self._video[0].write(np.ascontiguousarray(drawn))
        return f'pictures/{name}'

    def _end_video(self) -> None:
        if self._video is not None:
            video, part, path = self._video
            video.release()
            os.replace(part, path)
            self._video = None
