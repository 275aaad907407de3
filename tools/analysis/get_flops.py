"""Count parameters, multiply-adds and activations of networks by part, side by side.

    python tools/analysis/get_flops.py poolformer-s12 vit-small timm://resnet50
    python tools/analysis/get_flops.py CONFIG1 CONFIG2 --shape 800 1280 --out flops.csv

The tool needs neither data nor weights. It counts the multiply-adds (MACs) of convolutions and
matrix products, those of attention included: queries with keys, affinities with values, relative
positions. Norms, activations, pooling, interpolation, RoIAlign, the sampling of deformable
attention and sums are not counted, as in published tables, where "FLOPs" mostly means MACs. Those
of depthwise convolutions are also shown on their own, since some published figures leave them out.
Activations are the elements of the outputs of these convolutions and products. Two-stage detectors
are counted with as many regions as test_cfg allows: boxes of the first stage and masks of the last
(in most configs 1000 and 100). The stem is everything in a backbone outside its stages. Classifiers
are not counted.
"""

import argparse
import csv
import sys
import warnings
from pathlib import Path
from typing import Any

from mmpatch.engine.build import build_empty, is_config, read_network
from mmpatch.engine.count import PARTS, Count, count
from mmpatch.engine.errors import report_errors
from mmpatch.engine.tool import OptionAction

#: Rows and columns of the image unless --shape says them.
SHAPES = {'mmdet': (800, 1280), 'mmseg': (512, 512), None: (224, 224)}
QUANTITIES = {
    'parameters': ('parameters (M)', 1e6, 2),
    'macs': ('MACs (G)', 1e9, 2),
    'depthwise_macs': ('of these, depthwise (G)', 1e9, 2),
    'activations': ('activations (M)', 1e6, 1),
}
Counts = dict[tuple[str, tuple[int, int]], dict[str, Count]]


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'networks',
        nargs='+',
        metavar='CONFIG|ARCH',
        help='config of mmdet or mmseg; a name of mmpatch.list_models(), such as poolformer-s12; '
        'mmpatch.FAMILY:ARCH, mmpatch://WEIGHTS or timm://NAME',
    )
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        metavar='N',
        help='height and width of the image, or the side of a square (224 for a backbone, '
        '800 x 1280 for a detector, 512 for a segmentor)',
    )
    parser.add_argument('--out', type=Path, help='file to write: .csv (plain numbers) or .md')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionAction,
        default={},
        metavar='KEY=VALUE',
        help='override settings of the configs, e.g. model.backbone.arch=s24',
    )
    args = parser.parse_args()
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'--shape {args.shape}: give height and width, or one side')
    if args.out and args.out.suffix not in ('.csv', '.md'):
        parser.error(f'--out {args.out}: write a .csv or a .md file')
    if args.out and not args.out.parent.is_dir():
        parser.error(f'--out {args.out}: there is no folder {args.out.parent}')
    if args.cfg_options and not any(map(is_config, args.networks)):
        parser.error('--cfg-options are settings of a config, and there is none')
    warnings.simplefilter('ignore')  # of the hosts, on every part that they build
    shape = args.shape and (args.shape[0], args.shape[-1])
    found: Counts = {}
    for name in args.networks:
        cfg = read_network(name, args.cfg_options)
        size = shape or SHAPES[cfg.get('default_scope')]
        if 'model' in cfg:  # some heads take half a minute
            print(f'counting {name} at {size[0]}x{size[1]}', file=sys.stderr, flush=True)
        short = shorten(name) if 'model' in cfg else name  # unless two configs share their name
        found[name if (short, size) in found else short, size] = count_network(name, cfg, size)
    print(format_table(found), end='')
    if args.out and args.out.suffix == '.md':
        args.out.write_text(format_table(found))
    elif args.out:
        write_csv(args.out, found)


def shorten(name: str) -> str:
    """Name of a config without its folder and suffix."""
    return Path(name.removeprefix('mmpatch::').removesuffix('.py')).name


def count_network(name: str, cfg: Any, size: tuple[int, int]) -> dict[str, Count]:
    """Count one network; any error of its parts becomes one line."""
    try:
        return count(build_empty(cfg), size)
    except Exception as error:  # of any kind: parts of the hosts raise what they like
        reason = ' '.join(str(error).split())[:300]
        sys.exit(f'error: {name} at {size[0]}x{size[1]}: {type(error).__name__}: {reason}')


def add_total(parts: dict[str, Count]) -> dict[str, Count]:
    return {**parts, 'all': sum(parts.values(), Count())}


def format_table(found: Counts) -> str:
    """Rows are networks, for each quantity; columns are parts; aligned, and Markdown."""
    columns = [part for part in PARTS if any(part in parts for parts in found.values())]
    columns.append('all')
    rows = [['', 'network', 'image', *columns]]
    for quantity, (title, unit, digits) in QUANTITIES.items():
        if not any(getattr(part, quantity) for parts in found.values() for part in parts.values()):
            continue
        for (name, (height, width)), parts in found.items():
            counts = add_total(parts)
            values = (getattr(counts[x], quantity) / unit if x in counts else None for x in columns)
            cells = ['-' if value is None else f'{value:.{digits}f}' for value in values]
            rows.append([title, name, f'{height}x{width}', *cells])
            title = ''
    rows.insert(1, ['---', '---', '---', *('--:' for _ in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(width) if i < 3 else cell.rjust(width) for i, (cell, width) in pairs]
        lines.append(f'| {" | ".join(cells)} |\n')
    return ''.join(lines)


def write_csv(file: Path, found: Counts) -> None:
    """One line a network and part, with plain numbers."""
    with file.open('w', newline='') as out:
        writer = csv.writer(out)
        writer.writerow(['network', 'height', 'width', 'part', *QUANTITIES])
        for (name, size), parts in found.items():
            for part, counts in add_total(parts).items():
                writer.writerow([name, *size, part, *(getattr(counts, x) for x in QUANTITIES)])


if __name__ == '__main__':
    main()
