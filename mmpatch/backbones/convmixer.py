"""ConvMixer (https://arxiv.org/abs/2201.09792): depthwise convolutions on patches."""

from typing import Any, ClassVar

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.registry import MODELS


@MODELS.register_module()
class ConvMixer(MetaFormer):
    """ConvMixer, equal to the authors' code (``locuslab/convmixer``, ``convmixer.py``).

    Isotropic: one patch embedding, then equal blocks, tapped after every quarter of them.

    Args:
        arch: 'width/depth' as in the paper, with the patch, kernel and activation of the released
            code or, where no weights were released, of lists of the paper's variants; a suffix
            tells variants of one width and depth apart: '768/32-k3-p14', '1536/20-k3',
            '1536/20-p14'. '256/8' is the default of ``locuslab/convmixer-cifar10`` (0.594 M
            parameters), not the CIFAR-10 network of the paper (0.7 M).
        patch_size: Overrides the table.
        kernel_size: Overrides the table; even kernels are padded by one more at the end.
        residual: Whether the depthwise convolution has a residual.
        act: 'GELU' or 'ReLU'; overrides the table.
        norm_cfg: Norm of stem, blocks and outputs.
        kwargs: Further arguments of :class:`MetaFormer`.
    """

    #: depth, width, patch, kernel, activation
    TABLE: ClassVar[dict[str, tuple[int, int, int, int, str]]] = {
        '1536/20': (20, 1536, 7, 9, 'GELU'),
        '768/32': (32, 768, 7, 7, 'ReLU'),
        '1024/20': (20, 1024, 14, 9, 'GELU'),
        '1536/20-k3': (20, 1536, 7, 3, 'GELU'),
        '1536/20-p14': (20, 1536, 14, 9, 'GELU'),
        '1024/16': (16, 1024, 7, 9, 'GELU'),
        '1024/12': (12, 1024, 7, 8, 'GELU'),
        '768/32-k3-p14': (32, 768, 14, 3, 'ReLU'),
        '512/16': (16, 512, 7, 8, 'GELU'),
        '512/12': (12, 512, 7, 8, 'GELU'),
        '256/8': (8, 256, 2, 5, 'GELU'),
    }
    ARCHS: ClassVar[dict[str, dict[str, Any]]] = {
        name: {'depth': depth, 'width': width, 'patch': patch, 'kernel': kernel, 'act': act}
        for name, (depth, width, patch, kernel, act) in TABLE.items()
    }

    def __init__(
        self,
        arch: str = '768/32',
        *,
        patch_size: int | None = None,
        kernel_size: int | None = None,
        residual: bool = True,
        act: str | None = None,
        norm_cfg: Any = 'BN',
        **kwargs: Any,
    ) -> None:
        row = self.arch_settings(arch)
        act = act or row['act']
        settings = {
            'depths': (row['depth'] // 4,) * 4,
            'dims': row['width'],
            'strides': (patch_size or row['patch'], 1, 1, 1),
            'token_mixers': {
                'type': 'DepthwiseConv',
                'kernel_size': kernel_size or row['kernel'],
            },
            'stem': {'act': act, 'norm': norm_cfg},
            'block': 'ConvMixerBlock',
            'block_args': {'residual': residual},
            'act': act,
            'norm_cfg': norm_cfg,
        }
        super().__init__(**(settings | kwargs))
