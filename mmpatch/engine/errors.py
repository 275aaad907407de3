"""One line for a mistake of the user, and a traceback for a fault of the code."""

import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from mmengine import registry

from mmpatch.compat import ops

VARIABLE = 'MMPATCH_TRACEBACK'
MAX_NAMES = 5
#: What a machine can run out of, by the text of the error, and what helps.
SHORTAGES = {
    r'out of memory|DefaultCPUAllocator: |Unable to allocate': 'out of memory: lower '
    'train_dataloader.batch_size or the scale of the pictures, recompute activations with '
    'model.backbone.with_cp=True, or pass --amp; --resume continues a training',
    r'DataLoader worker \(pid': 'a process that loads data was killed, most often because memory '
    'ran out: lower train_dataloader.num_workers; --resume continues a training',
    r'No space left|File too large|Disk quota': 'the disk is full: free space, or name another '
    '--work-dir; --resume continues a training',
}


class SampleError(RuntimeError):
    """A sample that cannot be read. torch hands this on from the processes that load data."""


def join_first(names: Sequence[str]) -> str:
    """The first names, and dots if there are more."""
    return ', '.join(names[:MAX_NAMES]) + (', ...' if len(names) > MAX_NAMES else '')


@contextmanager
def report_errors() -> Iterator[None]:
    """End the program with ``error: ...`` in one line, and status 1, at a mistake of its user.

    Mistakes are what mmpatch raises on purpose, files that cannot be read or written, and settings
    with which a class of MMEngine's registries cannot be built. Too little memory or disk is
    reported alike. Others keep their traceback, as all do with ``MMPATCH_TRACEBACK=1``.

    Raises:
        SystemExit: At a mistake.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit('interrupted')
    except Exception as error:
        message = None if os.environ.get(VARIABLE) == '1' else describe_mistake(error)
        if message is None:
            raise
        sys.exit(f'error: {message}')


@contextmanager
def blame_config(path: str, is_running: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Put any failure down to a config, with a ValueError of one line, unless it runs already."""
    try:
        yield
    except Exception as error:
        if describe_mistake(error) is not None or is_running():
            raise
        names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
        setting = 'env_cfg (mp_cfg, dist_cfg): ' if 'setup_env' in names else ''
        raise ValueError(
            f'{path} cannot be run: {setting}{type(error).__name__}: {_read_message(error)} (in '
            f'{names[-1]}). {VARIABLE}=1 shows where'
        ) from error


def describe_mistake(error: BaseException) -> str | None:
    """What an exception tells a user, in one line; None if it is no mistake of the user."""
    text = _read_message(error)
    if isinstance(error, SampleError):  # from another process, it comes with a traceback as text
        return text.rpartition(f'{SampleError.__name__}: ')[2]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames:
        return None
    module = frames[-1].f_globals.get('__name__', '')
    is_raised = (traceback.extract_tb(error.__traceback__)[-1].line or '').startswith('raise ')
    is_own = module in ('__main__', ops.NAME) or f'{module}.'.startswith('mmpatch.')
    if is_raised and is_own and text:
        return text
    for pattern, remedy in SHORTAGES.items():
        if isinstance(error, RuntimeError | MemoryError | OSError) and re.search(pattern, text):
            return f'{remedy} ({textwrap.shorten(text, 200)})'
    if isinstance(error, OSError):
        return text
    if is_raised and module.startswith('mmengine.registry'):
        missing = re.match(r'(\S+) is not in the \S+::(.+?) registry', text)
        return suggest_type(*missing.groups()) if missing else text
    built = [frame for frame in frames if frame.f_code.co_name == 'build_from_cfg']
    cfg = built[-1].f_locals['cfg'] if built else None
    # not cfg.get, which imports what a config of Python names, and may be what fails
    if isinstance(cfg, dict) and (kind := dict.get(cfg, 'type')):
        return (
            f'type={str(kind)!r} cannot be built with its settings: {type(error).__name__}: '
            f'{text}. Correct them; if an inherited config brings one along, add _delete_=True to '
            f'the dict that has the type. {VARIABLE}=1 shows where'
        )
    return None


def shorten_error(error: BaseException) -> str:
    """Type and message of an exception in one line, with the line of the file that was run."""
    if isinstance(error, SyntaxError):
        return f'syntax error in line {error.lineno}, {(error.text or "").strip()!r}: {error.msg}'
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name == '<module>']
    place = f' (line {frames[-1].lineno} of {frames[-1].filename})' if frames else ''
    return f'{type(error).__name__}: {_read_message(error)}{place}'


def _read_message(error: BaseException) -> str:
    """Message of an exception in one line; a KeyError puts its own into quotes."""
    is_quoted = isinstance(error, KeyError) and error.args
    return ' '.join(str(error.args[0] if is_quoted else error).split())


def suggest_type(given: str, kind: str) -> str:
    """Say that a type is not in the registries of a kind ('model', say), and which are near."""
    names: dict[str, str] = {}  # with scope -> without
    for root in vars(registry).values():
        if isinstance(root, registry.Registry) and root.name == kind:
            for scoped, prefix in [(root, ''), *((c, f'{s}.') for s, c in root.children.items())]:
                scoped.import_from_location()
                names |= {prefix + name: name.lower() for name in scoped.module_dict}
    near = get_close_matches(given.split('.')[-1].lower(), set(names.values()), 3, 0.75)
    full = [name for part in near for name, bare in names.items() if bare == part]
    nearest = ', '.join(full[:3]) or 'none is similar'
    return f'type={given!r} is no {kind} that is registered; nearest: {nearest}'
