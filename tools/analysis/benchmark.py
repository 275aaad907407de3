"""Time backbones of mmpatch beside timm's, with freed memory kept and as glibc has it.

    python tools/analysis/benchmark.py --out docs/benchmark.json
    python tools/analysis/benchmark.py --table docs/benchmark.json

Each network runs in pairs of processes: one keeps freed memory, as mmpatch's tools do, and one
leaves it to glibc, as a user of timm has it. All forms of both take turns, so that ratios of one
run compare; times of different runs do not. The addresses of tensors differ between processes and
move times by some percent, so medians are taken over several pairs. Prints medians, page faults
and, for training, what autograd keeps.
``--compile`` adds compiled forms, which need a C++ compiler. ``--device cuda`` times on a GPU,
where there is one heap only.
"""

import argparse
import copy
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmpatch import deploy
from mmpatch.backbones import Container, ConvMixer, MetaFormer, PoolFormer, VisionTransformer
from mmpatch.engine.memory import keep_freed_memory

Forms = dict[str, Callable[[], Any]]
USES = ('inference', 'training')
HEAPS = ('kept', 'glibc')


class Case(NamedTuple):
    """A network of ours, timm's name of it, an input, and what of it is measured."""

    make: Callable[..., MetaFormer]
    peer: str | None
    size: tuple[int, ...]
    uses: tuple[str, ...] = USES


CASES = {
    'poolformer-s12': Case(
        lambda **kw: PoolFormer('s12', **kw), 'poolformer_s12', (2, 3, 512, 512)
    ),
    'convmixer-768-32': Case(
        lambda **kw: ConvMixer('768/32', **kw),
        'convmixer_768_32',
        (2, 3, 224, 224),
        ('inference',),
    ),
    'container-light': Case(lambda **kw: Container('light', **kw), None, (2, 3, 512, 512)),
    'vit-base': Case(
        lambda **kw: VisionTransformer('base', **kw),
        'vit_base_patch16_224',
        (2, 3, 384, 384),
        ('inference',),
    ),
}


def make_peers(name: str, x: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    """Timm's network in both memory formats, and the input in the second."""
    settings = {'dynamic_img_size': True} if name.startswith('vit') else {}
    plain = timm.create_model(name, **settings).to(x.device)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    return plain, last, x.contiguous(memory_format=torch.channels_last)


def inference(case: Case, device: str, with_compiler: bool) -> tuple[Forms, dict[str, int]]:
    """Features of one input, in all forms."""
    x = torch.randn(case.size, device=device)
    model = case.make(out_norm=False).to(device).eval()
    deployed = deploy(model)
    forms: Forms = {}
    if case.peer:
        plain, last, x_last = make_peers(case.peer, x)
        plain.eval(), last.eval()
        forms['timm'] = lambda: plain.forward_features(x)
        forms['timm channels_last'] = lambda: last.forward_features(x_last)
        if with_compiler:
            peer = torch.compile(last.forward_features)
            forms['timm compiled'] = lambda: peer(x_last)
    forms['mmpatch'] = lambda: model(x)
    if with_compiler:
        ours = torch.compile(model)
        forms['mmpatch compiled'] = lambda: ours(x)
    forms['mmpatch deployed'] = lambda: deployed(x)
    # Compiled code is not made for inference tensors: no_grad serves all.
    return {name: torch.no_grad()(form) for name, form in forms.items()}, {}


def training(case: Case, device: str, with_compiler: bool) -> tuple[Forms, dict[str, int]]:
    """Forward and backward pass of a loss on the last output, and what is kept between them."""
    x = torch.randn(case.size, device=device)
    networks: dict[str, tuple[nn.Module, Callable[[], Any]]] = {}
    if case.peer:
        plain, last, x_last = make_peers(case.peer, x)
        networks['timm'] = plain, lambda: plain.forward_features(x)
        networks['timm channels_last'] = last, lambda: last.forward_features(x_last)
        if with_compiler:
            peer = torch.compile(last.forward_features)
            networks['timm compiled'] = last, lambda: peer(x_last)
    model, saving = (case.make(out_norm=False, with_cp=cp).to(device) for cp in (False, True))
    networks['mmpatch'] = model, lambda: model(x)[-1]
    networks['mmpatch with_cp'] = saving, lambda: saving(x)[-1]
    forms: Forms = {}
    kept = {}
    for name, (network, forward) in networks.items():
        network.train()
        kept[name] = count_kept_bytes(network, forward)
        forms[name] = lambda forward=forward: forward().mean().backward()
    return forms, kept


def count_kept_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
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


def run_once(form: Callable[[], Any], device: str) -> tuple[float, int]:
    """Seconds and page faults of one call."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start = time.perf_counter()
    form()
    if device == 'cuda':
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def measure(forms: Forms, repeats: int) -> dict[str, float]:
    """Median seconds of each form, taken in turns after two rounds of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(repeats + 2):
        for name, form in forms.items():
            elapsed, _ = run_once(form, 'cpu')
            if turn >= 2:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def serve(pipe: Any, name: str, use: str, heap: str, args: argparse.Namespace) -> None:
    """Body of a process with one kind of heap: run the form that is asked for."""
    torch.set_num_threads(args.threads)
    if heap == 'kept' and args.device == 'cpu':
        os.environ.pop('MMPATCH_KEEP_HEAP', None)
        if not keep_freed_memory():
            sys.exit('error: this C library cannot be asked to keep freed memory')
    torch.manual_seed(0)
    forms, kept = globals()[use](CASES[name], args.device, args.compile)
    pipe.send((list(forms), kept))
    while (form := pipe.recv()) is not None:
        pipe.send(run_once(forms[form], args.device))


def compare(name: str, use: str, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds and page faults of each form under each heap, all in turns."""
    turns: dict[str, dict[str, list[tuple[float, int]]]] = {}
    for _ in range(args.pairs):
        kept = take_turns(name, use, args, turns)
    found: dict[str, Any] = {'input': CASES[name].size, 'kept_bytes': kept}
    for i, figure in enumerate(('seconds', 'page_faults')):
        found[figure] = {
            heap: {form: statistics.median(turn[i] for turn in taken) for form, taken in of.items()}
            for heap, of in turns.items()
        }
    return found


def take_turns(
    name: str,
    use: str,
    args: argparse.Namespace,
    turns: dict[str, dict[str, list[tuple[float, int]]]],
) -> dict[str, int]:
    """Add the turns of one pair of processes, and return the bytes that each form keeps."""
    context = multiprocessing.get_context('spawn')
    workers = {}
    for heap in HEAPS if args.device == 'cpu' else HEAPS[:1]:
        pipe, end = context.Pipe()
        worker = context.Process(target=serve, args=(end, name, use, heap, args))
        worker.start()
        end.close()
        workers[heap] = worker, pipe
    # Both are made before the first is timed.
    made = {heap: pipe.recv() for heap, (_, pipe) in workers.items()}
    for turn in range(args.repeats + 2):
        for heap, (_, pipe) in workers.items():
            for form in made[heap][0]:
                pipe.send(form)
                figures = pipe.recv()
                if turn >= 2:  # after two rounds of warming up
                    turns.setdefault(heap, {}).setdefault(form, []).append(figures)
    for worker, pipe in workers.values():
        pipe.send(None)
        worker.join()
    return made[HEAPS[0]][1]


def make_table(result: dict[str, Any]) -> str:
    """Markdown tables of a file that this command wrote."""
    lines = []
    for use in USES:
        kept = ', MiB kept' if use == 'training' else ''
        lines += ['', f'{use.capitalize()}:', '']
        heads = ['network, input', 'form', 'ms, heap kept (x)', 'ms, heap of glibc (x)']
        lines += [f'| {" | ".join((*heads, f"page faults{kept}"))} |', '|---|---|---|---|---|']
        for name, uses in result['networks'].items():
            if use not in uses:
                continue
            found = uses[use]
            first = next(iter(found['seconds']['kept']))
            for form in found['seconds']['kept']:
                cells = [f'{name}, {"x".join(map(str, found["input"]))}', form]
                for heap in HEAPS:
                    seconds = found['seconds'].get(heap)
                    cells.append(
                        f'{seconds[form] * 1e3:.1f} ({seconds[first] / seconds[form]:.2f})'
                        if seconds
                        else ''
                    )
                faults = [found['page_faults'].get(heap, {}).get(form) for heap in HEAPS]
                cell = ' / '.join(f'{count:.0f}' for count in faults if count is not None)
                if kept:
                    cell += f', {found["kept_bytes"][form] / 2**20:.0f}'
                lines.append(f'| {" | ".join((*cells, cell))} |')
    return '\n'.join([*lines, '', *make_ratios(result)])


#: A form and the one that it is compared with, each with its heap.
COMPARISONS = (
    (('mmpatch', 'kept'), ('timm channels_last', 'kept')),
    (('mmpatch', 'kept'), ('timm', 'glibc')),
    (('mmpatch deployed', 'kept'), ('mmpatch', 'kept')),
    (('mmpatch deployed', 'kept'), ('timm channels_last', 'kept')),
)


def make_ratios(result: dict[str, Any]) -> list[str]:
    """Lines of a table of how many times faster one form is than another."""
    heads = [f'{a[0]} ({a[1]}) over {b[0]} ({b[1]})' for a, b in COMPARISONS]
    lines = ['Times faster (in parentheses: the heap):', '']
    lines += [f'| network, use | {" | ".join(heads)} |', '|---' * (len(heads) + 1) + '|']
    for name, uses in result['networks'].items():
        for use, found in uses.items():
            seconds = found['seconds']
            cells = [
                f'{seconds[theirs[1]][theirs[0]] / seconds[ours[1]][ours[0]]:.2f}'
                if all(form in seconds.get(heap, ()) for form, heap in (ours, theirs))
                else ''
                for ours, theirs in COMPARISONS
            ]
            if any(cells):
                lines.append(f'| {name}, {use} | {" | ".join(cells)} |')
    return lines


def describe_machine() -> dict[str, Any]:
    """Date, processor and versions that figures belong to."""
    cpu = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        'date': date.today().isoformat(),
        'cpu': cpu[0].split(': ')[1] if cpu else platform.machine(),
        'gpu': gpu,
        'python': platform.python_version(),
        'torch': torch.__version__,
        'timm': timm.__version__,
        'libc': ' '.join(platform.libc_ver()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--networks', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument('--what', nargs='+', choices=USES, default=list(USES))
    parser.add_argument('--pairs', type=int, default=3, help='of processes')
    parser.add_argument('--repeats', type=int, default=5, help='of each form in a process')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--compile', action='store_true', help='compiled forms, too')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument(
        '--table', type=Path, help='print the tables of a JSON file, measure nothing'
    )
    args = parser.parse_args()
    if args.table:
        print(make_table(json.loads(args.table.read_text())))
        return
    if args.pairs * args.repeats < 7:
        parser.error(f'{args.pairs} pairs of {args.repeats}: a median needs at least 7 in all')
    networks: dict[str, Any] = {}
    for name in args.networks:
        for use in args.what:
            if use in CASES[name].uses:
                networks.setdefault(name, {})[use] = compare(name, use, args)
    command = ' '.join(['python', 'tools/analysis/benchmark.py', *sys.argv[1:]])
    result = {'command': command, 'threads': args.threads, **describe_machine()}
    result['networks'] = networks
    print(make_table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
