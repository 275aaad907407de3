"""Checkpoint loading on torch >= 2.6, always with ``weights_only``.

MMEngine 0.10.7 calls ``torch.load`` without arguments, and torch then refuses MMEngine's own
checkpoints, which hold more than tensors. For downloads MMEngine turns ``weights_only`` off, so a
file from a server could run code. Here the types in such files are allowed by name, no others.
"""

import argparse
import hashlib
import os
import pickle
import re
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen
from uuid import uuid4

import numpy as np
import torch
from mmengine import dist
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from numpy._core import multiarray

from mmpatch.compat.weight_files import read_weights

HUB_SCHEME = 'hf-hub:'
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
#: Hosts that http is allowed from.
LOOPBACK = ('localhost', '127.0.0.1', '::1')
#: How often a download is begun or continued.
TRIES = 4


def load_from_local(filename: str, map_location: Any) -> Any:  # MMEngine logs the name's end
    """Read a file: :func:`read_weights` as MMEngine's ``CheckpointLoader`` calls it."""
    return read_weights(Path(filename).expanduser(), map_location)


def load_from_http(
    filename: str, map_location: Any = None, model_dir: str | None = None, progress: bool = True
) -> Any:
    """:func:`download` a file, then :func:`read_weights`."""
    return read_weights(download(filename, model_dir, progress), map_location)


def download(
    url: str, folder: str | None = None, progress: bool = True, sha256: str | None = None
) -> Path:
    """Download a file unless the folder has it. In distributed runs all ranks must call this.

    The first rank of each machine downloads, the others wait for it. Half a file is never kept.

    Args:
        url: Address of the file: https, or http on this machine.
        folder: Where to keep it, by default ``checkpoints`` in torch's hub folder.
        progress: Whether to show a progress bar.
        sha256: First digits of the SHA-256 that the file must have.

    Raises:
        OSError: If it cannot be downloaded.
        RuntimeError: If its SHA-256 differs. Such a download is not kept.
        ValueError: If the address, or one that it redirects to, is not https.
    """
    _check_url(url)
    path = Path(folder or f'{torch.hub.get_dir()}/checkpoints') / cached_name(url)
    first = not dist.is_distributed() or int(os.environ.get('LOCAL_RANK', dist.get_rank())) == 0
    try:
        if first and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, path, sha256, progress)
    except (OSError, HTTPException) as error:
        raise OSError(
            f'{url} cannot be downloaded ({error}); fetch it elsewhere and put it at {path}, or '
            'give its path (in init_cfg.checkpoint or load_from)'
        ) from error
    finally:
        dist.barrier()
    if not path.is_file():
        raise OSError(f'{url} was not downloaded; see the error of the first rank of this machine')
    _check_hash(path, url, sha256)  # also of a file that was there before
    return path


def _check_url(url: str) -> None:
    parts = urlparse(url)
    if parts.scheme != 'https' and (parts.scheme != 'http' or parts.hostname not in LOOPBACK):
        raise ValueError(f'{url} is not https; fetch the file elsewhere and give its path')


def _fetch(url: str, path: Path, sha256: str | None, progress: bool) -> None:
    """Download beside the path and rename what is whole; go on after a break, by the ETag."""
    part, tag = path.with_name(f'{path.name}.{uuid4().hex}.part'), ''
    try:
        with part.open('wb') as file:
            for _ in range(TRIES):
                start = file.tell() if tag else 0
                headers = {'Range': f'bytes={start}-', 'If-Range': tag} if tag else {}
                with urlopen(Request(url, headers=headers), timeout=60) as answer:
                    _check_url(answer.url)
                    file.truncate(file.seek(start if answer.status == 206 else 0))
                    tag, length = answer.headers.get('ETag', ''), answer.length
                    end = None if length is None else file.tell() + length
                    bar = torch.hub.tqdm(total=length, disable=not progress, unit='B')
                    with bar, suppress(ConnectionError, HTTPException, TimeoutError):
                        while chunk := answer.read(2**20):
                            bar.update(file.write(chunk))
                        if end in (None, file.tell()):
                            break
            else:
                raise OSError(f'it broke off {TRIES} times, at last after {file.tell()} bytes')
        _check_hash(part, url, sha256)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_hash(path: Path, url: str, sha256: str | None) -> None:
    if sha256 and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256):
        raise RuntimeError(
            f'{path} is not the file that was published at {url}: its SHA-256 does not start with '
            f'{sha256}; delete it and load again'
        )


def load_from_hub(name: str, map_location: Any = None) -> Any:
    """Download the weights of ``hf-hub:ORG/NAME`` or ``hf-hub:ORG/NAME@REVISION``, once; read them.

    The file is ``model.safetensors`` or, without one, ``pytorch_model.bin``.

    Raises:
        ImportError: If huggingface_hub is not installed.
        OSError: If there is no such file, or it cannot be downloaded.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(f'{name}: {error}; pip install huggingface_hub') from error
    repository, _, revision = name.removeprefix(HUB_SCHEME).partition('@')
    for file in HUB_FILES:
        try:
            path = Path(hf_hub_download(repository, file, revision=revision or None))
        except (OSError, ValueError, EntryNotFoundError) as error:
            # offline, a file that is not in the cache is missing, too
            is_local = isinstance(error, LocalEntryNotFoundError)
            if isinstance(error, EntryNotFoundError) and not is_local:
                continue
            reason = ' '.join(str(error).split())[:200]
            remedy = 'fetch it elsewhere and give the path of the file'
            raise OSError(f'{name} cannot be downloaded ({reason}); {remedy}') from error
        return read_weights(path, map_location)
    raise FileNotFoundError(f'checkpoint {name} has none of the files {", ".join(HUB_FILES)}')


def cached_name(url: str) -> str:
    """Name of the file in the folder of downloads.

    A name with a hash in it stays, as in torch's hub. Other names, such as ``model.safetensors``,
    do not tell files apart and get a hash of the URL in front.
    """
    name = os.path.basename(urlparse(url).path)
    prefix = hashlib.sha256(url.encode()).hexdigest()[:8]
    return name if re.search(r'-[0-9a-f]{8,}\.', name) else f'{prefix}-{name}'


def install() -> str:
    """Make MMEngine read checkpoints through this module, and allow the types they hold.

    Besides tensors, numbers, strings and containers, these are the log buffers of MMEngine, the
    arrays and numbers in them, and the namespaces of command-line options that DeiT, MAE and timm
    save, by the names of numpy 1 and numpy 2. :func:`torch.serialization.add_safe_globals` has an
    effect on the whole process: every ``torch.load`` with ``weights_only`` then accepts them.
    """
    methods = (_get_statistic, 'builtins.getattr')  # how a log buffer pickles its own methods
    functions = [
        (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    ]
    types: list[Any] = [HistoryBuffer, argparse.Namespace, np.ndarray, np.dtype]
    types += [type(np.dtype(code)) for code in ('b1', 'i4', 'i8', 'f4', 'f8')]
    torch.serialization.add_safe_globals([methods, *functions, *types])
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)
    CheckpointLoader.register_scheme(HUB_SCHEME, load_from_hub, force=True)
    # For torchvision://, open-mmlab:// and mmcls://, which look up a URL and call this function.
    # The other schemes call torch.load without arguments: weights_only is torch's own default.
    # The MMEngine of onedl calls this instead, which turns weights_only off if torch refuses.
    mmengine_checkpoint._safe_torch_load = torch.load
    mmengine_checkpoint.load_from_http = load_from_http
    return 'mmpatch: checkpoints are read with weights_only=True; only listed types are allowed'


def _get_statistic(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, which checkpoints may call for this alone."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported attribute: {name!r} of {owner!r}')
