"""Bad files, made from good ones by a seeded generator: checkpoints, annotations, pictures."""

import argparse
import builtins
import functools
import io
import json
import os
import pickle
import random
import struct
import subprocess
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors
from torch import Tensor

#: What stands where something else should: JSON and pickles can hold all of these.
JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 3, 0.5, 1e9, 1e300, float('nan'), float('inf'), 10**400),
    *('', 'x', '\x00', '\ud800', 'ä' * 300, '__import__("os")'),
    *([], {}, [[]], [None], [1, 2, 3], ['a', 'b'], {'a': 1}, [[[[1]]]], [1e300] * 4),
)
FORMATS = ('zip', 'legacy', 'npz', 'safetensors')


@dataclass(frozen=True)
class Mutant:
    """A file that something was done to.

    Attributes:
        group: Row of the report that it counts for.
        name: What was done.
        data: Content of the file.
        suffix: End of its name.
        is_silent: Whether nothing in the file tells its numbers from good ones.
    """

    group: str
    name: str
    data: bytes
    suffix: str
    is_silent: bool = False


# --- bytes ----------------------------------------------------------------------------------------


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.choice([rng.randrange(len(data)), rng.randrange(min(2000, len(data)))])]


def flip(rng: random.Random, data: bytes) -> bytes:
    result = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        result[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(result)


def clear(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return (data[:start] + bytes(512) + data[start + 512 :])[: len(data)]


def insert(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.randint(1, 64)) + data[start:]


def swap(rng: random.Random, data: bytes) -> bytes:
    middle = rng.randrange(1, len(data))
    return data[middle:] + data[:middle]


def extend(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.randint(1, 4096))


def overwrite(rng: random.Random, data: bytes) -> bytes:
    start = rng.choice([0, 0, rng.randrange(len(data))])
    junk = rng.choice([b'<html>', b'version https://git-lfs', b'\x1f\x8b', b'\x80\x04', b'PK\3\4'])
    return data[:start] + junk + data[start + len(junk) :]


BYTES = (cut, cut, flip, flip, flip, clear, insert, swap, extend, overwrite)


# --- checkpoints ----------------------------------------------------------------------------------


def dump(content: Any, form: str) -> bytes:
    """A checkpoint as bytes; ``.npz`` and ``.safetensors`` hold its state dict alone."""
    file = io.BytesIO()
    if form in ('zip', 'legacy'):
        torch.save(content, file, _use_new_zipfile_serialization=form == 'zip')
        return file.getvalue()
    tensors = content['state_dict']
    if form == 'npz':
        np.savez(file, **{key: value.numpy() for key, value in tensors.items()})
        return file.getvalue()
    return save_safetensors({key: value.contiguous() for key, value in tensors.items()})


SUFFIXES = {'zip': '.pth', 'legacy': '.pth', 'npz': '.npz', 'safetensors': '.safetensors'}


def mutate_bytes(rng: random.Random, content: Any) -> Mutant:
    form, change = rng.choice(FORMATS), rng.choice(BYTES)
    data = change(rng, dump(content, form))
    is_silent = form in ('legacy', 'safetensors') and change in (flip, clear, overwrite, insert)
    return Mutant('bytes', f'{change.__name__} {form}', data, SUFFIXES[form], is_silent)


def pick_node(rng: random.Random, content: Any) -> tuple[Any, Any]:
    """A random container and key, all depths alike."""
    node: tuple[Any, Any] = content, rng.choice(list(content))
    while isinstance(inner := node[0][node[1]], dict | list) and inner and rng.random() < 0.7:
        node = inner, rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    return node


def flip_structure(rng: random.Random, content: Any) -> None:
    """Put something else in the place of a random part, or move it."""
    place, key = pick_node(rng, content)
    way = rng.randrange(8)
    if way < 4:
        place[key] = rng.choice(JUNK)
    elif way == 4:
        del place[key]
    elif way == 5 and isinstance(place, dict):
        place[rng.choice([3, None, True, (1, 2), f'{key}_', f'module.{key}', ''])] = place.pop(key)
    elif way == 6:
        place[key] = [place[key]]
    elif isinstance(place[key], dict):
        place[key] = list(place[key].items())


def flip_top(rng: random.Random, content: Any) -> Any:
    """Another shape of the whole file."""
    state = content['state_dict']
    cycle: dict[str, Any] = {}
    cycle['state_dict'] = cycle
    deep: Any = state
    for _ in range(rng.choice([2, 50, 3000])):
        deep = {'state_dict': deep}
    return rng.choice(
        [
            *(cycle, deep, [content], list(state.values()), None, 3, 'text', {}, [], state),
            *({'state_dict': list(state.items())}, {'state_dict': None}, {'state_dict': {}}),
            *({'model': state}, {'model_ema': state, 'model': 3}, {'net': state}),
            dict(enumerate(state.values())),
            {'state_dict': dict(enumerate(state.values()))},
            {**content, 'state_dict': {key: value.numpy() for key, value in state.items()}},
            {**content, 'state_dict': {f'module.{key}': value for key, value in state.items()}},
            {**content, 'meta': cycle, 'optimizer': state},
        ]
    )


def mutate_structure(rng: random.Random, content: Any) -> Mutant:
    content = deepcopy(content)
    form = rng.choice(['zip', 'zip', 'legacy'])
    if rng.random() < 0.4:
        content = flip_top(rng, content)
    else:
        for _ in range(rng.randint(1, 3)):
            flip_structure(rng, content)
    return Mutant('structure', f'structure {form}', dump(content, form), '.pth')


DTYPES = (
    *(torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.uint8),
    *(torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
)


def change_tensor(rng: random.Random, tensor: Tensor) -> tuple[str, Any]:
    """Another tensor in the place of one, and what was done."""
    ways: dict[str, Callable[[], Any]] = {
        **{str(kind): functools.partial(tensor.to, kind) for kind in DTYPES},
        'flat': lambda: tensor.flatten(),
        'transposed': lambda: tensor.transpose(0, -1) if tensor.ndim else tensor,
        'first half': lambda: tensor[: len(tensor) // 2] if tensor.ndim else tensor,
        'one more axis': lambda: tensor[None],
        'no numbers': lambda: tensor.new_empty(0),
        'one number': lambda: tensor.new_ones(()),
        'expanded': lambda: tensor.new_ones(1).expand(tensor.shape),
        'expanded beyond memory': lambda: tensor.new_ones(1, 1).expand(600_000, 600_000),
        'positions beyond memory': lambda: tensor.new_ones(1, 8, 1, 1).expand(1, 8, 60_000, 60_000),
        'sparse': tensor.to_sparse,
        'sparse csr': lambda: tensor.reshape(len(tensor), -1).to_sparse_csr(),
        'meta': lambda: tensor.to('meta'),
        'quantised': lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        'nested': lambda: torch.nested.nested_tensor([tensor.float(), tensor.float()]),
        'conjugate': lambda: tensor.to(torch.complex64).conj(),
        'parameter': lambda: torch.nn.Parameter(tensor.float()),
        'NaN': lambda: tensor * float('nan'),
        'infinite': lambda: tensor.float() + float('inf'),
        'beyond float32': lambda: tensor.double() + 1e300,
        'array': tensor.numpy,
        'list': tensor.tolist,
        'strided': lambda: torch.stack([tensor, tensor], -1)[..., 0],
    }
    way = rng.choice(list(ways))
    return way, ways[way]()


def mutate_tensors(rng: random.Random, content: Any) -> Mutant:
    content = deepcopy(content)
    state = content['state_dict']
    names = [key for key in state if state[key].ndim]
    names = rng.choice([names, rng.sample(names, 2), [key for key in names if 'backbone' in key]])
    seed = rng.randrange(2**32)
    for key in names:
        way, state[key] = change_tensor(random.Random(seed), state[key])
    data = dump(content, rng.choice(['zip', 'zip', 'legacy']) if way != 'nested' else 'zip')
    return Mutant(
        'tensors', way, data, '.pth', way in ('NaN', 'infinite', 'expanded', 'transposed')
    )


def mutate_names(rng: random.Random, content: Any) -> Mutant:
    content = deepcopy(content)
    state, form = content['state_dict'], rng.choice(FORMATS)
    for key in rng.sample(list(state), rng.randint(1, 4)):
        way = rng.choice(['drop', 'rename', 'prefix', 'copy', 'case', 'reshape'])
        value = state.pop(key)
        new = {'rename': f'{key}x', 'prefix': f'module.{key}', 'case': key.upper()}.get(way, key)
        if way == 'copy':
            state[f'{key}.copy'] = value.clone()
        if way != 'drop':
            state[new] = value[None].clone() if way == 'reshape' else value
    return Mutant('structure', f'names {form}', dump(content, form), SUFFIXES[form])


def rewrite_records(rng: random.Random, content: Any) -> Mutant:
    """A ``.pth`` or ``.npz`` whose checksums are right and whose records are not."""
    form = rng.choice(['zip', 'zip', 'npz'])
    source = zipfile.ZipFile(io.BytesIO(dump(content, form)))
    file, names = io.BytesIO(), source.namelist()
    chosen, way = rng.choice(names), rng.randrange(6)
    if way < 3 and form == 'zip':
        chosen = next(name for name in names if name.endswith('data.pkl'))
    method = zipfile.ZIP_DEFLATED if way == 3 else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, 'w', method) as target:
        for name in names:
            data = source.read(name)
            if name == chosen and way < 3:
                data = rng.choice(BYTES)(rng, data)
            if name == chosen and way == 3:
                data = bytes(rng.choice([10**6, 3 * 10**8]))
            if name == chosen and way == 4:
                continue
            target.writestr(name, data)
            if name == chosen and way == 5:
                target.writestr(f'{name}/../../{rng.choice("ab")}', data)
    name = ('pickle', 'pickle', 'pickle', 'compressed', 'missing', 'more')[way]
    # another pickle or array, and well-formed
    return Mutant('records', f'{name} record {form}', file.getvalue(), SUFFIXES[form], way < 3)


class Call:
    """Unpickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def make_payload(rng: random.Random, canary: str) -> Any:
    """Something that writes a file when it is unpickled."""
    code = f'open({canary!r}, "w").close()'
    return rng.choice(
        [
            Call(os.system, f'touch {canary}'),
            Call(builtins.eval, code),
            Call(builtins.exec, code),
            Call(open, canary, 'w'),
            Call(os.mkdir, canary),
            Call(subprocess.call, ['touch', canary]),
            Call(functools.partial, os.system, f'touch {canary}'),
            Call(builtins.getattr, Call(__import__, 'os'), 'system'),
            Call(np.save, canary, 1),
            Call(torch.save, 1, canary),
            Call(torch.load, canary),
            Call(pickle.loads, pickle.dumps(Call(os.system, f'touch {canary}'), 2)),
            Call(np.array(Call(os.system, f'touch {canary}'), object).__reduce__()[0], list, (0,)),
            argparse.Namespace(a=Call(os.system, f'touch {canary}')),
            OrderedDict(a=Call(os.system, f'touch {canary}')),
            Call(bytearray, 10**11),
            Call(list, range(10**9)),
        ]
    )


def mutate_code(rng: random.Random, content: Any, canary: str) -> Mutant:
    content = deepcopy(content)
    place, key = pick_node(rng, content)
    place[rng.choice([key, 'more'] if isinstance(place, dict) else [key])] = make_payload(
        rng, canary
    )
    way = rng.choice(['zip', 'zip', 'legacy', 'plain pickle', 'text pickle', 'npz', 'record'])
    if way in ('zip', 'legacy'):
        return Mutant('code', way, dump(content, way), '.pth')
    if way == 'npz':
        file = io.BytesIO()
        np.savez(file, a=np.array([make_payload(rng, canary)], object))
        return Mutant('code', way, file.getvalue(), '.npz')
    if way == 'record':
        source = zipfile.ZipFile(io.BytesIO(dump(content, 'zip')))
        file = io.BytesIO()
        with zipfile.ZipFile(file, 'w') as target:
            for name in source.namelist():
                data = pickle.dumps(make_payload(rng, canary), rng.randint(0, 5))
                target.writestr(name, data if name.endswith('.pkl') else source.read(name))
        return Mutant('code', way, file.getvalue(), '.pth')
    protocol = 0 if way == 'text pickle' else rng.randint(2, 5)
    data = pickle.dumps({'state_dict': {}, 'a': make_payload(rng, canary)}, protocol)
    return Mutant('code', way, data, rng.choice(['.pth', '.pkl', '.safetensors', '']))


def make_checkpoint(seed: int, i: int, content: Any, canary: str) -> Mutant:
    """Mutant ``i`` of a checkpoint of MMEngine; code that runs leaves the file ``canary``."""
    makers = (
        *(mutate_bytes, mutate_bytes, mutate_structure, mutate_structure, mutate_tensors),
        *(mutate_tensors, mutate_names, rewrite_records),
        functools.partial(mutate_code, canary=canary),
    )
    return makers[i % len(makers)](random.Random(f'{seed} {i}'), content)


# --- annotations ----------------------------------------------------------------------------------


def flip_annotation(rng: random.Random, content: Any) -> str:
    """Change a file in COCO's format as annotation tools and people get it wrong."""
    images, annotations, categories = (
        content[part] for part in ('images', 'annotations', 'categories')
    )
    image, one, category = (rng.choice(part) for part in (images, annotations, categories))
    number = rng.choice([0, -1, 0.3, 1e9, 1e300, float('nan'), float('inf'), '7', None, True, []])
    sides, size = [image['height'], image['width']], one['bbox']
    area = image['height'] * image['width']
    ways: dict[str, Callable[[], Any]] = {
        'a box of junk': lambda: one.update(bbox=rng.choice(JUNK)),
        'a number in a box': lambda: size.__setitem__(rng.randrange(4), number),
        'all boxes': lambda: [a['bbox'].__setitem__(2, number) for a in annotations],
        'an area': lambda: one.update(area=number),
        'a crowd': lambda: one.update(iscrowd=rng.choice([1, 2, -1, 'no', None, [1]])),
        'an image size': lambda: image.update({rng.choice(['width', 'height']): number}),
        'swapped sides': lambda: image.update(width=image['height'], height=image['width']),
        'a file name': lambda: image.update(
            file_name=rng.choice(
                ['', '.', '../x.jpg', 'none.jpg', '/dev/zero', 3, None, 'a\0b', []]
            )
        ),
        'an id': lambda: rng.choice([image, one, category]).update(id=rng.choice([*JUNK, 1])),
        'a category': lambda: one.update(category_id=rng.choice([*JUNK, 99])),
        'an image id': lambda: one.update(image_id=rng.choice([*JUNK, 99])),
        'a double': lambda: rng.choice([images, annotations, categories]).append(
            deepcopy(rng.choice([image, one, category]))
        ),
        'reversed categories': categories.reverse,
        'a category name': lambda: category.update(name=rng.choice(JUNK)),
        'less': lambda: content.pop(rng.choice(list(content))),
        'nothing of a kind': lambda: content.update({rng.choice(list(content)): []}),
        'reversed lists': lambda: (images.reverse(), annotations.reverse()),
        'RLE of other size': lambda: one.update(
            segmentation={'counts': [area], 'size': [n + rng.choice([-1, 1, 10**6]) for n in sides]}
        ),
        'RLE counts': lambda: one.update(
            segmentation={
                'counts': rng.choice(
                    [
                        *([area * 3], [-5, area + 5], [0] * 9, [10**12], [2**32 + 3], ['a'], 'abc'),
                        *('\ud800', '~' * 99, '0' * 5000, 'oooooo', '', [], None, [1.5], [[1]]),
                        ''.join(chr(rng.randint(48, 111)) for _ in range(40)),
                    ]
                ),
                'size': rng.choice([sides, sides, sides, sides[::-1], [0, 0], [-1, 5], 'ab', []]),
            }
        ),
        'polygon': lambda: one.update(
            segmentation=[
                rng.choice(
                    [
                        *([1, 2, 3], [1] * 7, [float('nan')] * 8, [1e30] * 8, [-9e9, 9e9] * 4),
                        *(['a'] * 8, [None] * 8, [[1, 2]] * 4, [True] * 8, 'abcdefgh', 3, None),
                        *([1e5, 1, 2, 1e5, 3, 3], [10**400] * 8, []),
                    ]
                )
                for _ in range(rng.randint(1, 2))
            ]
        ),
        'no masks': lambda: one.pop('segmentation'),
    }
    way = rng.choice([*ways, 'structure', 'structure', 'structure', 'structure'])
    if way == 'structure':
        flip_structure(rng, content)
    else:
        ways[way]()
    return way


def make_annotations(seed: int, i: int, content: Any) -> Mutant:
    """Mutant ``i`` of an annotation file in COCO's format."""
    rng, changed = random.Random(f'{seed} {i}'), deepcopy(content)
    if i % 8 == 0:
        change = rng.choice([*BYTES, lambda _, data: b'\xef\xbb\xbf' + data])
        return Mutant('annotations', 'bytes', change(rng, json.dumps(content).encode()), '.json')
    name = flip_annotation(rng, changed)
    return Mutant('annotations', name, json.dumps(changed, skipkeys=True).encode(), '.json')


def make_picture(seed: int, i: int, data: bytes) -> Mutant:
    """Mutant ``i`` of a picture or of a label map."""
    rng = random.Random(f'{seed} {i}')
    way = rng.choice(['bytes', 'mode', 'size', 'labels', 'other', 'format', 'bomb'])
    mode = rng.choice(['RGB', 'RGBA', 'LA', 'CMYK', 'I', 'F', 'I;16', '1', 'P', 'L'])
    return Mutant('pictures', way, change_picture(rng, data, way, mode), '')


def change_picture(rng: random.Random, data: bytes, way: str, mode: str) -> bytes:
    """Bytes of a picture that is damaged, none at all or of another mode, size or format."""
    if way == 'bytes':
        return rng.choice(BYTES)(rng, data)
    if way == 'other':
        return rng.choice([b'', b'GIF89a', b'<html>', b'BM', bytes(99), rng.randbytes(2000)])
    if way == 'bomb':
        side = rng.choice([0, 30_000, 2**16, 2**31 - 1])
        header = b'IHDR' + struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
        end = struct.pack('>I', zlib.crc32(header)) + data[33:]
        return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + header + end
    with Image.open(io.BytesIO(data)) as image:
        numbers = np.array(image)
    if way == 'labels':
        numbers.flat[:: rng.randint(1, 9)] = rng.randint(0, 255)
    picture, form = Image.fromarray(numbers), 'PNG'
    if way == 'size':
        picture = picture.resize((rng.randint(1, 300), rng.randint(1, 300)))
    elif way == 'format':
        form = rng.choice(['TIFF', 'BMP', 'GIF', 'WEBP', 'PPM', 'JPEG'])
    elif way == 'mode' and mode == 'I;16':
        picture = Image.fromarray(np.resize(numbers, numbers.shape[:2]).astype(np.uint16) * 200)
    elif way == 'mode':
        picture, form = picture.convert(mode), {'CMYK': 'TIFF', 'F': 'TIFF'}.get(mode, 'PNG')
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


# --- configs --------------------------------------------------------------------------------------

#: Values that a config may hold by mistake; none is code.
WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 10**4, 0.5, -0.5, 1e30, float('nan'), '', 'x', 'None'),
    *([], {}, (), [1], [[1, 2], [3, 4]], {'type': 'Nothing'}, {'a': 1}, 'mmdet.FPN', 'mmseg.FCN'),
)
#: Settings that would run for long, or that say where to write and what to read.
KEPT = ('work_dir', 'data_root', 'ann_file', 'max_epochs', 'custom_imports', '_base_', 'launcher')


def mutate_config(rng: random.Random, content: dict[str, Any]) -> tuple[str, str, set[str]]:
    """Change one setting of a config in place.

    Returns:
        Key of the setting, with dots; what was done; words of which an error should use one: the
        key, the value, and the type and the keys around it.
    """
    while True:
        place, key, path = content, rng.choice(list(content)), []
        while True:
            path.append(str(key))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.15:
                break
            place = inner
            key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if not any(name in KEPT for name in path):
            break
    own = str(place.get('type', 0)) if isinstance(place, dict) else ''
    words = {str(key), own.split('.')[-1], *path[-2:]} - {'', '0', *map(str, range(30))}
    way = rng.choice(['delete', 'rename', 'value', 'value', 'value', 'scope', 'nest', '_delete_'])
    if way == 'delete':
        del place[key]
    elif way == 'rename' and isinstance(place, dict):
        place[rng.choice([f'{key}s', str(key)[:-1] or 'a', str(key).upper()])] = place.pop(key)
    elif way == 'scope' and isinstance(place, dict) and 'type' in place:
        name = str(place['type']).split('.')[-1]
        place['type'] = rng.choice(['mmdet.', 'mmseg.', 'mmpatch.', 'torch.', 'os.']) + name
    elif way == 'nest':
        place[key] = [place[key]]
    elif way == '_delete_' and isinstance(place, dict):
        place['_delete_'] = True
    else:
        way, place[key] = 'value', rng.choice(WRONG)
    if way in ('value', 'nest'):
        words.add(repr(place[key]))
    words.add('True' if way == '_delete_' else 'Nothing')
    return '.'.join(path), way, words
