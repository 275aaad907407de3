"""CONTAINER (https://arxiv.org/abs/2106.01401): the affinity is learned, dynamic, or both."""

from typing import Any, ClassVar

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.registry import MODELS

STATIC = {'type': 'ContextAggregation', 'dynamic': False, 'static': 'conv'}
BOTH = {'type': 'ContextAggregation', 'num_heads': 16}
PYRAMID = {'depths': (3, 4, 8, 3), 'dims': (64, 128, 320, 512)}


@MODELS.register_module()
class Container(MetaFormer):
    """CONTAINER, equal to the authors' code (``allenai/container``, ``models.py``).

    Batch norms, a residual depthwise position convolution in every block, and an affinity by
    convolution in the first stages, by convolution and self-attention in the last.

    Args:
        arch: 'light' is the released ``container_v1_light``. 'light-paper' and 'base' are derived:
            the same blocks with MLP ratio 4 in every stage, which meets the size that the paper
            gives for CONTAINER-Light, and, with self-attention in all stages, for CONTAINER.
            A review of the paper prints depths 2-3-8-3 and widths 128-256-320-512, which no
            released code builds.
        kwargs: Arguments of :class:`MetaFormer`, which override the table, such as ``token_mixers``
            for other affinities and gates (:class:`mmpatch.mixers.ContextAggregation`).
    """

    ARCHS: ClassVar[dict[str, dict[str, Any]]] = {
        'light': {
            **PYRAMID,
            'mlp_ratios': (8, 8, 4, 4),
            'token_mixers': (STATIC, STATIC, STATIC, BOTH),
        },
        'light-paper': {**PYRAMID, 'token_mixers': (STATIC, STATIC, STATIC, BOTH)},
        'base': {**PYRAMID, 'token_mixers': BOTH},
    }

    def __init__(self, arch: str = 'light', **kwargs: Any) -> None:
        norm = {'type': 'LN2d', 'eps': 1e-5}
        settings = {
            'stem': {'norm': norm},
            'downsample': {'norm': norm},
            'norm_cfg': {'type': 'BN'},
            'pos_embed': {'type': 'DepthwiseConv', 'kernel_size': 3},
            **self.arch_settings(arch),
        }
        super().__init__(**(settings | kwargs))
