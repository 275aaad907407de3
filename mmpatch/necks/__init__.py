"""Necks: feature pyramids from the outputs of isotropic backbones."""

from mmpatch.necks.simple_feature_pyramid import SimpleFeaturePyramid, TapPyramid

__all__ = ['SimpleFeaturePyramid', 'TapPyramid']
