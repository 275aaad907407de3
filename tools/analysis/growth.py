"""Measure how time and kept memory grow with the image, from 256 to 2048 squared, and draw it.

    python tools/analysis/growth.py --out growth.json --plot growth.png

For each network: seconds of inference (median of 7, of 3 from 1024 on) and bytes that autograd
keeps of a forward pass, the exponents of both against pixels (least squares on logarithms), and the
share of a quadratic part in the time at 2048 squared (least squares of ``a + b n + c n**2``, none
below zero, relative errors).
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from benchmark import kept_bytes, measure, versions
from scipy.optimize import nnls

from mmpatch.backbones import Container, ConvMixer, MetaFormer, PoolFormer, VisionTransformer

mpl.use('Agg')
from matplotlib import pyplot as plt

SIDES = (256, 384, 512, 768, 1024, 1536, 2048)
VIT = {'with_cls_token': False, 'out_norm': False}
WINDOW = {'type': 'Windowed', 'mixer': {'type': 'Attention', 'num_heads': 3}, 'window_size': 16}
NETWORKS: dict[str, Callable[[], MetaFormer]] = {
    'PoolFormer-S12': lambda: PoolFormer('s12', out_norm=False),
    'ConvMixer-512/12, patch 8': lambda: ConvMixer('512/12', patch_size=8, out_norm=False),
    'ViT-Ti, windows of 16': lambda: VisionTransformer('tiny', token_mixers=WINDOW, **VIT),
    'CONTAINER-Light': lambda: Container('light', out_norm=False),
    'ViT-Ti, global': lambda: VisionTransformer('tiny', **VIT),
}


def exponent(pixels: np.ndarray, values: np.ndarray) -> float:
    return float(np.polyfit(np.log(pixels), np.log(values), 1)[0])


def quadratic_share(pixels: np.ndarray, values: np.ndarray) -> float:
    """Share of the quadratic part at the largest size."""
    n = pixels / pixels[-1]
    terms = np.stack([np.ones_like(n), n, n**2], 1)
    found, _ = nnls(terms / values[:, None], np.ones_like(values))
    return float(found[2] / (found @ terms[-1]))


def measured(model: MetaFormer) -> dict[str, list[float]]:
    seconds, kept = [], []
    for side in SIDES:
        x = torch.randn(1, 3, side, side)
        model.eval()
        with torch.no_grad():
            times = measure({'': lambda x=x: model(x)}, 7 if side < 1024 else 3)
        seconds.append(times[''])
        model.train()
        kept.append(kept_bytes(model, lambda x=x: model(x)))
    return {'seconds': seconds, 'kept_bytes': kept}


def draw(found: dict[str, Any], path: Path) -> None:
    pixels = np.square(SIDES)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, values in found.items():
        axes[0].loglog(pixels, np.array(values['seconds']) / pixels * 1e6, 'o-', label=name)
        axes[1].loglog(pixels, np.array(values['kept_bytes']) / pixels / 1024, 'o-', label=name)
    axes[0].set_ylabel('seconds a megapixel, inference')
    axes[1].set_ylabel('KiB kept a pixel, training')
    for axis in axes:
        axis.set_xlabel('pixels')
        axis.set_xticks(pixels[::2], [f'{side}²' for side in SIDES[::2]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle('What is linear in the pixels is level')
    figure.tight_layout()
    figure.savefig(path, dpi=110)


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
    pixels = np.square(SIDES).astype(float)
    found: dict[str, Any] = {}
    print('network                    time: exponent, quadratic share   kept: exponent')
    for name in args.networks:
        values: dict[str, Any] = measured(NETWORKS[name]())
        seconds, kept = np.array(values['seconds']), np.array(values['kept_bytes'], float)
        values['time_exponent'] = exponent(pixels, seconds)
        values['time_quadratic_share'] = quadratic_share(pixels, seconds)
        values['kept_exponent'] = exponent(pixels, kept)
        found[name] = values
        print(
            f'{name:26} {values["time_exponent"]:14.3f} {values["time_quadratic_share"]:17.2f}'
            f' {values["kept_exponent"]:16.3f}'
        )
        sys.stdout.flush()
    if args.plot:
        draw(found, args.plot)
    if args.out:
        result = {'sides': SIDES, 'versions': versions(), 'networks': found}
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
