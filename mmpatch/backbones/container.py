"""CONTAINER (https://arxiv.org/abs/2106.01401): the affinity is learned, dynamic, or both."""

from typing import Any, ClassVar

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.checkpoint import Layout, Published, renumber
from mmpatch.registry import MODELS

AUTHORS_LAYOUT = Layout(
    'allenai/container',
    r'patch_embed1\.proj\.weight',
    (
        (r'patch_embed1\.proj\.(.+)', r'stem.conv.\1'),
        (r'patch_embed1\.norm\.(.+)', r'stem.norm.\1'),
        (r'patch_embed([234])\.proj\.(.+)', renumber(r'stages.{}.downsample.conv.\2', 1, -1)),
        (r'patch_embed([234])\.norm\.(.+)', renumber(r'stages.{}.downsample.norm.\2', 1, -1)),
        *(
            (rf'blocks([1-4])\.(\d+)\.{theirs}', renumber(rf'stages.{{}}.blocks.\2.{ours}', 1, -1))
            for theirs, ours in (
                (r'pos_embed\.(.+)', r'pos_embed.conv.\3'),
                (r'conv1\.(.+)', r'token_mixer.qkv.\3'),
                (r'(?:attn|conv)\.(.+)', r'token_mixer.static.conv.\3'),
                (r'conv2\.(.+)', r'token_mixer.proj.\3'),
                (r'sa_weight', r'token_mixer.gate'),
                (r'((?:norm[12]|mlp\.fc[12])\..+)', r'\3'),
            )
        ),
        (r'(norm|head)\..+', None),
    ),
)
STATIC_AFFINITY = {'type': 'ContextAggregation', 'dynamic': False, 'static': 'conv'}
MIXED_AFFINITY = {'type': 'ContextAggregation', 'num_heads': 16}
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
            'token_mixers': (STATIC_AFFINITY, STATIC_AFFINITY, STATIC_AFFINITY, MIXED_AFFINITY),
        },
        'light-paper': {
            **PYRAMID,
            'token_mixers': (STATIC_AFFINITY, STATIC_AFFINITY, STATIC_AFFINITY, MIXED_AFFINITY),
        },
        'base': {**PYRAMID, 'token_mixers': MIXED_AFFINITY},
    }
    LAYOUTS: ClassVar[tuple[Layout, ...]] = (AUTHORS_LAYOUT,)
    PUBLISHED: ClassVar[dict[str, Published]] = {
        'container-light_in1k': Published(
            'https://drive.google.com/file/d/1WMOWoxTX7AQDCbfMYh7naqIHube3K85A',
            {'arch': 'light'},
            AUTHORS_LAYOUT.name,
            None,
            82.3,
            'README of allenai/container',
            direct=False,
        )
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
