"""ConvMixer (https://arxiv.org/abs/2201.09792): depthwise convolutions on patches."""

from typing import Any, ClassVar

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.checkpoint import Layout, Published, renumber
from mmpatch.registry import MODELS

#: Parts of a block in the authors' code and here.
PARTS = (r'0\.fn\.0', 'token_mixer.conv'), (r'0\.fn\.2', 'norm1'), ('1', 'mlp'), ('3', 'norm2')


def _make_layout(name: str, stem: str, blocks: str, head: str, first: int = 0) -> Layout:
    """Layout by the patterns before stem and blocks, that of the head, and the first block."""
    return Layout(
        name,
        rf'{blocks}{first}\.0\.fn\.0\.weight',
        (
            (rf'{stem}0\.(weight|bias)', r'stem.conv.\1'),
            (rf'{stem}2\.(.+)', r'stem.norm.\1'),
            *(
                (rf'{blocks}(\d+)\.{theirs}\.(.+)', renumber(rf'blocks.{{}}.{ours}.\2', 1, -first))
                for theirs, ours in PARTS
            ),
            (head, None),
        ),
    )


# The authors' network is one list: stem, blocks from 3 on, pooling and classifier.
AUTHORS_LAYOUT = _make_layout('locuslab/convmixer', '', '', r'\d+\.(weight|bias)', first=3)
TIMM_LAYOUT = _make_layout('timm ConvMixer', r'stem\.', r'blocks\.', r'head\..+')
MMPRETRAIN_LAYOUT = _make_layout('mmpretrain ConvMixer', r'stem\.', r'stages\.', r'head\..+')


def _list_published() -> dict[str, Published]:
    github = 'https://github.com/tmp-iclr/convmixer/releases/download/v1.0/convmixer_'
    mm = 'https://download.openmmlab.com/mmclassification/v0/convmixer/convmixer-'
    metafile = 'mmpretrain, configs/convmixer/metafile.yml'
    table: dict[str, Published] = {}
    for arch, top1, file, mm_file in (
        ('1536/20', 81.37, '1536_20_ks9_p7', '1536_20_3rdparty_10xb64_in1k_20220323-ea5786f3'),
        ('768/32', 80.16, '768_32_ks7_p7_relu', '768-32_3rdparty_10xb64_in1k_20220323-bca1f7b8'),
        ('1024/20', 76.94, '1024_20_ks9_p14', '1024-20_3rdparty_10xb64_in1k_20220323-48f8aeba'),
    ):
        name, settings = f'convmixer-{arch.replace("/", "-")}', {'arch': arch}
        url, source = f'{github}{file}.pth.tar', 'README of locuslab/convmixer'
        of_authors = Published(url, settings, AUTHORS_LAYOUT.name, 'MIT', top1, source)
        url, layout = f'{mm}{mm_file}.pth', MMPRETRAIN_LAYOUT.name
        of_mmpretrain = Published(url, settings, layout, 'Apache-2.0', top1, metafile)
        table |= {f'{name}_in1k': of_authors, f'{name}_mmpretrain_in1k': of_mmpretrain}
    return table


@MODELS.register_module()
class ConvMixer(MetaFormer):
    """ConvMixer, equal to the authors' code (``locuslab/convmixer``, ``convmixer.py``).

    Isotropic: one patch embedding, then equal blocks, tapped after every quarter of them.

    Args:
        arch: 'width/depth' as in the paper, with the patch, kernel and activation of the released
            code or, where no weights were released, of lists of the paper's variants; a suffix
            tells variants of one width and depth apart: '768/32-k3-p14', '1536/20-k3',
            '1536/20-p14'. '256/8' is the default of ``locuslab/convmixer-cifar10`` (0.594 M
            parameters). '256/8-k9-p1' is the CIFAR-10 network of the paper, with patch 1 and 0.7 M
            parameters; kernel 9 is the one that meets this number.
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
        '256/8-k9-p1': (8, 256, 1, 9, 'GELU'),
    }
    ARCHS: ClassVar[dict[str, dict[str, Any]]] = {
        name: {'depth': depth, 'width': width, 'patch': patch, 'kernel': kernel, 'act': act}
        for name, (depth, width, patch, kernel, act) in TABLE.items()
    }
    LAYOUTS: ClassVar[tuple[Layout, ...]] = (AUTHORS_LAYOUT, TIMM_LAYOUT, MMPRETRAIN_LAYOUT)
    PUBLISHED: ClassVar[dict[str, Published]] = _list_published()

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
        row = self.get_arch_settings(arch)
        act = act or row['act']
        settings = {
            'depths': (row['depth'] // 4,) * 4,
            'dims': row['width'],
            'strides': (patch_size or row['patch'], 1, 1, 1),
            'token_mixers': {'type': 'DepthwiseConv', 'kernel_size': kernel_size or row['kernel']},
            'stem': {'act': act, 'norm': norm_cfg},
            'block': 'ConvMixerBlock',
            'block_args': {'residual': residual},
            'act': act,
            'norm_cfg': norm_cfg,
        }
        super().__init__(**(settings | kwargs))
