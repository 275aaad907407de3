"""Write the tables of docs/backbones.md: sizes, published results, licences and speed.

    python tools/analysis/compare_configs.py --write docs/backbones.md

All data comes from files of the project: the metafiles that model-index.yml lists, the weights that
the configs name, and docs/benchmark.json. Without --write, the tables are printed.
"""

import argparse
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import yaml
from report import join_table, write_tables

from mmpatch.checkpoint import PUBLISHED
from mmpatch.engine.errors import report_errors

ROOT = Path(__file__).resolve().parents[2]
#: Title of a table, and how the names of its configs start.
TASKS = {
    'RetinaNet on COCO': ('retinanet_',),
    'Mask R-CNN and its cascade on COCO': ('mask-rcnn_', 'cascade-mask-rcnn_'),
    "DETR's family on COCO": ('detr_', 'deformable-detr_', 'smca-detr_', 'dino-', 'mask2former_'),
    'Segmentors on ADE20K': ('fpn_', 'upernet_'),
}
FORMS = (
    'mmpatch',
    'mmpatch deployed',
    'mmpatch exported openvino f32',
    'mmpatch exported openvino bf16',
)


def list_models() -> list[dict[str, Any]]:
    """Entries of all metafiles."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    return [
        model
        for name in index['Import']
        for model in yaml.safe_load((ROOT / name).read_text())['Models']
    ]


def find_weights(config: Path) -> str:
    """What the backbone of a config starts from; empty where no config of this project says it.

    Bases of the hosts are left out: reading them takes minutes, and they name no weights of ours.
    """
    settings = runpy.run_path(str(config))
    weights = settings.get('model', {}).get('backbone', {}).get('init_cfg')
    if weights:
        return weights['checkpoint']
    bases = settings.get('_base_', [])
    own = [base for base in ([bases] if isinstance(bases, str) else bases) if '::' not in base]
    return next(filter(None, (find_weights(config.parent / base) for base in own)), '')


def get_licence(source: str) -> str:
    """Licence of a weight file; a dash if its publisher states none."""
    if source.startswith('timm://'):
        licence = timm.get_pretrained_cfg(source.removeprefix('timm://')).license or '-'
        return licence.replace('apache', 'Apache')
    entry = PUBLISHED.get(source.removeprefix('mmpatch://'))
    return (entry and entry.licence) or '-'


def get_top1(source: str) -> str:
    """ImageNet-1k accuracy of a weight file, in percent; a dash if none is known."""
    entry = PUBLISHED.get(source.removeprefix('mmpatch://'))
    return f'{entry.top1:g}' if entry and entry.top1 else '-'


def list_published(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Results of a config, each with its source; those of one source together."""
    found: dict[str, list[str]] = {}
    for result in model.get('Results', []):
        values = [f'{value} {name}' for name, value in result['Metrics'].items()]
        found.setdefault(result['Source'], []).extend(values)
    yield from ((', '.join(values), source) for source, values in found.items())


def read_number(model: dict[str, Any], key: str) -> float:
    return float(model['Metadata'][key].split()[0])


def make_rows(starts: tuple[str, ...], models: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Cells of the configs of a task, the one with the fewest multiply-adds first."""
    chosen = [model for model in models if model['Name'].startswith(starts)]
    for model in sorted(chosen, key=lambda m: read_number(m, 'Backbone and neck MACs')):
        weights = find_weights(ROOT / model['Config'])
        published = list(list_published(model)) or [('none', '-')]
        yield [
            f'[{model["Name"]}](../{model["Config"]})',
            model['Metadata']['Parameters'],
            model['Metadata']['Backbone and neck MACs'],
            '; '.join(values for values, _ in published),
            '; '.join(source for _, source in published),
            get_top1(weights),
            get_licence(weights),
        ]


def make_speed_rows(networks: dict[str, Any]) -> Iterator[list[str]]:
    """Cells of the milliseconds per image of each network that was timed."""
    for name, uses in networks.items():
        found = uses['inference']
        count, _, height, width = found['input']
        seconds = found['seconds']['kept']
        cells = (seconds.get(form) for form in FORMS)
        yield [
            name,
            f'{height} x {width}',
            *('-' if value is None else f'{1e3 * value / count:.0f}' for value in cells),
        ]


def make_tables() -> str:
    """Markdown of all tables."""
    models = list_models()
    heads = ['config', 'parameters', 'MACs', 'published', 'by', 'top-1', 'licence']
    lines: list[str] = []
    for title, starts in TASKS.items():
        lines += [f'## {title}', '', *join_table(heads, list(make_rows(starts, models)))]
    result = json.loads((ROOT / 'docs/benchmark.json').read_text())
    threads = f'{result["threads"]} threads of {result["cpu"]}, {result["date"]}'
    lines += ['## Our speed', '', f'Milliseconds per image on {threads}:', '']
    heads = ['backbone', 'image', 'torch', 'deployed', 'OpenVINO', 'OpenVINO, bf16']
    lines += join_table(heads, list(make_speed_rows(result['networks'])))
    return '\n'.join(lines)


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--write', type=Path, metavar='PAGE', help='put the tables into a page')
    args = parser.parse_args()
    text = make_tables()
    if args.write:
        write_tables(args.write, 'compare_configs.py', text)
    else:
        print(text)


if __name__ == '__main__':
    main()
