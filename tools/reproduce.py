"""Check a released detector or segmentor: names and shapes of its file and, with data, its metric.

    python tools/reproduce.py list
    python tools/reproduce.py fpn_poolformer-s12_mmseg
    python tools/reproduce.py retinanet_poolformer-s12 --file FILE --data-root data/coco

configs/released.yml lists the files, the config of mmpatch with the same network, and the reported
metrics. Every tensor of the file must be one of the whole model, and vice versa. With --data-root,
the config's test then runs on the data. The exit status is 0 if each metric is within 0.1 points of
AP or mIoU (in percent) of the reported one, and 1 otherwise.
"""

import argparse
import difflib
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

import mmpatch
from mmpatch.checkpoint.whole import fit_whole, load_whole
from mmpatch.compat.safe_load import download
from mmpatch.engine.build import build_model
from mmpatch.engine.errors import report_errors
from mmpatch.engine.tool import make_parser, read_config

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / 'configs/released.yml'
#: Largest difference from a reported metric, in percent.
TOLERANCE = 0.1
#: Suffixes of links to a file, not to a page.
DIRECT = ('.pth', '.pth.tar', '.pkl')
KEYS = {'config', 'url', 'page', 'by', 'metrics'}


def read_table(file: Path) -> dict[str, dict[str, Any]]:
    """Read a table of released files, and check its keys.

    Raises:
        ValueError: If it is none; names the row.
    """
    try:
        table = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f'{file}: {error}') from error
    rows = table if isinstance(table, dict) else {'': table}
    for name, row in rows.items():
        if not isinstance(row, dict) or row.keys() - {'note'} != KEYS:
            raise ValueError(f'{file}: {name} must have {", ".join(sorted(KEYS))}')
        metrics = row['metrics'] if isinstance(row['metrics'], dict) else {'': ''}
        if any(not isinstance(value, int | float) for value in metrics.values()):
            raise ValueError(f'{file}: {name}: metrics must be names with numbers')
    return rows


def find_file(row: dict[str, Any], file: str | None) -> str:
    """Path of a released file, downloaded if its publisher offers a direct link.

    Raises:
        ValueError: If there is no direct link, or the SHA-256 differs from the published one.
    """
    url = row['url']
    match = re.search(r'-([0-9a-f]{8})\.pth$', url)
    if file is None:
        if not url.endswith(DIRECT):
            raise ValueError(f'fetch {url} with a browser and give the file: --file PATH')
        return str(download(url, sha256=match and match[1]))
    if match and Path(file).is_file():
        found = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if not found.startswith(match[1]):
            told = f'its SHA-256 starts with {found[:8]}, not {match[1]}'
            raise ValueError(f'{file} is not the file that was published at {url}: {told}')
    return file


def compare(expected: dict[str, float], found: dict[str, float]) -> list[str]:
    """Lines about metrics in percent; those that are too far off start with 'FAILED'."""
    lines = []
    for name, value in expected.items():
        if name not in found:
            lines.append(f'FAILED: {name} was not measured, reported {value}; nothing was found')
            continue
        percent = found[name] * (100 if name.startswith('coco/') else 1)
        difference = percent - value
        # decimals such as 0.1 are not exact
        word = 'equal' if abs(difference) <= TOLERANCE + 1e-9 else 'FAILED'
        lines.append(f'{word}: {name} {percent:.2f}, reported {value}, {difference:+.2f}')
    return lines


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        metrics = ', '.join(f'{key} {value}' for key, value in row['metrics'].items())
        print(f'{name}: {metrics}; {row["by"]}, {row["page"]}\n    {row["url"]}')


def check(args: argparse.Namespace) -> bool:
    """Check one file; whether its metrics are those that were reported."""
    rows = read_table(args.table)
    if args.name == 'list':
        print_table(rows)
        return True
    if args.name not in rows:
        near = ', '.join(difflib.get_close_matches(args.name, rows, cutoff=0.3)) or 'none'
        raise ValueError(f'no released model {args.name!r}; nearest: {near}. `list` shows all')
    row = rows[args.name]
    args.config = mmpatch.config_path(row['config'])
    if args.data_root:
        args.cfg_options = {**args.cfg_options, 'data_root': args.data_root}
    cfg = read_config(args, *(['test'] if args.data_root else []))
    cfg.load_from, cfg.resume = None, False  # the file is the one that is checked, no other
    file = find_file(row, args.file)
    with torch.device('meta'):  # before any data is read
        _, report = fit_whole(build_model(cfg), file)
    print(f'{args.name}: all {len(report.matched)} tensors of {file} are those of {row["config"]}')
    if 'note' in row:
        print(f'Note: {row["note"]}')
    if not args.data_root:
        print(f'No --data-root, so nothing was evaluated; reported: {row["metrics"]}')
        return True
    runner = Runner.from_cfg(cfg)
    if not len(runner.test_dataloader.dataset):  # type: ignore[arg-type]
        raise ValueError(f'{args.data_root} has no image to evaluate')
    model: Any = runner.model
    load_whole(model.module if is_model_wrapper(model) else model, file)
    lines = compare(row['metrics'], runner.test())
    print(f'{args.name}, reported by {row["by"]}:', *lines, sep='\n')
    return not any(line.startswith('FAILED') for line in lines)


@report_errors()
def main() -> None:
    arguments = make_parser(
        __doc__ or '', 'name', "a released model, or 'list' to print all of the table"
    )
    arguments.add_argument('--file', help='where the released file is, if it cannot be downloaded')
    arguments.add_argument('--data-root', help='COCO or ADE20K; without it, nothing is evaluated')
    arguments.add_argument(
        '--table', type=Path, default=TABLE, help='another table like configs/released.yml'
    )
    args = arguments.parse_args()
    sys.exit(0 if check(args) else 1)


if __name__ == '__main__':
    main()
