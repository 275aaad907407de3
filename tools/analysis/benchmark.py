"""Time backbones of mmpatch beside their peers, interleaved in one process.

    python tools/analysis/benchmark.py --out benchmark.json

Prints, for each network, medians and how many times faster each form is than timm's eager one (or,
where timm has no such network, than ours as it is trained). Times of different runs do not compare:
only ratios of one run do. ``products`` is the floor: the network's linear maps and strided
convolutions alone, at their shapes, with what oneDNN fuses into them.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from mmpatch import deploy
from mmpatch.backbones import Container, ConvMixer, MetaFormer, PoolFormer, VisionTransformer


class Case(NamedTuple):
    """A network of ours, timm's name of it, and an input."""

    make: Callable[[], MetaFormer]
    peer: str | None
    size: tuple[int, ...]


WINDOWS = {'with_cls_token': False, 'window_size': 14}
CASES = {
    'poolformer-s12': Case(
        lambda: PoolFormer('s12', out_norm=False), 'poolformer_s12', (2, 3, 512, 512)
    ),
    'poolformer-m36': Case(
        lambda: PoolFormer('m36', out_norm=False), 'poolformer_m36', (1, 3, 800, 1344)
    ),
    'convmixer-768-32': Case(
        lambda: ConvMixer('768/32', out_norm=False), 'convmixer_768_32', (1, 3, 224, 224)
    ),
    'container-light': Case(lambda: Container('light', out_norm=False), None, (2, 3, 512, 512)),
    'vit-base': Case(
        lambda: VisionTransformer('base', out_norm=False),
        'vit_base_patch16_224',
        (1, 3, 512, 512),
    ),
    'vit-base-windows': Case(
        lambda: VisionTransformer('base', out_norm=False, **WINDOWS),
        'vit_base_patch16_224',
        (1, 3, 1024, 1024),
    ),
}


def peers(name: str, x: Tensor) -> dict[str, Callable[[], Any]]:
    """Features of timm's network, in both memory formats."""
    settings = {'dynamic_img_size': True} if name.startswith('vit') else {}
    plain = timm.create_model(name, **settings).eval()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    return {
        'timm': lambda: plain.forward_features(x),
        'timm channels_last': lambda: last.forward_features(x_last),
    }


def products(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """The deployed model's linear maps and ungrouped convolutions alone, at their shapes."""
    calls: list[Callable[[], Any]] = []
    handles = []

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept = tuple(torch.randn_like(a) if isinstance(a, Tensor) else a for a in args)
        named = {k: torch.randn_like(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        calls.append(lambda: module(*kept, **named))

    for module in model.modules():
        dense = isinstance(module, nn.Conv2d) and module.groups == 1
        if dense or isinstance(module, nn.Linear) or type(module).__name__ == 'Linear':
            handles.append(module.register_forward_pre_hook(record, with_kwargs=True))
    model(x)
    for handle in handles:
        handle.remove()

    def run() -> None:
        for call in calls:
            call()

    return run


def measure(forms: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each form, taken in turns after two rounds of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(repeats + 2):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--networks', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument('--repeats', type=int, default=7, help='of each form')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--out', type=Path, help='JSON file to write')
    args = parser.parse_args()
    if args.repeats < 7:
        parser.error(f'--repeats {args.repeats}: a median needs at least 7')
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for name in args.networks:
        case = CASES[name]
        x = torch.randn(case.size)
        model = case.make().eval()
        deployed = deploy(model)
        with torch.inference_mode():
            forms = peers(case.peer, x) if case.peer else {}
            forms['mmpatch'] = lambda model=model, x=x: model(x)
            forms['mmpatch deployed'] = lambda model=deployed, x=x: model(x)
            forms['products'] = products(deployed, x)
            seconds = measure(forms, args.repeats)
        base = next(iter(seconds.values()))
        found[name] = {
            'input': case.size,
            'seconds': seconds,
            'times_faster': {form: base / value for form, value in seconds.items()},
            'share_of_floor': seconds['products'] / seconds['mmpatch deployed'],
        }
        print(f'{name}, {"x".join(map(str, case.size))}')
        for form, value in seconds.items():
            print(f'  {form:20} {value * 1e3:8.1f} ms  {base / value:5.2f} x')
        print(f'  share of the floor   {found[name]["share_of_floor"]:8.2f}', flush=True)
    if args.out:
        versions = {'python': platform.python_version(), 'torch': torch.__version__}
        versions['timm'] = timm.__version__
        result = {'threads': args.threads, 'versions': versions, 'networks': found}
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
