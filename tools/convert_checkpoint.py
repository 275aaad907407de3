"""Rename the tensors of a published file to mmpatch's names, with the checks that loading makes.

python tools/convert_checkpoint.py SRC DST

SRC is a path, a URL or mmpatch://NAME. The family and its arch are inferred from the tensors. If
that is impossible (windows, a variant of your own), specify them: --backbone type=PoolFormer
depths=2,2,2,2

Released detectors and segmentors are converted whole, heads included, for the config of the same
model: --config configs/vit/mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py for ViTDet-B of
detectron2. DST is then a checkpoint for tools/test.py.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmpatch
from mmpatch.checkpoint import METAFORMER_LAYOUT, Layout, list_families, load, whole
from mmpatch.compat import safe_load
from mmpatch.compat.weight_files import write_whole
from mmpatch.engine.build import build_model
from mmpatch.engine.errors import report_errors
from mmpatch.engine.tool import OptionAction, override_settings, read_file
from mmpatch.registry import MODELS


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', metavar='SRC', help='path, URL or mmpatch://NAME')
    parser.add_argument('dst', metavar='DST', type=Path, help='file to write')
    parser.add_argument(
        '--backbone',
        nargs='+',
        action=OptionAction,
        help='type=FAMILY and further arguments, instead of inferring them',
    )
    parser.add_argument('--config', help='config, to convert a whole detector or segmentor')
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionAction, default={}, help='override its settings'
    )
    args = parser.parse_args()
    safe_load.install()
    if args.config:
        print(convert_whole(args.src, args.dst, args.config, args.cfg_options))
    else:
        print(convert(args.src, args.dst, args.backbone))


def convert(src: str, dst: Path, backbone: dict[str, Any] | None = None) -> str:
    """Write the tensors of a backbone; return a report."""
    families = [family.__name__ for family in list_families()]
    tensors, report = load.unwrap(load.read_checkpoint(src), src)
    layout = load.detect_layout(tensors, src)
    kwargs = dict(backbone) if backbone else find_network(tensors, layout, src)
    name = str(kwargs.get('type')).removeprefix('mmpatch.')
    if name not in families:
        raise ValueError(f'--backbone type={kwargs.get("type")}: choose from {families}')
    with torch.device('meta'):
        model = MODELS.build({**kwargs, 'type': f'mmpatch.{name}'})
    fitting = load.fit_tensors(tensors, layout, model, report)
    # Output norms are not part of a published file: whoever loads this one builds them anew.
    meta = {
        'backbone': kwargs,
        'source': src,
        'layout': layout.name,
        'dropped': report.dropped,
        'mmpatch_version': mmpatch.__version__,
    }
    write(dst, fitting, meta)
    return f'{report}\n{dst}: {kwargs}'


def convert_whole(src: str, dst: Path, config: str, options: dict[str, Any]) -> str:
    """Write all tensors of a detector or segmentor; return a report."""
    cfg = read_file(config)
    override_settings(cfg, options)
    with torch.device('meta'):
        model = build_model(cfg)
    tensors, report = whole.fit_whole(model, src)
    write(dst, tensors, {'source': src, 'layout': report.layout, 'dropped': report.dropped})
    return f'{report}\n{dst}: a checkpoint for {config}'


def write(dst: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write ``dst`` completely or not at all."""
    if not dst.parent.is_dir():
        raise FileNotFoundError(f'there is no folder {dst.parent} to write {dst.name} into')
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    torch.save({'state_dict': contiguous, 'meta': meta}, content := io.BytesIO())
    write_whole(dst, content.getvalue())


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
