"""Measure how time and kept memory grow with the image, from 256 to 2048 squared, and draw it.

    python tools/analysis/growth.py --out growth.json --plot growth.png

For each network, the tool measures the seconds of inference (median of 7, from 1024 on of 3), those
of its attention alone, and the bytes that autograd keeps of a forward pass. It fits exponents of
these against the number of pixels (least squares on logarithms).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from benchmark import describe_machine, measure
from networks import count_kept_bytes

from mmpatch.backbones import Container, ConvMixer, MetaFormer, PoolFormer, VisionTransformer
from mmpatch.engine.errors import report_errors

mpl.use('Agg')
from matplotlib import pyplot as plt

SIDES = (256, 384, 512, 768, 1024, 1536, 2048)
VIT = {'with_cls_token': False, 'out_norm': False}
WINDOW = {'type': 'Windowed', 'mixer': {'type': 'Attention', 'num_heads': 3}, 'window_size': 16}
NETWORKS: dict[str, Callable[[], MetaFormer]] = {
    'PoolFormer-S12': lambda: PoolFormer('s12', out_norm=False),
    'ConvMixer-1024/20': lambda: ConvMixer('1024/20', out_norm=False),
    'ViT-Ti, windows of 16': lambda: VisionTransformer('tiny', token_mixers=WINDOW, **VIT),
    'CONTAINER-Light': lambda: Container('light', out_norm=False),
    'ViT-Ti, global': lambda: VisionTransformer('tiny', **VIT),
}


def exponent(values: list[float]) -> float:
    return float(np.polyfit(np.log(np.square(SIDES)), np.log(values), 1)[0])


@contextmanager
def timed_attention() -> Iterator[list[float]]:
    """Seconds of each attention call within."""
    calls: list[float] = []
    attend = F.scaled_dot_product_attention

    def timed(*args: Any, **kwargs: Any) -> torch.Tensor:
        start = time.perf_counter()
        out = attend(*args, **kwargs)
        calls.append(time.perf_counter() - start)
        return out

    F.scaled_dot_product_attention = timed
    try:
        yield calls
    finally:
        F.scaled_dot_product_attention = attend


def measured(model: MetaFormer) -> dict[str, Any]:
    found: dict[str, Any] = {'seconds': [], 'attention_seconds': [], 'kept_bytes': []}
    for side in SIDES:
        x = torch.randn(1, 3, side, side)
        model.eval()
        with torch.no_grad():
            times = measure({'': lambda x=x: model(x)}, 7 if side < 1024 else 3)
            with timed_attention() as calls:
                model(x)
        found['seconds'].append(times[''])
        found['attention_seconds'].append(sum(calls))
        model.train()
        found['kept_bytes'].append(count_kept_bytes(model, lambda x=x: model(x)))
    found['time_exponent'] = exponent(found['seconds'])
    found['kept_exponent'] = exponent(found['kept_bytes'])
    if sum(found['attention_seconds']):
        found['attention_exponent'] = exponent(found['attention_seconds'])
        found['attention_share'] = found['attention_seconds'][-1] / found['seconds'][-1]
    return found


def show(name: str, values: dict[str, Any]) -> None:
    line = f'{name:22} exponents: time {values["time_exponent"]:.3f}, kept bytes '
    line += f'{values["kept_exponent"]:.3f}'
    if 'attention_share' in values:
        line += f', attention {values["attention_exponent"]:.2f}, '
        line += f'its share of the time at the end {values["attention_share"]:.2f}'
    print(line, flush=True)


def draw(found: dict[str, Any], path: Path) -> None:
    pixels = np.square(SIDES)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout='constrained')
    for name, values in found.items():
        per = np.array(values['seconds']) / pixels * 1e6
        (line,) = axes[0].loglog(pixels, per, 'o-', label=name)
        if 'attention_share' in values:
            part = np.array(values['attention_seconds']) / pixels * 1e6
            axes[0].loglog(pixels, part, ':', color=line.get_color(), label=f'{name}: attention')
        axes[1].loglog(pixels, np.array(values['kept_bytes']) / pixels / 1024, 'o-', label=name)
    axes[0].set_ylabel('seconds a megapixel, inference')
    axes[1].set_ylabel('KiB kept a pixel, training')
    for axis in axes:
        axis.set_xlabel('pixels')
        axis.set_xticks(pixels[::2], [f'{side}²' for side in SIDES[::2]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.suptitle('What is linear in the pixels is level')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=4)
    figure.savefig(path, dpi=110)


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--plot', type=Path, help='picture to write')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for name in args.networks:
        if len(args.networks) == 1:
            found[name] = measured(NETWORKS[name]())
            show(name, found[name])
            break
        with tempfile.TemporaryDirectory() as folder:  # what one network leaves helps no other
            out = Path(folder, 'run.json')
            command = [sys.executable, __file__, '--networks', name, '--out', str(out)]
            subprocess.run([*command, '--threads', str(args.threads)], check=True)
            found.update(json.loads(out.read_text())['networks'])
    if args.plot:
        draw(found, args.plot)
    if args.out:
        result = {'sides': SIDES, **describe_machine(), 'networks': found}
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
