"""Running the project's tools as a user would."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pretrained(path, **kwargs):
    """What a config says to load a file."""
    return {'type': 'Pretrained', 'checkpoint': str(path), **kwargs}


def relative_error(a, b):
    """||a - b|| / ||b||, in float32."""
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def child_environment():
    """Environment of a child process: one thread, and the package as the tests see it."""
    return {**os.environ, 'OMP_NUM_THREADS': '1'}


def call_tool(monkeypatch, script, *arguments):
    """Run a script of the project in this process, which has imported already what takes time.

    For scripts that build no runner of MMEngine, which would leave state behind.
    """
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'argv', [script, *map(str, arguments)])
        patch.setenv('LOCAL_RANK', '0')
        patch.setenv('MMPATCH_KEEP_HEAP', '0')
        patch.chdir(ROOT)
        runpy.run_path(script, run_name='__main__')


def run_tool(*command, cwd=ROOT, check=True, env=None, **kwargs):
    """Run a script of the project as a user would; its output is in the result."""
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**child_environment(), **(env or {})},
        capture_output=True,
        text=True,
        **kwargs,
    )
    if check and result.returncode:
        raise AssertionError(result.stdout[-2000:] + result.stderr[-4000:])
    return result
