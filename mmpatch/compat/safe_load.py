"""Checkpoints on torch >= 2.6, read with ``weights_only`` on.

MMEngine 0.10.7 calls ``torch.load`` bare, so torch refuses MMEngine's own checkpoints, which hold
more than tensors; and it downloads with ``weights_only`` off, so a file from a server could run
code. Here the types that such files hold are allowed by name, and everything else is refused.
"""

import argparse
import hashlib
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import CheckpointLoader
from numpy._core import multiarray


def allowed_types() -> list[Any]:
    """What a checkpoint may hold beside tensors, numbers, strings and containers.

    The log buffers of MMEngine, the arrays and numbers in them, and the namespaces of command-line
    options that DeiT, MAE and timm save. Names of numpy 1 and numpy 2 are both listed.
    """
    methods = (_statistic, 'builtins.getattr')  # how a log buffer pickles its own methods
    functions = [
        (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    ]
    dtypes = [type(np.dtype(code)) for code in ('b1', 'i4', 'i8', 'f4', 'f8')]
    return [HistoryBuffer, methods, argparse.Namespace, np.ndarray, np.dtype, *functions, *dtypes]


def load_from_local(filename: str, map_location: Any) -> Any:
    """Read a file; the scheme of plain paths in MMEngine's ``CheckpointLoader``.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If it holds anything but tensors and the allowed types.
        RuntimeError: If it is damaged or no checkpoint.
    """
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'checkpoint {filename} does not exist')
    with _explained(filename):
        return torch.load(filename, map_location=map_location, weights_only=True)


def load_from_http(
    filename: str, map_location: Any = None, model_dir: str | None = None, progress: bool = True
) -> Any:
    """Download to torch's hub folder and read; the scheme of URLs.

    Raises:
        OSError: If it cannot be downloaded.
        pickle.UnpicklingError: If it holds anything but tensors and the allowed types.
    """
    path = downloaded(filename, model_dir, progress)
    with _explained(filename):
        return torch.load(path, map_location=map_location, weights_only=True)


def downloaded(url: str, folder: str | None = None, progress: bool = True) -> Path:
    """Path of a URL's file in a folder, torch's hub by default, downloaded if it is not there.

    Raises:
        OSError: If it cannot be downloaded.
    """
    path = Path(folder or f'{torch.hub.get_dir()}/checkpoints') / cached_name(url)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=progress)
        except OSError as error:
            raise OSError(
                f'{url} cannot be downloaded ({error}); fetch it elsewhere and give its path'
            ) from error
    return path


def cached_name(url: str) -> str:
    """Name under which a download is kept: that of the file, if it tells files apart.

    Names with a hash do, as torch's hub has them; others, such as ``model.safetensors``, get a hash
    of the URL in front.
    """
    name = os.path.basename(urlparse(url).path)
    if re.search(r'-[0-9a-f]{8,}\.', name):
        return name
    return f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'


def install() -> str:
    """Allow the types above and make MMEngine read files through this module."""
    torch.serialization.add_safe_globals(allowed_types())
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(
        prefixes=('http://', 'https://'), loader=load_from_http, force=True
    )
    return 'mmpatch: checkpoints are read with weights_only=True, and what they may hold is listed'


@contextmanager
def _explained(filename: str) -> Iterator[None]:
    """Errors of ``torch.load`` that name the file and say whether it is foreign or damaged."""
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        foreign = any(word in str(error) for word in ('GLOBAL', 'Unsupported'))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise pickle.UnpicklingError(_refusal(filename, error)) from None
        raise RuntimeError(
            f'checkpoint {filename} is damaged or no checkpoint: {_first_line(error)}'
        ) from error


def _statistic(owner: Any, name: str) -> Any:
    """The one use of ``getattr`` that a checkpoint may make."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported attribute: {name!r} of {owner!r}')


def _refusal(filename: str, error: Exception) -> str:
    return (
        f'checkpoint {filename} is refused: {_reason(error)}. Only tensors and the types that '
        'published checkpoints hold are read, since anything else could run code. If you trust the '
        'file, load it once yourself with torch.load(..., weights_only=False) and save its '
        'state dict.'
    )


def _reason(error: Exception) -> str:
    """The sentence of torch's message that says what is wrong, without its advice."""
    for line in str(error).splitlines():
        if 'GLOBAL' in line or 'Unsupported' in line:
            return (
                line.strip()
                .split('. Please')[0]
                .split(' by default')[0]
                .removeprefix('WeightsUnpickler error: ')
            )
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
