"""What a check of reliability found, as a row of a table."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from typing import Any


@dataclass(frozen=True)
class Row:
    """One promise, and how often it was put to the test.

    Attributes:
        promise: What must hold, as a sentence.
        fault: What was done to break it.
        tried: How often it was done.
        held: How often the promise held.
        result: How the tries ended, in a few words or numbers.
    """

    promise: str
    fault: str
    tried: int
    held: int
    result: str


def to_dict(part: str, form: str, row: Row, seconds: float) -> dict[str, Any]:
    """A row as JSON holds it: its fields, the part that it belongs to, and how it was run."""
    versions = {name: version(name) for name in ('torch', 'mmengine', 'mmdet', 'numpy')}
    run = {'form': form, 'date': date.today().isoformat(), 'seconds': round(seconds, 1)}
    return {'part': part, **asdict(row), **run, 'versions': versions}


def make_table(rows: Iterable[dict[str, Any]]) -> str:
    """A Markdown table of rows as :func:`to_dict` makes them."""
    lines = ['| promise | what was done | tried | held | result | run |', '|---' * 6 + '|']
    for row in rows:
        cells = [row[key] for key in ('promise', 'fault', 'tried', 'held', 'result')]
        cells.append(f'{row["form"]}, {row["date"]}')
        lines.append(f'| {" | ".join(str(cell).replace("|", "/") for cell in cells)} |')
    return '\n'.join(lines)
