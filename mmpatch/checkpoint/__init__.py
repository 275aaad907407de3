"""Published weights: where they lie, how their keys are named, and loading them strictly."""

from mmpatch.checkpoint.load import load_pretrained
from mmpatch.checkpoint.published import PUBLISHED

__all__ = ['PUBLISHED', 'load_pretrained']
