"""Token mixers: what varies between the networks. One file each."""

from mmpatch.mixers.identity import Identity
from mmpatch.mixers.pooling import Pooling

__all__ = ['Identity', 'Pooling']
