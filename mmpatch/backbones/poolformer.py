"""PoolFormer (https://arxiv.org/abs/2111.11418): the token mixer is average pooling."""

import re
from typing import Any, ClassVar

from torch import Tensor

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.checkpoint import METAFORMER_LAYOUT, Layout, Published, renumber
from mmpatch.registry import MODELS

SMALL_DIMS = (64, 128, 320, 512)
MEDIUM_DIMS = (96, 192, 384, 768)


def _drop_classifier_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the norm of mmpretrain's classifier: it is ``norm6``, like a dense model's last."""
    if 'norm4.weight' in tensors:
        return tensors
    return {re.sub(r'^norm6\.', 'norm.', key): tensor for key, tensor in tensors.items()}


# network.0, 2, 4, 6 are the stages, network.1, 3, 5 the downsampling before the next stage.
STAGE = r'network\.([0246])\.(\d+)'
AUTHORS_LAYOUT = Layout(
    'sail-sg/poolformer',
    r'network\.0\.0\..+',
    (
        (r'patch_embed\.proj\.(.+)', r'stem.conv.\1'),
        (r'network\.([135])\.proj\.(.+)', renumber(r'stages.{}.downsample.conv.\2', 2, 1)),
        (rf'{STAGE}\.layer_scale_([12])', renumber(r'stages.{}.blocks.\2.layer_scale\3.scale', 2)),
        (rf'{STAGE}\.((norm[12]|mlp\.fc[12])\..+)', renumber(r'stages.{}.blocks.\2.\3', 2)),
        (r'norm([0246])\.(.+)', renumber(r'out_norms.{}.\2', 2)),
        (r'(norm|head)\.(weight|bias)', None),
    ),
    prepare_classifier=_drop_classifier_norm,
)
STEM, BLOCK = r'poolformer\.encoder\.patch_embeddings', r'poolformer\.encoder\.block\.(\d)\.(\d+)'
HUGGING_FACE_LAYOUT = Layout(
    'Hugging Face PoolFormer',
    rf'{STEM}\.0\.projection\.weight',
    (
        (rf'{STEM}\.0\.projection\.(.+)', r'stem.conv.\1'),
        (rf'{STEM}\.([123])\.projection\.(.+)', r'stages.\1.downsample.conv.\2'),
        (rf'{BLOCK}\.before_norm\.(.+)', r'stages.\1.blocks.\2.norm1.\3'),
        (rf'{BLOCK}\.after_norm\.(.+)', r'stages.\1.blocks.\2.norm2.\3'),
        (rf'{BLOCK}\.output\.conv([12])\.(.+)', r'stages.\1.blocks.\2.mlp.fc\3.\4'),
        (rf'{BLOCK}\.layer_scale_([12])', r'stages.\1.blocks.\2.layer_scale\3.scale'),
        (r'(poolformer\.norm|classifier)\..+', None),
    ),
)


def _list_published() -> dict[str, Published]:
    sail = 'https://github.com/sail-sg/poolformer/releases/download/v1.0/poolformer_'
    mm = 'https://download.openmmlab.com/mmclassification/v0/poolformer/poolformer-'
    face = 'https://huggingface.co/'
    paper, mm_source = 'arXiv 2111.11418, Table 2', 'mmpretrain, configs/poolformer/metafile.yml'
    table = {}
    for arch, top1, mm_top1, mm_hash, timm_top1 in (
        ('s12', 77.2, 77.24, 'f8d83051', 77.238),
        ('s24', 80.3, 80.33, 'd7055904', 80.294),
        ('s36', 81.4, 81.43, 'd78ff3e8', 81.428),
        ('m36', 82.1, 82.14, 'c55e0949', 82.104),
        ('m48', 82.5, 82.51, '9378f3eb', 82.462),
    ):
        mm_url = f'{mm}{arch}_3rdparty_32xb128_in1k_20220414-{mm_hash}.pth'
        timm_url = f'{face}timm/poolformer_{arch}.sail_in1k/resolve/main/model.safetensors'
        face_url = f'{face}sail/poolformer_{arch}/resolve/main/pytorch_model.bin'
        for suffix, url, layout, accuracy, source in (
            ('', f'{sail}{arch}.pth.tar', AUTHORS_LAYOUT, top1, paper),
            ('_mmpretrain', mm_url, AUTHORS_LAYOUT, mm_top1, mm_source),
            ('_timm', timm_url, METAFORMER_LAYOUT, timm_top1, 'timm, results-imagenet.csv'),
            ('_hf', face_url, HUGGING_FACE_LAYOUT, top1, paper),
        ):
            table[f'poolformer-{arch}{suffix}_in1k'] = Published(
                url, {'arch': arch}, layout.name, 'Apache-2.0', accuracy, source
            )
    return table


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
        's12': {'depths': (2, 2, 6, 2), 'dims': SMALL_DIMS, 'layer_scale': 1e-5},
        's24': {'depths': (4, 4, 12, 4), 'dims': SMALL_DIMS, 'layer_scale': 1e-5},
        's36': {'depths': (6, 6, 18, 6), 'dims': SMALL_DIMS, 'layer_scale': 1e-6},
        'm36': {'depths': (6, 6, 18, 6), 'dims': MEDIUM_DIMS, 'layer_scale': 1e-6},
        'm48': {'depths': (8, 8, 24, 8), 'dims': MEDIUM_DIMS, 'layer_scale': 1e-6},
    }
    LAYOUTS: ClassVar[tuple[Layout, ...]] = (AUTHORS_LAYOUT, HUGGING_FACE_LAYOUT)
    PUBLISHED: ClassVar[dict[str, Published]] = _list_published()

    def __init__(self, arch: str = 's12', *, pool_size: int = 3, **kwargs: Any) -> None:
        settings = {
            'token_mixers': {'type': 'Pooling', 'pool_size': pool_size},
            'stem': {'kernel_size': 7, 'padding': 2},
            'downsample': {'kernel_size': 3, 'padding': 1},
            'norm_cfg': {'type': 'GN1'},
            **self.get_arch_settings(arch),
        }
        super().__init__(**(settings | kwargs))
