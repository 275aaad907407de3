"""CONTAINER (https://arxiv.org/abs/2106.01401): the affinity is learned, dynamic, or both."""

from typing import Any, ClassVar

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.checkpoint import Layout, Published, renumber
from mmpatch.layers import Mlp
from mmpatch.registry import MODELS

BLOCK = r'blocks([1-4])\.(\d+)'
AUTHORS_LAYOUT = Layout(
    'allenai/container',
    r'patch_embed1\.proj\.weight',
    (
        (r'patch_embed1\.proj\.(.+)', r'stem.conv.\1'),
        (r'patch_embed1\.norm\.(.+)', r'stem.norm.\1'),
        *(
            (theirs, renumber(f'stages.{{}}.{ours}', 1, -1))
            for theirs, ours in (
                (r'patch_embed([234])\.proj\.(.+)', r'downsample.conv.\2'),
                (r'patch_embed([234])\.norm\.(.+)', r'downsample.norm.\2'),
                (rf'{BLOCK}\.pos_embed\.(.+)', r'blocks.\2.pos_embed.conv.\3'),
                (rf'{BLOCK}\.conv1\.(.+)', r'blocks.\2.token_mixer.qkv.\3'),
                (rf'{BLOCK}\.(?:attn|conv)\.(.+)', r'blocks.\2.token_mixer.static.conv.\3'),
                (rf'{BLOCK}\.conv2\.(.+)', r'blocks.\2.token_mixer.proj.\3'),
                (rf'{BLOCK}\.sa_weight', r'blocks.\2.token_mixer.gate'),
                (rf'{BLOCK}\.((?:norm[12]|mlp\.fc[12])\..+)', r'blocks.\2.\3'),
            )
        ),
        (r'(norm|head)\..+', None),
    ),
)
STATIC_AFFINITY = {'type': 'ContextAggregation', 'dynamic': False, 'static': 'conv'}
MIXED_AFFINITY = {'type': 'ContextAggregation', 'num_heads': 16}
PYRAMID = {'depths': (3, 4, 8, 3), 'dims': (64, 128, 320, 512)}
LIGHT = {**PYRAMID, 'token_mixers': (*(STATIC_AFFINITY,) * 3, MIXED_AFFINITY)}


@MODELS.register_module()
class Container(MetaFormer):
    """CONTAINER, equal to the authors' code (``allenai/container``, ``models.py``).

    Batch norms, a residual depthwise position convolution in every block, and an affinity by
    convolution in the first stages, by convolution and self-attention in the last.

    Args:
        arch: 'light' is the released ``container_v1_light``. 'light-paper' and 'base' are derived:
            the same blocks with MLP ratio 4 in every stage, which meets the size that the paper
            gives for CONTAINER-Light, and, with self-attention in all stages, for CONTAINER.
            'paper' has the depths 2-3-8-3, widths 128-256-320-512 and patches 4-4-2-2 (strides 4,
            16, 32 and 64) that a review of the paper prints, with both affinities in all stages; no
            released code builds it, and its MLP ratio 4 is an assumption.
        kwargs: Arguments of :class:`MetaFormer`, which override the table, such as ``token_mixers``
            for other affinities and gates (:class:`mmpatch.mixers.ContextAggregation`).
    """

    ARCHS: ClassVar[dict[str, dict[str, Any]]] = {
        'light': {**LIGHT, 'mlp_ratios': (8, 8, 4, 4)},
        'light-paper': LIGHT,
        'base': {**PYRAMID, 'token_mixers': MIXED_AFFINITY},
        'paper': {
            'depths': (2, 3, 8, 3),
            'dims': (128, 256, 320, 512),
            'strides': (4, 4, 2, 2),
            'token_mixers': MIXED_AFFINITY,
        },
    }
    LAYOUTS: ClassVar[tuple[Layout, ...]] = (AUTHORS_LAYOUT,)
    PUBLISHED: ClassVar[dict[str, Published]] = {
        'container-light_in1k': Published(
            'https://drive.google.com/file/d/1WMOWoxTX7AQDCbfMYh7naqIHube3K85A',
            {'arch': 'light'},
            AUTHORS_LAYOUT.name,
            'Apache-2.0',  # of the repository, which names no other for the weights
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
            **self.get_arch_settings(arch),
        }
        super().__init__(**(settings | kwargs))
        for module in self.modules():
            if isinstance(module, Mlp):  # unlike PoolFormer's, they start as torch's convolutions
                module.fc1.reset_parameters()
                module.fc2.reset_parameters()
