"""Layers that are no mixers. This is the only folder that imports timm."""

from timm.layers import DropPath

from mmpatch.layers.mlp import Mlp
from mmpatch.layers.norm import GroupNorm1, LayerNorm2d, LayerScale, norm_factory
from mmpatch.layers.patch_embed import PatchEmbed

__all__ = [
    'DropPath',
    'GroupNorm1',
    'LayerNorm2d',
    'LayerScale',
    'Mlp',
    'PatchEmbed',
    'norm_factory',
]
