"""Time backbones of mmpatch and of timm, in torch and in engines, under two settings of the heap.

    python tools/analysis/benchmark.py --out docs/benchmark.json
    python tools/analysis/benchmark.py --table docs/benchmark.json --write docs/performance.md

Each network runs in pairs of processes: one keeps freed memory, as mmpatch's tools do, and one
leaves it to glibc, as a user of timm does. All forms of both take turns, so ratios within a run can
be compared; times of different runs cannot. The addresses of tensors differ between processes and
change times by some percent, so medians are taken over several pairs; ``--pairs 1 --repeats 9`` is
shorter. Forms are listed in ``networks.py``. All have the weights of timm's module, and before the
first turn, the output of each is compared with that of timm's module. The tool prints medians, page
faults, errors and, for training, what autograd keeps. For OpenVINO it also prints the times of
layers, from its own counters. Compiled forms need a C++ compiler, those in engines the extras
``[onnx]`` and ``[openvino]``. ``--device cuda`` times on a GPU, with only one heap and without
engines.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from networks import (
    CASES,
    inference,
    list_forms,
    profile_layers,
    read_flags,
    training,
    write_files,
)
from report import HEAPS, PACKAGES, USES, draw, make_tables, write_tables

from mmpatch.engine.errors import report_errors
from mmpatch.engine.memory import keep_freed_memory

Turns = dict[str, dict[str, list[tuple[float, int]]]]


def run_once(form: Callable[[], Any], device: str) -> tuple[float, int]:
    """Seconds and page faults of one call."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start = time.perf_counter()
    form()
    if device == 'cuda':
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def measure(forms: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each form, taken in turns after two rounds of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(repeats + 2):
        for name, form in forms.items():
            elapsed, _ = run_once(form, 'cpu')
            if turn >= 2:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def serve(
    pipe: Any, heap: str, name: str, use: str, forms: list[str], folder: Path, args: Any
) -> None:
    """Body of a process with one kind of heap: run the form that is asked for."""
    torch.set_num_threads(args.threads)
    if heap == 'kept' and args.device == 'cpu':
        os.environ.pop('MMPATCH_KEEP_HEAP', None)
        if not keep_freed_memory():
            sys.exit('error: this C library cannot be asked to keep freed memory')
    if use == 'inference':
        if heap == 'glibc':
            forms = [form for form in forms if form in CASES[name].glibc]
        made, figures = inference(name, args.device, forms, folder)
    else:
        made, figures = training(name, args.device)
    pipe.send((list(made), figures))
    while (form := pipe.recv()) is not None:
        pipe.send(run_once(made[form], args.device))


def compare(name: str, use: str, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds and page faults of each form under each heap, all in turns."""
    found: dict[str, Any] = {'input': CASES[name].size}
    turns: Turns = {}
    with tempfile.TemporaryDirectory() as folder:
        forms = list_forms(CASES[name], args.device, args.compile)
        if use == 'inference':
            # In a process of its own, since exporters leave much memory behind.
            context = multiprocessing.get_context('spawn')
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                job = pool.submit(write_files, name, Path(folder), forms, args.threads)
                found['missing'] = job.result()
            for form, reason in found['missing'].items():
                print(f'{name}, {form} is missing: {reason}', file=sys.stderr)
            forms = [form for form in forms if form not in found['missing']]
        for _ in range(args.pairs):
            figures = take_turns(name, use, forms, Path(folder), args, turns)
        if use == 'inference':
            engine = [form for form in forms if 'openvino' in form]
            found['layers'] = {form: profile_layers(name, Path(folder), form) for form in engine}
    found['error' if use == 'inference' else 'kept_bytes'] = figures
    for i, figure in enumerate(('seconds', 'page_faults')):
        found[figure] = {
            heap: {form: statistics.median(turn[i] for turn in taken) for form, taken in of.items()}
            for heap, of in turns.items()
        }
    return found


def take_turns(
    name: str, use: str, forms: list[str], folder: Path, args: argparse.Namespace, turns: Turns
) -> dict[str, float]:
    """Add the turns of one pair of processes, and return the error or kept bytes of each form."""
    context = multiprocessing.get_context('spawn')
    workers, made = {}, {}
    for heap in HEAPS if args.device == 'cpu' else HEAPS[:1]:
        pipe, end = context.Pipe()
        worker = context.Process(target=serve, args=(end, heap, name, use, forms, folder, args))
        worker.start()
        end.close()
        workers[heap] = worker, pipe
        # Both are made before the first is timed, one by one: the second finds compiled code.
        made[heap] = receive(pipe, f'{name}, {use}, heap {heap}')
    for turn in range(args.repeats + 1):
        for heap, (_, pipe) in workers.items():
            for form in made[heap][0]:
                pipe.send(form)
                figures = receive(pipe, f'{name}, {form}, heap {heap}')
                if turn:  # the first warms up, as the check of the outputs did
                    turns.setdefault(heap, {}).setdefault(form, []).append(figures)
    for worker, pipe in workers.values():
        pipe.send(None)
        worker.join()
    return made[HEAPS[0]][1]


def receive(pipe: Any, what: str) -> Any:
    """Answer of a process, which may have ended for want of memory."""
    try:
        return pipe.recv()
    except EOFError:
        sys.exit(f'error: {what}: the process ended; see above, or give it more memory')


def describe_machine() -> dict[str, Any]:
    """Date, processor and versions that figures belong to."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = [line for line in lines if 'model name' in line]
    installed = {package.name.lower(): package.version for package in metadata.distributions()}
    return {
        'date': date.today().isoformat(),
        'cpu': cpu[0].split(': ')[1] if cpu else platform.machine(),
        'flags': read_flags(),
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        'python': platform.python_version(),
        **{name: installed[name] for name in PACKAGES if name in installed},
        'libc': ' '.join(platform.libc_ver()),
    }


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    compiler = shutil.which(os.environ.get('CXX', 'g++')) or shutil.which('c++')
    parser.add_argument('--networks', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument('--what', nargs='+', choices=USES, default=list(USES))
    parser.add_argument('--pairs', type=int, default=3, help='pairs of processes')
    parser.add_argument('--repeats', type=int, default=3, help='turns of each form in a process')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument(
        '--compile',
        action=argparse.BooleanOptionalAction,
        default=compiler is not None,
        help='compiled forms, too; by default if a C++ compiler is found',
    )
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--table', type=Path, help='take a JSON file, measure nothing')
    parser.add_argument('--write', type=Path, help='page to put the tables into')
    parser.add_argument('--plot', type=Path, help='picture to draw')
    args = parser.parse_args()
    if args.table:
        result = json.loads(args.table.read_text())
    else:
        if args.pairs * args.repeats < 7:
            parser.error(f'{args.pairs} pairs of {args.repeats}: a median needs at least 7 in all')
        result = run(args)
    tables = make_tables(result)
    if args.write:
        write_tables(args.write, 'benchmark.py', tables)
    if args.plot:
        draw(result, args.plot)
    print(tables)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the arguments name, and write it after each network."""
    torch.set_num_threads(args.threads)
    command = ' '.join(['python', 'tools/analysis/benchmark.py', *sys.argv[1:]])
    result = {'command': command, 'threads': args.threads, **describe_machine()}
    networks = result['networks'] = {}
    for name in args.networks:
        for use in args.what:
            if use in CASES[name].uses:
                start = time.monotonic()
                networks.setdefault(name, {})[use] = compare(name, use, args)
                took = time.monotonic() - start
                print(f'{name}, {use}: {took:.0f} s', file=sys.stderr, flush=True)
                if args.out:
                    args.out.write_text(json.dumps(result, indent=1) + '\n')
    return result


if __name__ == '__main__':
    main()
