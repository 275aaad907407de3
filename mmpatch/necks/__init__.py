"""Adapters from the maps of a backbone to the levels that heads expect."""

from mmpatch.necks.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ['SimpleFeaturePyramid']
