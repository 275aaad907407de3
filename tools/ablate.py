"""Train rows of an ablation table (configs/ablation) on your data, one after the other.

python tools/ablate.py CONFIG --rows baseline identity depthwise
python tools/ablate.py --list

A row changes arguments of the backbone of CONFIG. All rows train from scratch with the same seed,
trainable norms and nothing frozen. The table and its picture are written to the work dir after
every row. The same command continues an interrupted run: finished rows are kept, the others resume
from their last checkpoint.
"""

import argparse
import ctypes
import difflib
import fcntl
import json
import pprint
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import yaml
from mmengine.config import Config
from torch import nn

from mmpatch.engine.count import Count
from mmpatch.engine.count import count as count_parts
from mmpatch.engine.data import check_paths, replace_data_root
from mmpatch.engine.errors import report_errors
from mmpatch.engine.tool import OptionAction
from mmpatch.registry import MODELS

mpl.use('Agg')
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
TABLES = {file.stem: file for file in sorted((ROOT / 'configs/ablation').glob('*.yml'))}
METRICS = {'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU'}
IMAGE = 224  # side of the images for which multiply-adds are counted

Result = dict[str, Any]


# --- networks -------------------------------------------------------------------------------------


def build(backbone: dict[str, Any]) -> Any:
    """Build a backbone on the meta device, without memory."""
    with torch.device('meta'):
        return MODELS.build({**backbone, 'init_cfg': None})


def count(model: Any, image: int = IMAGE, classes: int = 0) -> Result:
    """Count parameters and multiply-adds; with classes, a linear classifier included."""
    head = (model.out_channels[-1] + 1) * classes
    counts = sum(count_parts(model, (image, image)).values(), Count())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return {
        'parameters': head + counts.parameters - frozen,
        'frozen': frozen,
        'macs': head + counts.macs,
    }


def build_published(table: dict[str, Any], row: dict[str, Any]) -> Any:
    """Build the network that the source measured."""
    return build({'type': table['type'], **table['arguments'], **row.get('changes', {})})


def describe(model: nn.Module) -> str:
    """All that tells two networks apart, weights aside."""
    plain = (bool, int, float, str, tuple, type(None))
    modules = [
        (name, type(m), {k: v for k, v in vars(m).items() if isinstance(v, plain)})
        for name, m in model.named_modules()
    ]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return str((modules, [(name, x.shape, x.requires_grad) for name, x in tensors]))


# --- tables ---------------------------------------------------------------------------------------


def choose(what: str, name: str, names: Iterable[str]) -> str:
    """Return a known name, or end in one line that lists them."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    hint = f'; did you mean {near[0]}?' if near else '.'
    sys.exit(f'error: no {what} {name!r}{hint} There are {", ".join(names)}')


def read_table(name: str) -> dict[str, Any]:
    """Read a table by its name in configs/ablation, or from a file, and check its keys."""
    file = Path(name) if Path(name).is_file() else TABLES[choose('table', name, TABLES)]
    try:
        table = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        sys.exit(f'error: {file} is no YAML: {" ".join(str(error).split())}')
    rows = table.get('rows') if isinstance(table, dict) else None
    if not isinstance(rows, dict) or not rows:
        sys.exit(f'error: {file} has no `rows`; write it like those of configs/ablation')
    kinds = {'title': str, 'type': str, 'arguments': dict, 'classes': int, 'image': int}
    kinds |= {'metric': str, 'source': str}
    wrong = [key for key, kind in kinds.items() if not isinstance(table.get(key), kind)]
    wrong += [f'{n}.what' for n, r in rows.items() if not isinstance(r, dict) or 'what' not in r]
    if wrong:
        sys.exit(f'error: {file} lacks {", ".join(wrong)}; write it like those of configs/ablation')
    return table


def format_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def format_size(size: Result) -> list[str]:
    if not size['parameters']:
        return ['-', '-']
    frozen = f' + {size["frozen"] / 1e6:#.3g} frozen' if size['frozen'] else ''
    return [f'{size["parameters"] / 1e6:#.3g}{frozen}', f'{size["macs"] / 1e9:#.3g}']


def format_metric(result: Result) -> str:
    value = result['metric']
    return 'failed' if result['error'] else '-' if value is None else f'{value:#.4g}'


def list_rows(table: dict[str, Any]) -> str:
    """Rows with their published numbers, and what is counted here for the same networks."""
    head = ['row', 'change', 'result', 'parameters (M)', 'counted', 'MACs (G)', 'counted']
    rows = []
    for name, row in table['rows'].items():
        told = {'result': '-', 'parameters': '-', 'macs': '-', **row.get('published', {})}
        frozen = f' + {told["frozen"]} frozen' if 'frozen' in told else ''
        size = count(build_published(table, row), table['image'], table['classes'])
        parameters, macs = format_size(size)
        cells = [told['result'], f'{told["parameters"]}{frozen}', parameters, told['macs'], macs]
        rows.append([f'`{name}`', row['what'], *map(str, cells)])
    return (
        f'{table["title"]}. Published: {table["source"]}; the result is {table["metric"]}. Counted '
        f'with the classifier, at {table["image"]}x{table["image"]}.\n\n{format_table(head, rows)}'
    )


# --- training -------------------------------------------------------------------------------------


def read_config(args: argparse.Namespace) -> Config:
    """Read CONFIG with its options, to train from scratch, with a seed.

    Norms that a config freezes for pretrained weights learn.
    """
    options = dict(args.cfg_options)
    try:
        cfg = Config.fromfile(args.config)
        if 'data_root' in options:
            replace_data_root(cfg, str(options.pop('data_root')))
        cfg.merge_from_dict(options)
        check_paths(cfg, ('train', 'val'))
    except (FileNotFoundError, KeyError, TypeError) as error:
        sys.exit(f'error: {error}')
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    if not str(backbone.get('type')).startswith('mmpatch.'):
        sys.exit(f'error: {args.config}: model.backbone is not one of mmpatch')
    backbone['init_cfg'] = None
    changed = {'norm_eval': False, 'frozen_stages': -1}
    changed = {key: value for key, value in changed.items() if key in backbone}
    norm = backbone.get('norm_cfg')
    if isinstance(norm, dict) and 'requires_grad' in norm:
        changed['norm_cfg'] = {**norm, 'requires_grad': True}
    if changed:
        backbone.update(changed)
        print(f'from scratch: {", ".join(changed)} of the backbone are set to learn')
    cfg.merge_from_dict({'randomness.seed': (cfg.get('randomness') or {}).get('seed', 0)})
    return cfg


def make_changes(cfg: Config, changes: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Changes to the model of a config, and the backbone that they make.

    Where the neck takes the channels of the backbone, it takes those of the changed one.

    Raises:
        ValueError: If the changes do not fit the backbone, or change nothing.
    """
    old = cfg.model.backbone.to_dict()
    changes = {
        # a dict that names its type replaces what the config has
        key: {**value, '_delete_': True}
        if isinstance(value, dict) and key in old and ('type' in value or old[key] is None)
        else value
        for key, value in changes.items()
    }
    new = Config({'backbone': old})
    new.merge_from_dict({f'backbone.{key}': value for key, value in changes.items()})
    before, after = build(old), build(new.backbone)
    channels = before.out_channels
    if changes and describe(before) == describe(after):
        raise ValueError(f'{", ".join(changes)}: nothing changes in this config')
    model: dict[str, Any] = {'backbone': changes}
    neck = cfg.model.get('neck')
    given = neck.get('in_channels') if isinstance(neck, dict) else None
    if after.out_channels != channels and given in (channels[-1], list(channels)):
        every = list(after.out_channels)
        model['neck'] = {'in_channels': every if isinstance(given, list) else every[-1]}
    return model, after


def write(file: Path, text: str) -> None:
    """Write a file completely or not at all."""
    part = file.with_name(f'.{file.name}')
    part.write_text(text)
    part.replace(file)


def write_settings(file: Path, text: str) -> None:
    """Write a config that rows train from, or end if they have trained from another."""
    if file.is_file() and file.read_text() != text:
        sys.exit(f'error: {file} holds other settings; give another --work-dir')
    write(file, text)


def train(folder: Path) -> str | None:
    """Run tools/train.py until it ends; returns the last line of its output if it failed."""
    command = [sys.executable, ROOT / 'tools/train.py', folder.with_suffix('.py'), '--resume']
    libc, log = ctypes.CDLL(None), folder / 'log.txt'
    with log.open('w') as file:
        process = subprocess.Popen(
            [*map(str, command), '--work-dir', str(folder)],
            stdout=file,
            stderr=file,
            preexec_fn=lambda: libc.prctl(1, signal.SIGTERM),  # PR_SET_PDEATHSIG: ends with us
        )
        try:
            process.wait()
        finally:
            process.terminate()
            process.wait()
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return None if process.returncode == 0 else (lines or ['no output'])[-1]


def read_log(folder: Path, metric: str) -> Result:
    """Last value of a metric, and the seconds of all runs of a row together."""
    value, seconds = None, 0.0
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        start = time.mktime(time.strptime(file.parts[-3], '%Y%m%d_%H%M%S'))
        seconds += file.stat().st_mtime - start
        for line in file.read_text().splitlines():
            # a killed run may leave half a line; CocoMetric reports nothing where nothing is found
            if line.endswith('}') and 'loss' not in (scalars := json.loads(line)):
                value = scalars.get(metric, 0.0 if metric.startswith('coco/') else None)
    return {'metric': value, 'seconds': round(seconds, 1)}


def run_row(folder: Path, cfg: Config, changes: dict[str, Any], metric: str) -> Result:
    """Train a row unless it has finished; its result."""
    done = folder / 'result.json'
    try:
        model, backbone = make_changes(cfg, changes)
        size = count(backbone)
    except (KeyError, TypeError, ValueError) as error:
        size = {'parameters': 0, 'frozen': 0, 'macs': 0.0}
        return {**size, 'metric': None, 'seconds': 0.0, 'error': str(error).splitlines()[0]}
    config = folder.with_suffix('.py')
    text = f'# python tools/train.py {config} --work-dir {folder} --resume\n'
    text += f"_base_ = 'base.py'\nmodel = {pprint.pformat(model, sort_dicts=False)}\n"
    write_settings(config, text)
    folder.mkdir(exist_ok=True)
    if done.is_file():
        return json.loads(done.read_text())
    result: Result = {'error': train(folder), **size, **read_log(folder, metric)}
    if not result['error']:
        write(done, json.dumps(result))
    return result


# --- results --------------------------------------------------------------------------------------


def draw(file: Path, results: dict[str, Result], metric: str, title: str) -> None:
    """Draw the metric as bars, the baseline in another colour and as a line."""
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.36 * len(results)), layout='constrained')
    values = [r['metric'] if (r['metric'] or 0.0) > 0 else 0.0 for r in results.values()]
    colours = ['#E69F00' if name == 'baseline' else '#0072B2' for name in results]
    axes.barh(list(results), values, color=colours)
    if 'baseline' in results:
        axes.axvline(values[list(results).index('baseline')], color='0.3', ls='--', lw=1)
    beside = {'transform': axes.get_yaxis_transform(), 'va': 'center'}
    axes.text(1.02, -0.9, 'parameters (M), MACs (G), minutes', **beside)
    for i, result in enumerate(results.values()):
        box = {'fc': 'white', 'ec': 'none', 'pad': 1}
        style = {'textcoords': 'offset points', 'va': 'center', 'bbox': box}
        axes.annotate(format_metric(result), (values[i], i), (5, 0), **style)
        cells = [*format_size(result), f'{result["seconds"] / 60:.1f}']
        axes.text(1.02, i, ',  '.join(cells), **beside)
    axes.set(xlabel=metric, ylabel='row', xlim=(0, 1.15 * max([*values, 1e-9])))
    axes.set(title=title, ylim=(len(results) - 0.4, -0.6))
    axes.spines[['top', 'right']].set_visible(False)
    part = file.with_name(f'.{file.name}')
    figure.savefig(part, dpi=120, format='png')
    plt.close(figure)
    part.replace(file)


def write_results(
    folder: Path, results: dict[str, Result], table: dict[str, Any], metric: str, config: str
) -> None:
    """Write the table as Markdown and JSON, and its picture."""
    head = ['row', 'change', 'parameters (M)', 'MACs (G)', metric, 'minutes', 'published result']
    rows = []
    for name, result in results.items():
        row, minutes = table['rows'][name], f'{result["seconds"] / 60:.1f}'
        told = str(row.get('published', {}).get('result', '-'))
        numbers = [*format_size(result), format_metric(result), minutes, told]
        rows.append([f'`{name}`', row['what'], *numbers])
    note = (
        f'\nThe backbone of {config} with each change, MACs at {IMAGE}x{IMAGE}. '
        f'Published: {table["source"]}; the result is {table["metric"]}.\n'
    )
    write(folder / 'table.md', format_table(head, rows) + note)
    write(folder / 'table.json', json.dumps(results, indent=2) + '\n')
    draw(folder / 'table.png', results, metric, f'Ablation: {Path(config).stem}')


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', help='config with a backbone of mmpatch')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='rows to train (all)')
    parser.add_argument(
        '--table', help=f'{", ".join(TABLES)} or a file (the table of the backbone of CONFIG)'
    )
    parser.add_argument('--list', action='store_true', help='print the rows and train nothing')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/ablation/CONFIG')
    parser.add_argument('--metric', help='its name in the log (box AP, mean IoU)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionAction,
        default={},
        metavar='KEY=VALUE',
        help='override settings of CONFIG; data_root=FOLDER moves all data',
    )
    args = parser.parse_args()
    tables = [read_table(name) for name in ([args.table] if args.table else TABLES)]
    if args.list:
        print('\n'.join(map(list_rows, tables)))
        return
    if not args.config:
        parser.error('name a CONFIG, or give --list')
    cfg = read_config(args)
    kind = cfg.model.backbone.type
    table = next((table for table in tables if table['type'] == kind), None)
    if table is None:
        kinds = ', '.join(table['type'] for table in tables)
        sys.exit(f'error: {args.config}: model.backbone is {kind}, the tables are for {kinds}')
    used, told = cfg.model.backbone.get('arch'), table['arguments'].get('arch')
    if used not in (None, told):
        print(f'warning: the rows describe {told}; {args.config} has arch={used!r}')
    names = [choose('row', name, table['rows']) for name in args.rows or table['rows']]
    metric = args.metric or METRICS.get(cfg.default_scope)
    if metric is None:
        sys.exit(f'error: default_scope={cfg.default_scope!r}: say the --metric of its log')
    folder = (args.work_dir or Path('work_dirs/ablation') / Path(args.config).stem).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        sys.exit(f'error: {folder} is not a folder; give another --work-dir')
    lock = (folder / '.lock').open('w')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f'error: {folder} is in use by another run')
    write_settings(folder / 'base.py', cfg.pretty_text)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f'rows: {", ".join(names)}; logs: {folder}/ROW/log.txt', flush=True)
    failed: dict[str, Result] = {}
    try:
        for name in names:
            changes = table['rows'][name].get('changes', {})
            result = run_row(folder / name, cfg, changes, metric)
            if result['error']:
                failed[name] = result
            parameters, macs = format_size(result)
            line = f'{name:12} {parameters} M, {macs} G, {metric} {format_metric(result)}, '
            line += f'{result["seconds"] / 60:.1f} min'
            print(line + (f': {result["error"]}' if result['error'] else ''), flush=True)
            results = {
                n: failed.get(n) or json.loads((folder / n / 'result.json').read_text())
                for n in table['rows']
                if n in failed or (folder / n / 'result.json').is_file()
            }
            write_results(folder, results, table, metric, args.config)
    except KeyboardInterrupt:
        sys.exit('stopped; the same command continues')
    finally:
        lock.close()
    print(f'{folder}/table.md, table.json, table.png')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
