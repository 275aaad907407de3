"""Backbones: MetaFormer, and the families built on it."""

from mmpatch.backbones.container import Container
from mmpatch.backbones.convmixer import ConvMixer
from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.backbones.poolformer import PoolFormer
from mmpatch.backbones.vision_transformer import VisionTransformer

__all__ = ['Container', 'ConvMixer', 'MetaFormer', 'PoolFormer', 'VisionTransformer']
