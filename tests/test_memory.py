"""Freed memory is kept by the tools, and by them alone."""

import platform
import subprocess
import sys

import pytest

from support import child_environment

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc'),
]
FAULTS = """
import resource, torch
for step in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(40 * 2**18)  # 40 MB, or 10,240 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = 'from mmpatch.engine.memory import keep_freed_memory as keep; print(keep())\n'


def run(code, **variables):
    command = [sys.executable, '-c', code]
    env = {**child_environment(), 'CUDA_VISIBLE_DEVICES': '', **variables}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_a_repeated_allocation_costs_no_page_faults():
    asked, faults = run(KEEP + FAULTS)
    assert asked == 'True' and int(faults) < 100


@pytest.mark.parametrize(
    ('code', 'variables'),
    [(KEEP, {'MMPATCH_KEEP_HEAP': '0'}), ('import mmpatch; print(False)\n', {})],
)
def test_the_variable_and_a_plain_import_leave_glibc_as_it_is(code, variables):
    asked, faults = run(code + FAULTS, **variables)
    assert asked == 'False' and int(faults) > 9000
