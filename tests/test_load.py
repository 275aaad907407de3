"""The check of long runs, on a process that leaks."""

import pytest

from support import ROOT

LEAK = """
import sys, time
from pathlib import Path
kept = []
for step in range(1, 41):
    if step > 20 and sys.argv[2] == 'leaking':
        kept += [bytearray(b'x' * 2**20), *(open(__file__) for _ in range(10))]
    Path(sys.argv[1]).write_text(str(step))
    time.sleep(0.1)
"""


@pytest.mark.process
@pytest.mark.parametrize('kind', ['leaking', 'tight'])
def test_leaks_are_found(kind, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    from reliability import child, load

    file = tmp_path / 'step'
    (tmp_path / 'tool.py').write_text(LEAK)

    def count():
        return int(file.read_text() or 0) if file.exists() else 0

    tool, log = tmp_path / 'tool', tmp_path / 'log'
    samples = child.run_tool(str(tool), file, kind, log=log, count=count, total=40)
    for make_row in (load.make_memory_row, load.make_handle_row):
        row = make_row(samples, 'a run', '40 steps', 20)
        assert row.tried > 2
        assert (row.held < row.tried / 2) == (kind == 'leaking'), row


@pytest.mark.parametrize(('leak', 'held'), [(0, 36), (0.01, 4)])
def test_large_batches_are_no_leak(leak, held, monkeypatch):
    """Memory that 2,000 iterations need only at their peaks, and 0.5 MB more in each epoch."""
    monkeypatch.syspath_prepend(ROOT / 'tools')
    from reliability import child, load

    sizes = [100 + 7 * step % 50 + leak * step for step in range(2000)]
    samples = [child.Sample(step + 1, size, 4) for step, size in enumerate(sizes)]
    row = load.make_memory_row(load.find_least(samples), 'memory in use', '', 200)
    assert (row.tried, row.held) == (36, held), row


def test_a_tool_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    from reliability import child

    (tmp_path / 'tool.py').write_text("raise SystemExit('the reason')")
    with pytest.raises(RuntimeError, match=r'tool ends with 1:\nthe reason'):
        child.run_tool(str(tmp_path / 'tool'), log=tmp_path / 'log')
