"""Names of networks: what lists them, and what they stand for."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch

from mmpatch.backbones.timm_backbone import SCHEME as TIMM_SCHEME
from mmpatch.checkpoint import list_families
from mmpatch.checkpoint.published import SCHEME, find_published
from mmpatch.checkpoint.save import CONFIG_FILE
from mmpatch.registry import check_types

#: More features than this are the blocks of an isotropic network, of which four are tapped.
MOST_STAGES = 8


def list_networks() -> dict[str, dict[str, Any]]:
    """Name, such as 'poolformer-s12' -> what a registry builds it from, of all families."""
    return {
        f'{getattr(family, "NAME", "") or family.__name__.lower()}-{arch.replace("/", "-")}': {
            'type': f'mmpatch.{family.__name__}',
            'arch': arch,
        }
        for family in list_families()
        for arch in family.ARCHS
    }


def find_network(name: str) -> dict[str, Any]:
    """Find what a registry builds a backbone from.

    Args:
        name: One of :func:`mmpatch.list_models`; 'mmpatch.FAMILY:ARCH'; ``mmpatch://NAME``, with
            its weights; ``timm://NAME`` for :class:`TimmBackbone` with all its stages, or, of an
            isotropic network, the last block of each quarter; or a folder that
            :func:`mmpatch.save_pretrained` wrote, with its weights.

    Raises:
        ValueError: If there is no such network, the message names the nearest; or if the config of
            a folder names what is no known class.
    """
    if name.startswith(SCHEME):
        entry = find_published(name)
        return {'type': f'mmpatch.{entry.family}', **entry.settings, 'init_cfg': _load(name)}
    if name.startswith(TIMM_SCHEME):
        return _find_timm(name.removeprefix(TIMM_SCHEME))
    file = Path(name, CONFIG_FILE)
    if file.is_file():
        found = json.loads(file.read_text())
        check_types(found, str(file))  # which may be a stranger's
        return {**found, 'init_cfg': _load(name)}
    table = list_networks()
    family, _, arch = name.removeprefix('mmpatch.').partition(':')
    table |= {f'{x["type"]}:{x["arch"]}': x for x in table.values()} if arch else {}
    key = f'mmpatch.{family}:{arch}' if arch else name.replace('/', '-')
    if key in table:
        return table[key]
    near = ', '.join(get_close_matches(key, table)) or 'none is similar'
    raise ValueError(f'no network {name!r}; nearest: {near}. mmpatch.list_models() lists all')


def _load(checkpoint: str) -> dict[str, str]:
    return {'type': 'Pretrained', 'checkpoint': checkpoint}


def _find_timm(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {'type': 'mmpatch.TimmBackbone', 'model_name': name}
    if not timm.is_model(name):
        return {**found, 'out_indices': (0,)}  # the class names the nearest
    with torch.device('meta'):
        count = len(getattr(timm.create_model(name), 'feature_info', None) or (0,))
    taps = range(count) if count <= MOST_STAGES else (count * i // 4 - 1 for i in range(1, 5))
    return {**found, 'out_indices': tuple(taps)}
