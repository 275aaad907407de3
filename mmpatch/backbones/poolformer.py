"""PoolFormer (https://arxiv.org/abs/2111.11418): the token mixer is average pooling."""

from typing import Any, ClassVar

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.registry import MODELS

SMALL = (64, 128, 320, 512)
MEDIUM = (96, 192, 384, 768)


@MODELS.register_module()
class PoolFormer(MetaFormer):
    """PoolFormer, equal to the authors' code (``sail-sg/poolformer``, ``models/poolformer.py``).

    The group norms average over the whole map, padding included: predictions depend on how a batch
    is padded, as they do in the authors' code.

    Args:
        arch: 's12', 's24', 's36', 'm36' or 'm48' (Table 1 of the paper).
        pool_size: Side of the pooling window.
        kwargs: Arguments of :class:`MetaFormer`, which override the table, such as ``dims`` or
            ``token_mixers`` for hybrids.
    """

    ARCHS: ClassVar[dict[str, dict[str, Any]]] = {
        's12': {'depths': (2, 2, 6, 2), 'dims': SMALL, 'layer_scale': 1e-5},
        's24': {'depths': (4, 4, 12, 4), 'dims': SMALL, 'layer_scale': 1e-5},
        's36': {'depths': (6, 6, 18, 6), 'dims': SMALL, 'layer_scale': 1e-6},
        'm36': {'depths': (6, 6, 18, 6), 'dims': MEDIUM, 'layer_scale': 1e-6},
        'm48': {'depths': (8, 8, 24, 8), 'dims': MEDIUM, 'layer_scale': 1e-6},
    }

    def __init__(self, arch: str = 's12', *, pool_size: int = 3, **kwargs: Any) -> None:
        settings = {
            'token_mixers': {'type': 'Pooling', 'pool_size': pool_size},
            'stem': {'kernel_size': 7, 'padding': 2},
            'downsample': {'kernel_size': 3, 'padding': 1},
            'norm_cfg': {'type': 'GN1'},
            **self.arch_settings(arch),
        }
        super().__init__(**(settings | kwargs))
