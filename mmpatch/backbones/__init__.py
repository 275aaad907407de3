"""Backbones: one container, and thin families that fill it."""

from mmpatch.backbones.container import Container
from mmpatch.backbones.convmixer import ConvMixer
from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.backbones.poolformer import PoolFormer

__all__ = ['Container', 'ConvMixer', 'MetaFormer', 'PoolFormer']
