"""Exact rewrites of trained backbones for inference."""

from mmpatch.inference.rewrite import deploy

__all__ = ['deploy']
