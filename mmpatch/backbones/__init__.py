"""Backbones: MetaFormer, the families built on it, and timm's networks."""

from mmpatch.backbones.container import Container
from mmpatch.backbones.convmixer import ConvMixer
from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.backbones.poolformer import PoolFormer
from mmpatch.backbones.timm_backbone import TimmBackbone
from mmpatch.backbones.vision_transformer import VisionTransformer

__all__ = [
    'Container',
    'ConvMixer',
    'MetaFormer',
    'PoolFormer',
    'TimmBackbone',
    'VisionTransformer',
]
