"""Tools of this project in processes of their own, and how much memory and handles they hold."""

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

TOOLS = Path(__file__).parents[1]
#: Seconds between two looks at a child, and between two lines on how far it is.
PAUSE, SILENCE = 0.5, 20


class Sample(NamedTuple):
    """What a process held at one moment.

    Attributes:
        step: How far it was, in iterations or pictures.
        megabytes: Resident memory.
        handles: Open files, pipes and sockets.
    """

    step: int
    megabytes: float
    handles: int


def run_tool(
    tool: str,
    *words: Any,
    log: Path,
    count: Callable[[], int] = lambda: 0,
    total: int = 0,
    **variables: str,
) -> list[Sample]:
    """Run ``tools/TOOL.py`` to its end, and look at it twice a second.

    Args:
        tool: Name of the tool.
        words: Its arguments.
        log: File for what it prints.
        count: How far it is. Samples are taken while this is neither 0 nor ``total``.
        total: Where it ends; 0 for no samples and no lines on stderr.
        variables: Of its environment, with those of this process.

    Raises:
        RuntimeError: If it fails, with the end of what it printed.
    """
    command = [sys.executable, TOOLS / f'{tool}.py', *words]
    with log.open('w') as file:
        env = {**os.environ, **variables}
        process = subprocess.Popen([*map(str, command)], stdout=file, stderr=file, env=env)
    samples: list[Sample] = []
    told = time.monotonic()
    while process.poll() is None:
        time.sleep(PAUSE)
        found: list[Sample] = []
        with suppress(OSError):  # it has ended
            found = _look(process.pid)
        step = count()  # after the look, which thus was not later than that
        if 0 < step < total:
            samples += [sample._replace(step=step) for sample in found]
        if total and time.monotonic() - told > SILENCE:
            told = time.monotonic()
            size = f', {samples[-1].megabytes:.0f} MB' if samples else ''
            print(f'{tool}: {step} of {total}{size}', file=sys.stderr)
    if process.returncode:
        raise RuntimeError(f'{tool} ends with {process.returncode}:\n{log.read_text()[-3000:]}')
    return samples


def run_script(words: list[str], log: Path, **variables: str) -> None:
    """Do what ``python WORDS`` does in this process, which was made for it; print into a file."""
    os.environ |= {'CUDA_VISIBLE_DEVICES': '', 'MMPATCH_KEEP_HEAP': '0', **variables}
    with log.open('w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    sys.argv = words
    sys.path.insert(0, str(TOOLS))
    runpy.run_path(words[0], run_name='__main__')


def make_data(folder: Path, train: int, val: int) -> Path:
    """Draw pictures to train on and to evaluate on into a folder, which is returned."""
    words = [sys.executable, TOOLS / 'make_toy_data.py', '--out', folder]
    words += ['--train', train, '--val', val]
    subprocess.run([*map(str, words)], check=True, capture_output=True)
    return folder


def _look(pid: int) -> list[Sample]:
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    sizes = [int(line.split()[1]) / 1024 for line in lines if line.startswith('VmRSS')]
    return [Sample(0, size, len(os.listdir(f'/proc/{pid}/fd'))) for size in sizes]


def read_log(work_dir: Path) -> list[dict[str, Any]]:
    """What a training has logged so far: a dict of each iteration, and of each evaluation."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = files[-1].read_text().splitlines() if files else []
    found = []
    for line in lines:
        with suppress(json.JSONDecodeError):  # the last one is being written
            found.append(json.loads(line))
    return found
