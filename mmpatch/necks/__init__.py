"""Necks: feature pyramids from the outputs of isotropic backbones."""

from mmpatch.necks.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ['SimpleFeaturePyramid']
