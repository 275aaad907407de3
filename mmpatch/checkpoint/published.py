"""Published weight files, which each family lists in its ``PUBLISHED``."""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from mmpatch.registry import MODELS

#: Mean and deviation of the pixels, 0 to 255, in training: ImageNet's, and those of Google's ViTs.
IMAGENET_STATS = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HALF_STATS = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))

SCHEME = 'mmpatch://'


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        url: Where the publisher keeps it.
        settings: Arguments of the family with which it fits without resampling.
        layout: Name of its :class:`mmpatch.checkpoint.Layout`.
        licence: SPDX identifier under which it is published; None if the publisher states none.
        top1: ImageNet-1k accuracy in percent; None for other networks or where none is reported.
        source: Where the accuracy, or else the file, is reported.
        normalisation: Mean and deviation of the RGB pixels, 0 to 255.
        direct: Whether the URL answers with the file itself.
        family: Class of the backbone that it fits; :func:`list_published` fills it in.
    """

    url: str
    settings: dict[str, Any]
    layout: str
    licence: str | None
    top1: float | None
    source: str
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET_STATS
    direct: bool = True
    family: str = ''

    @property
    def sha256(self) -> str | None:
        """First digits of the file's SHA-256, if its name has them, as torch's hub expects."""
        match = re.search(r'-([0-9a-f]{8,})\.', self.url)
        return match and match[1]


def list_families() -> list[Any]:
    """Registered backbones with named sizes (``ARCHS``), own ones of other projects included."""
    MODELS.import_from_location()
    return [cls for cls in MODELS.module_dict.values() if getattr(cls, 'ARCHS', None)]


def list_published() -> dict[str, Published]:
    """Name behind ``mmpatch://`` -> file, of all families."""
    return {
        name: replace(entry, family=family.__name__)
        for family in list_families()
        for name, entry in vars(family).get('PUBLISHED', {}).items()
    }


def find_published(source: str) -> Published:
    """The file of a name with ``mmpatch://``; ValueError if there is no such name or no link."""
    table, name = list_published(), source.removeprefix(SCHEME)
    if name not in table:
        near = ', '.join(get_close_matches(name, table, cutoff=0.3)) or 'none is similar'
        lists = f'mmpatch.checkpoint.PUBLISHED lists all {len(table)}'
        raise ValueError(f'{source}: no published file of that name; nearest: {near}. {lists}')
    if not table[name].direct:
        remedy = f'fetch {table[name].url} with a browser and give the path of the file'
        raise ValueError(f'{source}: its publisher offers no direct link; {remedy}')
    return table[name]
