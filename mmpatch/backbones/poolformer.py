"""PoolFormer (https://arxiv.org/abs/2111.11418): the token mixer is average pooling."""

import re
from typing import Any, ClassVar

from torch import Tensor

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.checkpoint import METAFORMER_LAYOUT, Layout, Published, renumber
from mmpatch.checkpoint.layout import Grid
from mmpatch.registry import MODELS

SMALL_DIMS = (64, 128, 320, 512)
MEDIUM_DIMS = (96, 192, 384, 768)
PAPER = 'arXiv 2111.11418, Table '


def _drop_classifier_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the norm of mmpretrain's classifier: it is ``norm6``, like a dense model's last."""
    if 'norm4.weight' in tensors:
        return tensors
    return {re.sub(r'^norm6\.', 'norm.', key): tensor for key, tensor in tensors.items()}


def _number_stages(tensors: dict[str, Tensor], grid: Grid = None) -> dict[str, Tensor]:
    """Number the stages of a hybrid as those of others: its position embedding counts as one."""
    places = [m for key in tensors if (m := re.fullmatch(r'network\.(\d)\.pos_embed', key))]
    if not places:
        return tensors
    first = int(places[0][1])

    def shift(match: re.Match[str]) -> str:
        return f'network.{int(match[1]) - (int(match[1]) > first)}.'

    return {re.sub(r'^network\.(\d)\.', shift, key): tensor for key, tensor in tensors.items()}


# network.0, 2, 4, 6 are the stages, network.1, 3, 5 the downsampling before the next stage.
STAGE, MIXER = r'network\.([0246])\.(\d+)', 'token_mixer'
PARTS = rf'(?:norm[12]|mlp\.fc[12]|{MIXER}\.qkv|{MIXER}\.proj)'
AUTHORS_LAYOUT = Layout(
    'sail-sg/poolformer',
    r'network\.0\.0\..+',
    (
        (r'patch_embed\.proj\.(.+)', r'stem.conv.\1'),
        (r'network\.([135])\.proj\.(.+)', renumber(r'stages.{}.downsample.conv.\2', 2, 1)),
        (rf'{STAGE}\.layer_scale_([12])', renumber(r'stages.{}.blocks.\2.layer_scale\3.scale', 2)),
        (rf'{STAGE}\.{MIXER}\.fc\.(.+)', renumber(rf'stages.{{}}.blocks.\2.{MIXER}.fc1.\3', 2)),
        (rf'{STAGE}\.({PARTS}\..+)', renumber(r'stages.{}.blocks.\2.\3', 2)),
        (r'network\.([46])\.pos_embed', renumber('stages.{}.positions.pos_embed', 2)),
        (r'norm([0246])\.(.+)', renumber(r'out_norms.{}.\2', 2)),
        (r'(norm|head)\.(weight|bias)', None),
    ),
    _number_stages,
    _drop_classifier_norm,
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
    sail = 'https://github.com/sail-sg/poolformer/releases/download/v1.0/'
    mm = 'https://download.openmmlab.com/mmclassification/v0/poolformer/poolformer-'
    face = 'https://huggingface.co/'
    paper, mm_source = f'{PAPER}2', 'mmpretrain, configs/poolformer/metafile.yml'
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
            ('', f'{sail}poolformer_{arch}.pth.tar', AUTHORS_LAYOUT, top1, paper),
            ('_mmpretrain', mm_url, AUTHORS_LAYOUT, mm_top1, mm_source),
            ('_timm', timm_url, METAFORMER_LAYOUT, timm_top1, 'timm, results-imagenet.csv'),
            ('_hf', face_url, HUGGING_FACE_LAYOUT, top1, paper),
        ):
            table[f'poolformer-{arch}{suffix}_in1k'] = Published(
                url, {'arch': arch}, layout.name, 'Apache-2.0', accuracy, source
            )
    hybrids = {'id': 74.3, 'pppa': 78.3, 'ppaa': 81.0, 'pppf': 77.5, 'ppff': 77.9}
    for kind, top1 in hybrids.items():
        url = f'{sail}metaformer_{kind}_s12{"" if kind == "id" else "_224"}.pth.tar'
        entry = Published(
            url, {'arch': f's12-{kind}'}, AUTHORS_LAYOUT.name, 'Apache-2.0', top1, f'{PAPER}5'
        )
        table[f'metaformer-{kind}-s12_in1k'] = entry
    return table


S12 = {'depths': (2, 2, 6, 2), 'dims': SMALL_DIMS, 'layer_scale': 1e-5}
ATTENTION = {'type': 'Attention', 'head_dim': 32, 'qkv_bias': False}
LAYER_NORM = {'type': 'LN2d', 'eps': 1e-5}


def _make_spatial_fc(grid: int) -> dict[str, Any]:
    return {'type': 'SpatialMLP', 'grid': grid, 'bias': False}


@MODELS.register_module()
class PoolFormer(MetaFormer):
    """PoolFormer and its hybrids, equal to the authors' code (``sail-sg/poolformer``, ``models``).

    The group norms average over the whole map, padding included: predictions depend on how a batch
    is padded, as they do in the authors' code.

    Args:
        arch: 's12', 's24', 's36', 'm36' or 'm48' (Table 1 of the paper); or an S12 with other
            mixers (Table 5, ``models/metaformer.py``): 's12-id' with identity in all stages, and
            's12-pppa', 's12-ppaa', 's12-pppf', 's12-ppff' with pooling (p), attention (a) or a
            spatial fully-connected layer (f) in each stage. Attention comes with layer norms and
            with positions before its first stage. Positions and spatial layers are made for
            images of 224x224 and resampled for others.
        pool_size: Side of the pooling window, in stages with pooling.
        kwargs: Arguments of :class:`MetaFormer`, which override the table, such as ``dims`` or
            ``token_mixers`` for hybrids.
    """

    ARCHS: ClassVar[dict[str, dict[str, Any]]] = {
        's12': S12,
        's24': {'depths': (4, 4, 12, 4), 'dims': SMALL_DIMS, 'layer_scale': 1e-5},
        's36': {'depths': (6, 6, 18, 6), 'dims': SMALL_DIMS, 'layer_scale': 1e-6},
        'm36': {'depths': (6, 6, 18, 6), 'dims': MEDIUM_DIMS, 'layer_scale': 1e-6},
        'm48': {'depths': (8, 8, 24, 8), 'dims': MEDIUM_DIMS, 'layer_scale': 1e-6},
        's12-id': S12 | {'token_mixers': 'Identity'},
        's12-pppa': S12
        | {
            'token_mixers': (*('Pooling',) * 3, ATTENTION),
            'stage_positions': (None, None, None, {'grid': 7}),
            'norm_cfg': LAYER_NORM,
        },
        's12-ppaa': S12
        | {
            'token_mixers': ('Pooling', 'Pooling', ATTENTION, ATTENTION),
            'stage_positions': (None, None, {'grid': 14}, None),
            'norm_cfg': LAYER_NORM,
        },
        's12-pppf': S12 | {'token_mixers': (*('Pooling',) * 3, _make_spatial_fc(7))},
        's12-ppff': S12
        | {'token_mixers': ('Pooling', 'Pooling', _make_spatial_fc(14), _make_spatial_fc(7))},
    }
    LAYOUTS: ClassVar[tuple[Layout, ...]] = (AUTHORS_LAYOUT, HUGGING_FACE_LAYOUT)
    PUBLISHED: ClassVar[dict[str, Published]] = _list_published()

    def __init__(self, arch: str = 's12', *, pool_size: int = 3, **kwargs: Any) -> None:
        row = self.get_arch_settings(arch)
        pooling = {'type': 'Pooling', 'pool_size': pool_size}
        mixers = row.get('token_mixers', pooling)
        if isinstance(mixers, tuple):
            mixers = [pooling if mixer == 'Pooling' else mixer for mixer in mixers]
        settings = {
            'stem': {'kernel_size': 7, 'padding': 2},
            'downsample': {'kernel_size': 3, 'padding': 1},
            'norm_cfg': {'type': 'GN1'},
            **row,
            'token_mixers': mixers,
        }
        super().__init__(**(settings | kwargs))
