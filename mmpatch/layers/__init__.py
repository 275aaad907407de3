"""Layers other than mixers. Besides ``TimmBackbone``, only this folder imports timm."""

from timm.layers import DropPath, resample_patch_embed

from mmpatch.layers.mlp import Mlp
from mmpatch.layers.norm import GroupNorm, GroupNorm1, LayerNorm2d, LayerScale, make_norm_factory
from mmpatch.layers.patch_embed import PatchEmbed
from mmpatch.layers.position import PositionEmbed, is_grid
from mmpatch.layers.resnet_stem import ResNetStem

__all__ = [
    'DropPath',
    'GroupNorm',
    'GroupNorm1',
    'LayerNorm2d',
    'LayerScale',
    'Mlp',
    'PatchEmbed',
    'PositionEmbed',
    'ResNetStem',
    'is_grid',
    'make_norm_factory',
    'resample_patch_embed',
]
