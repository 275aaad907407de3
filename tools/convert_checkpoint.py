"""Rename the tensors of a published file to mmpatch's names, with all the checks of loading it.

python tools/convert_checkpoint.py SRC DST

SRC is a path, a URL or mmpatch://NAME. The family and its arch are found from the tensors; if they
cannot be (windows, a variant of one's own), say them: --backbone type=PoolFormer depths=2,2,2,2
"""

import argparse
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from torch import Tensor

import mmpatch
from mmpatch import backbones
from mmpatch.checkpoint import files, load, match
from mmpatch.checkpoint.layouts import Layout
from mmpatch.compat import safe_load

FAMILIES = ('PoolFormer', 'Container', 'ConvMixer', 'VisionTransformer')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', metavar='SRC', help='path, URL or mmpatch://NAME')
    parser.add_argument('dst', metavar='DST', type=Path, help='file to write')
    parser.add_argument(
        '--backbone',
        nargs='+',
        action=DictAction,
        help='type=FAMILY and further arguments, instead of finding them',
    )
    args = parser.parse_args()
    safe_load.install()
    try:
        print(convert(args.src, args.dst, args.backbone))
    except (OSError, ValueError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise SystemExit(f'error: {error}') from None


def convert(src: str, dst: Path, backbone: dict[str, Any] | None = None) -> str:
    """Write ``dst`` at once or not at all; say what was done."""
    if not dst.parent.is_dir():
        raise FileNotFoundError(f'there is no folder {dst.parent} to write {dst.name} into')
    tensors, outside = load.unwrapped(files.read(src), src)
    layout = load.recognised(tensors, src)
    kwargs = dict(backbone) if backbone else found(tensors, layout, src)
    name = str(kwargs.get('type')).removeprefix('mmpatch.')
    if name not in FAMILIES:
        raise ValueError(f'--backbone type={kwargs.get("type")}: choose from {FAMILIES}')
    family = getattr(backbones, name)
    with torch.device('meta'):
        model = family(**{key: value for key, value in kwargs.items() if key != 'type'})
    matched, report = load.matched(tensors, layout, model, src)
    report.dropped += outside
    # Output norms are no part of a published file: whoever loads this one builds them anew.
    meta = {
        'backbone': kwargs,
        'source': src,
        'layout': layout.name,
        'dropped': report.dropped,
        'mmpatch_version': mmpatch.__version__,
    }
    part = dst.with_name(f'.{dst.name}.part')
    try:
        contiguous = {name: tensor.contiguous() for name, tensor in matched.items()}
        torch.save({'state_dict': contiguous, 'meta': meta}, part)
        os.replace(part, dst)
    finally:
        part.unlink(missing_ok=True)
    return f'{report}\n{dst}: {kwargs}'


def found(tensors: dict[str, Tensor], layout: Layout, src: str) -> dict[str, Any]:
    """Family and arguments of the network that fits the tensors.

    Raises:
        ValueError: If there is none.
    """
    for name in [layout.family] if layout.family else FAMILIES:
        family = getattr(backbones, name)
        for arch, row in family.ARCHS.items():
            settings = vit_settings(tensors, layout, row) if name == 'VisionTransformer' else {}
            if match.fits(family, arch, tensors, layout, **settings):
                return {'type': f'mmpatch.{name}', 'arch': arch, **settings}
    raise ValueError(
        f'{src} ({layout.name} layout) fits no arch; say which network it is with --backbone'
    )


def vit_settings(tensors: dict[str, Tensor], layout: Layout, row: dict[str, Any]) -> dict[str, Any]:
    """Patch, grid and tokens of a ViT, which are no matter of its arch."""
    prepared = layout.prepare(tensors, None) if layout.prepare else tensors
    positions = prepared.get('positions.pos_embed')
    tokens = prepared.get('positions.cls_token')
    stem = r'(stem\.conv|stem\.proj\.conv|patch_embed\.proj\w*)\.weight'
    kernels = [tensor for key, tensor in prepared.items() if re.fullmatch(stem, key)]
    if positions is None or not kernels:
        return {}
    patch = row['patch'] if row['resnet'] is not None else kernels[0].shape[2]
    count = 0 if tokens is None else tokens.shape[3]
    return {
        'patch_size': patch,
        'pretrain_img_size': tuple(side * patch for side in positions.shape[2:]),
        'with_cls_token': count > 0,
        'distilled': count == 2,
    }


if __name__ == '__main__':
    main()
