"""Reading a weight file, whose first bytes tell the format, not its name; and writing files."""

import codecs
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: What a file that is not a checkpoint starts with, what it is, and what to do about it.
OTHER_FORMATS = (
    (b'version https://git-lfs', 'a Git LFS pointer; fetch the file itself with `git lfs pull`'),
    (b'\x1f\x8b', 'compressed by gzip; unpack it first'),
    (b'<', 'a web page; the download failed or needs a login'),
    (b'{', 'JSON text, such as the index of a sharded checkpoint; merge the shards into one file'),
)
#: Number that torch's own pickles start with, behind a few bytes of the protocol.
TORCH_MAGIC = b'l\xfc\x9cF\xf9 j\xa8P\x19'
#: All that a pickle of arrays needs, by the names of numpy 1 and numpy 2.
ARRAY_TYPES: dict[str, Any] = {
    'collections.OrderedDict': OrderedDict,
    '_codecs.encode': codecs.encode,
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': np.dtype,
    **{
        f'numpy.{core}.{name}': function
        for core in ('core', '_core')
        for name, function in (  # as numpy itself pickles them
            ('multiarray._reconstruct', np.zeros(1).__reduce__()[0]),
            ('multiarray.scalar', np.float64(1).__reduce__()[0]),
            ('numeric._frombuffer', np.zeros(1).__reduce_ex__(5)[0]),
        )
    },
}
#: Most numbers in an expanded view, which can claim any size; no tensor of a backbone has as many.
MAX_EXPANDED = 2**24
#: Start of messages that name the file already.
NAMED = r'checkpoint .+ (is|has|holds|does) |\S+ (cannot be down|is not (a check|the file|ht))'
#: Words in torch's messages about types that a pickle must not hold.
REFUSALS = 'GLOBAL|allowlisted|unrecognized function|Unsupported attribute'


def read_weights(path: Path, map_location: Any = None) -> Any:
    """Read a checkpoint of torch, a ``.safetensors``, a ``.npz`` or a pickle of arrays.

    No code in it is run. Pickles of arrays are what detectron2 publishes, with tensors instead of
    arrays here. Checksums are compared where a file has some. Only checkpoints of torch go to
    ``map_location``.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If it holds a type that :mod:`mmpatch.compat.safe_load` does not
            allow; the message names the type.
        RuntimeError: If it is damaged, cut off or no checkpoint.
        ValueError: If it is no dict of tensors, or if some cannot be weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    content = _read_file(path, map_location)
    check_content(content, str(path))
    return content


def check_content(content: Any, name: str) -> None:
    """Raise a ValueError if a checkpoint is no dict of tensors, or if some cannot be weights."""
    state = content.get('state_dict', content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise ValueError(f'checkpoint {name} holds no tensors but a {type(state).__name__}')
    if wrong := [repr(key) for key in state if not isinstance(key, str)]:
        raise ValueError(f'checkpoint {name} has keys that are not strings: {", ".join(wrong[:8])}')
    parts = [content, *(part for part in content.values() if isinstance(part, dict))]
    tensors = [(k, v) for part in parts for k, v in part.items() if isinstance(v, Tensor)]
    if wrong := [f'{key} ({why})' for key, value in tensors if (why := _find_fault(key, value))]:
        listed = ', '.join(wrong[:8])
        raise ValueError(f'checkpoint {name} has tensors that cannot be weights: {listed}')


def _find_fault(key: Any, tensor: Tensor) -> str | None:
    """Why a tensor cannot be a weight, found before a look at its numbers."""
    if tensor.is_meta or tensor.is_nested or tensor.layout is not torch.strided:
        return f'{"nested, " * tensor.is_nested}{tensor.layout}, {tensor.device.type} device'
    is_float, width = tensor.is_floating_point(), tensor.element_size()
    is_weight = str(key).endswith(('weight', 'bias'))
    if tensor.is_quantized or (is_float and width == 1) or (is_weight and not is_float):
        return f'{tensor.dtype}'
    is_large = tensor.numel() > MAX_EXPANDED
    if is_large and tensor.numel() * width > tensor.untyped_storage().nbytes():
        return f'an expanded view of shape {tuple(tensor.shape)}'
    if tensor.dtype is torch.float64 and (tensor.float().isinf() & tensor.isfinite()).any():
        return 'with numbers beyond float32'
    return None


def _read_file(path: Path, map_location: Any) -> Any:
    with path.open('rb') as file:
        start = file.read(64)
    with name_file(path):
        if start.startswith(b'PK'):
            return _read_zip(path, map_location)
        # The first 8 bytes are the length of the header, at most 100 MB.
        if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') <= 100_000_000:
            from safetensors.torch import load_file

            return load_file(path)
        if start.startswith(b'\x80') and TORCH_MAGIC not in start:
            with path.open('rb') as file:
                return _to_tensors(_ArrayUnpickler(file, encoding='latin1').load())
        if start.startswith(b'\x80'):
            return torch.load(path, map_location=map_location, weights_only=True)
    matching = (what for marker, what in OTHER_FORMATS if start.lstrip().startswith(marker))
    what = next(matching, f'starts with {start[:16]!r}' if start else 'empty')
    raise RuntimeError(f'{path} is not a checkpoint but {what}')


def write_whole(path: Path, content: bytes, sync: bool = False, part: str = '.part') -> None:
    """Write a file completely or not at all; with ``sync``, it is on the disk when it has its name.

    Until then, ``part`` is appended to its name: another one for each process that may write it.

    Raises:
        OSError: If it cannot be written; an older file of this name is still there.
    """
    if path.exists() and not path.is_file():  # a device, or a pipe
        path.write_bytes(content)
        return
    path = Path(os.path.realpath(path))  # a link stays one
    half = path.with_name(f'{path.name}{part}')
    try:
        with half.open('wb') as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def check_records(archive: zipfile.ZipFile) -> None:
    """Raise a ``zipfile.BadZipFile`` if the checksum of a record differs."""
    for record in archive.infolist():
        if record.CRC:  # torch writes 0 if it was told to compute none
            archive.read(record)


def _read_zip(path: Path, map_location: Any) -> Any:
    with zipfile.ZipFile(path) as archive:
        size = sum(record.file_size for record in archive.infolist())
        if size > max(2**31, 20 * path.stat().st_size):  # weights hardly shrink
            raise ValueError(f'it would unpack to {size / 2**30:.0f} GB')
        names = archive.namelist()
        if any(name.endswith('.npy') for name in names):
            return _read_npz(path)
        if any(name.endswith('/constants.pkl') for name in names):
            raise ValueError('it is a TorchScript program; save the state dict of its model')
        check_records(archive)
    return torch.load(path, map_location=map_location, weights_only=True)


def _read_npz(path: Path) -> dict[str, Tensor]:
    tensors = {}
    with np.load(path, allow_pickle=False) as arrays:
        name = ''
        try:
            for name in arrays.files:
                tensors[name] = torch.from_numpy(arrays[name])
        except Exception as error:
            raise ValueError(f'array {name!r}: {error}') from error
    return tensors


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of containers, numbers, strings and numpy's arrays, which calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' not in ARRAY_TYPES:
            raise pickle.UnpicklingError(f'GLOBAL {module}.{name} is no array')
        return ARRAY_TYPES[f'{module}.{name}']


def _to_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.require(value, requirements='W'))
    return value


@contextmanager
def name_file(path: str | Path) -> Iterator[None]:
    """Name the file in every error, and tell a foreign type from damage."""
    try:
        yield
    except Exception as error:  # a damaged pickle may raise anything
        message = str(error) or type(error).__name__
        if re.match(NAMED, message) or isinstance(error, ImportError):
            raise
        refusal = re.search(rf'^.*({REFUSALS}).*$', message, re.MULTILINE)
        if refusal and isinstance(error, pickle.UnpicklingError):
            reason = re.split(r'\. Please| by default', refusal[0].strip())[0]
            raise pickle.UnpicklingError(
                f'checkpoint {path} is refused: {reason.removeprefix("WeightsUnpickler error: ")}. '
                'Only tensors and the types in published checkpoints are read, because anything '
                'else could run code. If you trust the file, load it once yourself with '
                'torch.load(..., weights_only=False) and save its state dict.'
            ) from None
        if isinstance(error, zipfile.BadZipFile) and 'not a zip file' in message:
            message = 'it is cut off, its end is missing'
        raise RuntimeError(
            f'checkpoint {path} is damaged or not readable: {message.splitlines()[0]}. If it was '
            'downloaded, delete it and download it again'
        ) from error
