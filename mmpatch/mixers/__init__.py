"""Token mixers: what varies between the networks. One file each.

Those that are linear in their values have an affinity, after CONTAINER: mixing is
``project(affinity(x) @ values(x), size)``, with an affinity of shape (B, heads, N, N).
"""

from mmpatch.mixers.attention import Attention
from mmpatch.mixers.context_aggregation import ContextAggregation
from mmpatch.mixers.conv import DepthwiseConv
from mmpatch.mixers.identity import Identity
from mmpatch.mixers.pooling import Pooling
from mmpatch.mixers.random_mixing import RandomMixing
from mmpatch.mixers.spatial_mlp import SpatialMLP
from mmpatch.mixers.windowed import Windowed

__all__ = [
    'Attention',
    'ContextAggregation',
    'DepthwiseConv',
    'Identity',
    'Pooling',
    'RandomMixing',
    'SpatialMLP',
    'Windowed',
]
