"""Backbones: one container, and thin families that fill it."""

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.backbones.poolformer import PoolFormer

__all__ = ['MetaFormer', 'PoolFormer']
