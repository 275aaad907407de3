"""Published weights: where they are, how their tensors are named, and loading them strictly."""

from typing import Any

from mmpatch.checkpoint.layout import METAFORMER_LAYOUT, Layout, renumber
from mmpatch.checkpoint.load import load_init_cfg, load_pretrained
from mmpatch.checkpoint.match import Report, rename_in_place
from mmpatch.checkpoint.published import HALF_STATS, Published, list_families, list_published
from mmpatch.checkpoint.whole import load_whole

__all__ = [
    'HALF_STATS',
    'METAFORMER_LAYOUT',
    'PUBLISHED',
    'Layout',
    'Published',
    'Report',
    'list_families',
    'load_init_cfg',
    'load_pretrained',
    'load_whole',
    'rename_in_place',
    'renumber',
]

#: Name behind ``mmpatch://`` -> file, of all families that are registered.
PUBLISHED: dict[str, Published]


def __getattr__(name: str) -> Any:
    if name == 'PUBLISHED':  # not before it is asked for: it imports every family
        return list_published()
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
