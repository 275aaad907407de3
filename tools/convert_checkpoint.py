"""Rename the tensors of a published file to mmpatch's names, with all the checks of loading it.

python tools/convert_checkpoint.py SRC DST

SRC is a path, a URL or mmpatch://NAME. The family and its arch are inferred from the tensors. If
that is impossible (windows, a variant of your own), name them: --backbone type=PoolFormer
depths=2,2,2,2
"""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from torch import Tensor

import mmpatch
from mmpatch.checkpoint import METAFORMER_LAYOUT, Layout, list_families, load
from mmpatch.compat import safe_load


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
        help='type=FAMILY and further arguments, instead of inferring them',
    )
    args = parser.parse_args()
    safe_load.install()
    try:
        print(convert(args.src, args.dst, args.backbone))
    except (OSError, ValueError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise SystemExit(f'error: {error}') from None


def convert(src: str, dst: Path, backbone: dict[str, Any] | None = None) -> str:
    """Write ``dst`` completely or not at all; return a report."""
    if not dst.parent.is_dir():
        raise FileNotFoundError(f'there is no folder {dst.parent} to write {dst.name} into')
    families = {family.__name__: family for family in list_families()}
    tensors, report = load.unwrap(load.read_checkpoint(src), src)
    layout = load.detect_layout(tensors, src)
    kwargs = dict(backbone) if backbone else find_network(tensors, layout, src)
    name = str(kwargs.get('type')).removeprefix('mmpatch.')
    if name not in families:
        raise ValueError(f'--backbone type={kwargs.get("type")}: choose from {list(families)}')
    with torch.device('meta'):
        model = families[name](**{key: value for key, value in kwargs.items() if key != 'type'})
    fitting = load.fit_tensors(tensors, layout, model, report)
    # Output norms are not part of a published file: whoever loads this one builds them anew.
    meta = {
        'backbone': kwargs,
        'source': src,
        'layout': layout.name,
        'dropped': report.dropped,
        'mmpatch_version': mmpatch.__version__,
    }
    part = dst.with_name(f'.{dst.name}.part')
    try:
        contiguous = {name: tensor.contiguous() for name, tensor in fitting.items()}
        torch.save({'state_dict': contiguous, 'meta': meta}, part)
        os.replace(part, dst)
    finally:
        part.unlink(missing_ok=True)
    return f'{report}\n{dst}: {kwargs}'


def find_network(tensors: dict[str, Tensor], layout: Layout, src: str) -> dict[str, Any]:
    """Find the family and the arguments of the network that the tensors fit.

    Raises:
        ValueError: If there is none.
    """
    for family in list_families():
        if layout is METAFORMER_LAYOUT or layout in family.LAYOUTS:
            settings = load.find_arch(family, tensors, layout)
            if settings:
                return {'type': f'mmpatch.{family.__name__}', **settings}
    raise ValueError(
        f'{src} ({layout.name} layout) fits no arch; say which network it is with --backbone'
    )


if __name__ == '__main__':
    main()
