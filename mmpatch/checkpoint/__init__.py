"""Published weights: where they lie, how their keys are named, and loading them strictly."""

from mmpatch.checkpoint.load import load_pretrained
from mmpatch.checkpoint.match import Report, rename_in_place
from mmpatch.checkpoint.published import PUBLISHED, Published

__all__ = ['PUBLISHED', 'Published', 'Report', 'load_pretrained', 'rename_in_place']
