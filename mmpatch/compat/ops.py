"""Provides ``mmcv._ext``, the compiled half of mmcv, where it is missing.

``mmcv-lite`` ships ``mmcv.ops`` without it, and compiled wheels exist for no current torch.
Most heads of mmdet and mmseg, deformable attention and convolutions among them, need only what
:mod:`mmpatch.compat.stand_in` has.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from mmengine.logging import print_log

NAME = 'mmcv._ext'
STAND_IN = Path(__file__).with_name('stand_in.py')


class StandInFinder(MetaPathFinder):
    """Finds ``mmcv._ext``: the compiled one if it can be loaded, the stand-in otherwise."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for ``mmcv._ext`` only."""
        if fullname != NAME:
            return None
        reason = 'mmcv has no compiled ops'
        if compiled := PathFinder.find_spec(fullname, path):
            try:
                importlib.util.module_from_spec(compiled)
                return compiled
            except ImportError as error:  # built for another torch, say
                reason = f'{compiled.origin} cannot be loaded ({error})'
        print_log(f'mmpatch: {reason}; torch and torchvision stand in for them', logger='current')
        return importlib.util.spec_from_file_location(fullname, STAND_IN)


def install() -> None:
    """Put the finder before all others, once."""
    if not any(isinstance(finder, StandInFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, StandInFinder())


def describe() -> str:
    """Say whose ops ``mmcv._ext`` has here, and which, if they are the stand-in's."""
    found = importlib.import_module(NAME)
    if found.__file__ != str(STAND_IN):
        return f'compiled, {found.__file__}'
    return f'torch and torchvision stand in for {", ".join(found.list_ops())}'
