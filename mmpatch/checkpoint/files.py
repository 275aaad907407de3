"""Reading weight files of every format in which they are published."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmpatch.checkpoint.published import PUBLISHED
from mmpatch.compat.safe_load import downloaded

SCHEME = 'mmpatch://'


def read(source: str) -> Any:
    """Content of a file: ``mmpatch://NAME``, a URL, a path, or what MMEngine loads besides.

    ``.npz`` and ``.safetensors`` become a dict of tensors; everything else goes through MMEngine's
    loader, which reads with ``weights_only`` (:mod:`mmpatch.compat`).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no published file has the name, or its publisher has no direct link.
        RuntimeError: If the file is damaged, or not the one that was published.
        OSError: If it cannot be downloaded.
    """
    if source.startswith(SCHEME):
        return _read_published(source)
    suffix = Path(urlparse(source).path).suffix
    if suffix not in ('.npz', '.safetensors'):
        return CheckpointLoader.load_checkpoint(source, 'cpu')
    path = downloaded(source) if source.startswith(('http://', 'https://')) else Path(source)
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    return _read_npz(path) if suffix == '.npz' else _read_safetensors(path)


def _read_published(source: str) -> Any:
    name = source.removeprefix(SCHEME)
    if name not in PUBLISHED:
        raise ValueError(f'{source}: no published file of that name; there are {list(PUBLISHED)}')
    entry = PUBLISHED[name]
    if not entry.direct:
        raise ValueError(
            f'{source}: its publisher offers no direct link; fetch {entry.url} with a browser and '
            'give the path of the file'
        )
    if not entry.sha256:
        return read(entry.url)
    path = downloaded(entry.url)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(entry.sha256):
        raise RuntimeError(
            f'{path} is not the published {entry.url}: its SHA-256 starts with {digest[:8]}, not '
            f'{entry.sha256}; delete it and load again'
        )
    return read(str(path))


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise RuntimeError(
            f'checkpoint {path} is damaged or no .npz of numbers: {error}'
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RuntimeError(f'checkpoint {path} is damaged or no .safetensors: {error}') from error
