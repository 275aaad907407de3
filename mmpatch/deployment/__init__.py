"""From a trained network to one that is faster to run and equal in its outputs."""

from mmpatch.deployment.fold import deploy

__all__ = ['deploy']
