"""Time backbones of mmpatch beside their peers, interleaved, each network in a process of its own.

    python tools/analysis/benchmark.py --out benchmark.json

Prints, for each network, medians and how many times faster each form is than timm's eager one (or,
where timm has no such network, than our plain form), for inference and for a training step, and
what autograd keeps of a forward pass. Times of different runs do not compare: only ratios of one
run do. ``products`` is the floor of inference: the network's linear maps and dense convolutions
alone, at the shapes that the deployed network gives them, with what oneDNN fuses into them.
``--compile`` adds compiled forms, which need a C++ compiler.
"""

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmpatch import deploy
from mmpatch.backbones import Container, ConvMixer, MetaFormer, PoolFormer, VisionTransformer
from mmpatch.fast.forms import plain_forms

Forms = dict[str, Callable[[], Any]]


class Case(NamedTuple):
    """A network of ours, timm's name of it, an input, and what of it is measured."""

    make: Callable[..., MetaFormer]
    peer: str | None
    size: tuple[int, ...]
    what: tuple[str, ...] = ('inference',)


WINDOWS = {'with_cls_token': False, 'window_size': 14}
BOTH = ('inference', 'training')
CASES = {
    'poolformer-s12': Case(
        lambda **kw: PoolFormer('s12', **kw), 'poolformer_s12', (2, 3, 512, 512), BOTH
    ),
    'poolformer-m36': Case(
        lambda **kw: PoolFormer('m36', **kw), 'poolformer_m36', (1, 3, 800, 1344)
    ),
    'convmixer-768-32': Case(
        lambda **kw: ConvMixer('768/32', **kw), 'convmixer_768_32', (1, 3, 224, 224)
    ),
    'convmixer-1024-20': Case(
        lambda **kw: ConvMixer('1024/20', **kw),
        'convmixer_1024_20_ks9_p14',
        (2, 3, 512, 512),
        ('training',),
    ),
    'container-light': Case(lambda **kw: Container('light', **kw), None, (2, 3, 512, 512), BOTH),
    'vit-small': Case(
        lambda **kw: VisionTransformer('small', **kw),
        'vit_small_patch16_224',
        (2, 3, 512, 512),
        ('training',),
    ),
    'vit-base': Case(
        lambda **kw: VisionTransformer('base', **kw), 'vit_base_patch16_224', (1, 3, 512, 512)
    ),
    'vit-base-windows': Case(
        lambda **kw: VisionTransformer('base', **WINDOWS, **kw),
        'vit_base_patch16_224',
        (1, 3, 1024, 1024),
    ),
}


def timm_forms(name: str, x: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    """Timm's network in both memory formats, and the input in the second."""
    settings = {'dynamic_img_size': True} if name.startswith('vit') else {}
    plain = timm.create_model(name, **settings)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    return plain, last, x.contiguous(memory_format=torch.channels_last)


def in_plain_forms(form: Callable[[], Any]) -> Callable[[], Any]:
    """The same, by the blocks as they are written."""

    def run() -> Any:
        with plain_forms():
            return form()

    return run


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


def measure(forms: Forms, repeats: int) -> dict[str, float]:
    """Median seconds of each form, taken in turns after two rounds of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(repeats + 2):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def kept_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd keeps of a forward pass, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other moves in
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outs = forward()
    del outs
    return sum(size for size, _ in kept.values())


def inference(case: Case, repeats: int, with_compiler: bool) -> dict[str, Any]:
    """Features of one input, in all forms."""
    x = torch.randn(case.size)
    model = case.make(out_norm=False).eval()
    deployed = deploy(model)
    forms: Forms = {}
    # Compiled code is not made for inference tensors: no_grad serves all.
    with torch.no_grad():
        if case.peer:
            plain, last, x_last = timm_forms(case.peer, x)
            plain.eval(), last.eval()
            forms['timm'] = lambda: plain.forward_features(x)
            forms['timm channels_last'] = lambda: last.forward_features(x_last)
            if with_compiler:
                peer = torch.compile(last.forward_features)
                forms['timm compiled'] = lambda: peer(x_last)
        forms['mmpatch plain form'] = in_plain_forms(lambda: model(x))
        forms['mmpatch'] = lambda: model(x)
        if with_compiler:
            ours = torch.compile(model)
            forms['mmpatch compiled'] = lambda: ours(x)
        forms['mmpatch deployed'] = lambda: deployed(x)
        forms['products'] = products(deployed, x)
        seconds = measure(forms, repeats)
    return {
        'seconds': seconds,
        'share_of_floor': seconds['products'] / seconds['mmpatch deployed'],
    }


def training(case: Case, repeats: int, with_compiler: bool) -> dict[str, Any]:
    """Forward and backward pass, and what is kept between them."""
    x = torch.randn(case.size)
    model = case.make(out_norm=False).train()
    saving = case.make(out_norm=False, with_cp=True).train()
    saving.load_state_dict(model.state_dict())
    networks: dict[str, tuple[nn.Module, Callable[[], Any]]] = {}
    if case.peer:
        plain, last, x_last = timm_forms(case.peer, x)
        networks['timm'] = plain, lambda: plain.forward_features(x)
        networks['timm channels_last'] = last, lambda: last.forward_features(x_last)
        if with_compiler:
            peer = torch.compile(last.forward_features)
            networks['timm compiled'] = last, lambda: peer(x_last)
    networks['mmpatch plain form'] = model, in_plain_forms(lambda: model(x)[-1])
    networks['mmpatch'] = model, lambda: model(x)[-1]
    networks['mmpatch with_cp'] = saving, lambda: saving(x)[-1]
    kept = {name: kept_bytes(network, forward) for name, (network, forward) in networks.items()}
    forms: Forms = {
        name: lambda forward=forward: forward().mean().backward()
        for name, (_, forward) in networks.items()
    }
    return {'seconds': measure(forms, repeats), 'kept_bytes': kept}


def show(name: str, what: str, found: dict[str, Any]) -> None:
    base = next(iter(found['seconds'].values()))
    found['times_faster'] = {form: base / value for form, value in found['seconds'].items()}
    print(f'{name}, {what}, {"x".join(map(str, found["input"]))}')
    for form, value in found['seconds'].items():
        line = f'  {form:20} {value * 1e3:8.1f} ms  {base / value:5.2f} x'
        if 'kept_bytes' in found:
            kept = found['kept_bytes'][form]
            share = kept / next(iter(found['kept_bytes'].values()))
            line += f'  {kept / 2**20:7.0f} MiB kept, {share:.2f}'
        print(line)
    if 'share_of_floor' in found:
        print(f'  share of the floor   {found["share_of_floor"]:8.2f}')
    sys.stdout.flush()


def versions() -> dict[str, str]:
    return {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'timm': timm.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--networks', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument('--what', nargs='+', choices=BOTH, default=list(BOTH))
    parser.add_argument('--repeats', type=int, default=7, help='of each form')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--compile', action='store_true', help='compiled forms, too')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    args = parser.parse_args()
    if args.repeats < 7:
        parser.error(f'--repeats {args.repeats}: a median needs at least 7')
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    runs = [(n, w) for n in args.networks for w in BOTH if w in args.what and w in CASES[n].what]
    found: dict[str, Any] = {}
    for name, what in runs:
        if len(runs) == 1:
            measured = globals()[what](CASES[name], args.repeats, args.compile)
            found[name] = {what: {'input': CASES[name].size, **measured}}
            show(name, what, found[name][what])
            break
        # What a process has allocated before changes how fast memory is had: each starts anew.
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, 'run.json')
            command = [sys.executable, __file__, '--networks', name, '--what', what]
            command += ['--repeats', str(args.repeats), '--threads', str(args.threads)]
            command += ['--out', str(out), *(['--compile'] if args.compile else [])]
            subprocess.run(command, check=True)
            measured = json.loads(out.read_text())['networks'][name]
        found.setdefault(name, {}).update(measured)
    if args.out:
        result = {'threads': args.threads, 'versions': versions(), 'networks': found}
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
