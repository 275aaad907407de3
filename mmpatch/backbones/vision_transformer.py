"""ViT (https://arxiv.org/abs/2010.11929): the token mixer is self-attention."""

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar

from torch import Tensor, nn

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.backbones.vit_conversion import add_patch_bias, convert_arrays, split_positions
from mmpatch.checkpoint import HALF_STATS, Layout, Published, renumber
from mmpatch.registry import MODELS

TIMM_LAYOUT = Layout(
    'timm, DeiT or MAE ViT',
    r'blocks\.0\.attn\.qkv\.weight',
    (
        (r'positions\..+|blocks\.\d+\.(norm[12]|mlp\.fc[12])\..+', r'\g<0>'),
        (r'patch_embed\.proj\.(.+)', r'stem.conv.\1'),
        (r'blocks\.(\d+)\.attn\.((?:qkv|proj)\..+)', r'blocks.\1.token_mixer.\2'),
        (r'blocks\.(\d+)\.attn\.rel_pos_([hw])', r'blocks.\1.token_mixer.rel_pos.\2'),
        (r'blocks\.(\d+)\.(?:ls([12])\.gamma|gamma([12]))', r'blocks.\1.layer_scale\2\3.scale'),
        # plain ViTs of ViT-Adapter: a norm for each tap, and what the neck has here
        (r'norm([1-4])\.(weight|bias)', renumber(r'out_norms.{}.\2', shift=-1)),
        (r'up[12]\..+', None),
        # the ResNet of a hybrid; its stem is a module of its own unless there is nothing else
        (r'patch_embed\.backbone\.(?:stem\.)?conv\.(.+)', r'stem.root.\1'),
        (r'patch_embed\.backbone\.(?:stem\.)?norm\.(.+)', r'stem.root_norm.\1'),
        (r'patch_embed\.backbone\.stages\.(\d)\.blocks\.(.+)', r'stem.stages.\1.\2'),
        (r'(norm|fc_norm|pre_logits\.fc|head|head_dist)\.(weight|bias)', None),
        (r'mask_token|decoder_.+', None),  # the rest of MAE's pre-training
    ),
    split_positions,
)


def _name_unit(match: re.Match[str]) -> str:
    """Name a part of a bottleneck, which JAX counts from 1."""
    stage, unit, layer, number, rest = match.groups()
    layer = layer.replace('gn', 'norm')
    layer = f'downsample.{layer}' if number == '_proj' else layer + number
    return f'stem.stages.{int(stage) - 1}.{int(unit) - 1}.{layer}.{rest}'


BLOCK, ATTENTION = r'Transformer/encoderblock_(\d+)', 'MultiHeadDotProductAttention_[01]'
GOOGLE_LAYOUT = Layout(
    'google-research ViT',
    r'.*Transformer/encoderblock(_0)?/LayerNorm_0/scale',
    (
        (r'positions\..+', r'\g<0>'),
        (r'embedding/(.+)', r'stem.conv.\1'),
        (rf'{BLOCK}/LayerNorm_0/(.+)', r'blocks.\1.norm1.\2'),
        (rf'{BLOCK}/LayerNorm_[12]/(.+)', r'blocks.\1.norm2.\2'),
        (rf'{BLOCK}/{ATTENTION}/qkv/(.+)', r'blocks.\1.token_mixer.qkv.\2'),
        (rf'{BLOCK}/{ATTENTION}/out/(.+)', r'blocks.\1.token_mixer.proj.\2'),
        (rf'{BLOCK}/MlpBlock_[03]/Dense_0/(.+)', r'blocks.\1.mlp.fc1.\2'),
        (rf'{BLOCK}/MlpBlock_[03]/Dense_1/(.+)', r'blocks.\1.mlp.fc2.\2'),
        (r'conv_root/(.+)', r'stem.root.\1'),
        (r'gn_root/(.+)', r'stem.root_norm.\1'),
        (r'block(\d)/unit(\d)/(conv|gn)([123]|_proj)/(.+)', _name_unit),
        (r'(Transformer/encoder_norm|head|pre_logits)/(weight|bias)', None),
    ),
    convert_arrays,
)
MM_LAYOUT = Layout(
    'mmpretrain or mmseg ViT',
    r'layers\.0\.ln1\.weight',
    (
        (r'positions\..+', r'\g<0>'),
        (r'patch_embed\.projection\.(.+)', r'stem.conv.\1'),
        (r'layers\.(\d+)\.ln([12])\.(.+)', r'blocks.\1.norm\2.\3'),
        (r'layers\.(\d+)\.attn\.(?:qkv\.|attn\.in_proj_)(.+)', r'blocks.\1.token_mixer.qkv.\2'),
        (r'layers\.(\d+)\.attn\.(?:attn\.out_)?proj\.(.+)', r'blocks.\1.token_mixer.proj.\2'),
        (r'layers\.(\d+)\.ffn\.layers\.0\.0\.(.+)', r'blocks.\1.mlp.fc1.\2'),
        (r'layers\.(\d+)\.ffn\.layers\.1\.(.+)', r'blocks.\1.mlp.fc2.\2'),
        (r'ln1\.(weight|bias)|head\..+', None),
    ),
    add_patch_bias,
)


def _list_published() -> dict[str, Published]:
    meta = 'https://dl.fbaipublicfiles.com/'
    google = 'https://storage.googleapis.com/vit_models/'
    github = 'https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/'
    timm, apache = TIMM_LAYOUT.name, 'Apache-2.0'
    table = {}
    for file, top1 in (
        ('tiny_patch16_224-a1311bcf', 72.2),
        ('small_patch16_224-cd65a155', 79.9),
        ('base_patch16_224-b5f2ef4d', 81.8),
        ('tiny_distilled_patch16_224-b40b3cf7', 74.5),
        ('small_distilled_patch16_224-649709d9', 81.2),
        ('base_distilled_patch16_224-df68dfff', 83.4),
        ('base_patch16_384-8de9b5d1', 82.9),
        ('base_distilled_patch16_384-d0272ac0', 85.2),
    ):
        url, source = f'{meta}deit/deit_{file}.pth', 'README_deit.md of facebookresearch/deit'
        arch, distilled, size = file.split('_')[0], 'distilled' in file, int(file[-12:-9])
        name = arch + '-distilled' * distilled + '-384' * (size == 384)
        settings = {'arch': arch, 'distilled': distilled, 'pretrain_img_size': size}
        table[f'deit-{name}_in1k'] = Published(url, settings, timm, apache, top1, source)
    for arch in ('base', 'large', 'huge'):
        url = f'{meta}mae/pretrain/mae_pretrain_vit_{arch}.pth'
        licence, source = 'CC-BY-NC-4.0', 'README of facebookresearch/mae'
        table[f'mae-{arch}_in1k'] = Published(url, {'arch': arch}, timm, licence, None, source)
    for arch, patch, file in (
        ('tiny', 16, 'Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'),
        ('small', 16, 'S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'),
        ('small', 32, 'S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'),
        ('base', 8, 'B_8-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0'),
        ('base', 16, 'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0'),
        ('base', 32, 'B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0'),
        ('large', 16, 'L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1'),
        ('tiny-r-s16-p8', None, 'R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'),
        ('small-r26-s32', None, 'R26_S_32-i21k-300ep-lr_0.001-aug_medium2-wd_0.03-do_0.0-sd_0.0'),
        ('large-r50-s32', None, 'R50_L_32-i21k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0'),
        ('base', 16, 'ViT-B_16'),
        ('base', 32, 'ViT-B_32'),
        ('large', 16, 'ViT-L_16'),
        ('large', 32, 'ViT-L_32'),
        ('huge', 14, 'ViT-H_14'),
        ('base-r50-s16', None, 'R50+ViT-B_16'),
    ):
        original = 'i21k' not in file  # of the paper itself, not of AugReg
        url = f'{google}{"imagenet21k" if original else "augreg"}/{file}.npz'
        layout, source = GOOGLE_LAYOUT.name, f'arXiv {"2010.11929" if original else "2106.10270"}'
        settings = {'arch': arch, 'patch_size': patch}
        entry = Published(url, settings, layout, apache, None, source, HALF_STATS)
        table[f'vit-{arch}{f"-p{patch}" * bool(patch)}{"-original" * original}_in21k'] = entry
    url = f'{github}jx_vit_base_p16_224-80ecf9dd.pth'  # ImageNet-21k, then fine-tuned on 1k
    source = 'timm, vision_transformer.py'
    entry = Published(url, {'arch': 'base'}, timm, apache, None, source, HALF_STATS)
    table['vit-base-p16_in1k'] = entry
    url = f'{github}jx_vit_base_resnet50_384-9fd3c705.pth'
    settings = {'arch': 'base-r50-s16', 'pretrain_img_size': 384}
    source = 'timm, vision_transformer_hybrid.py'  # ImageNet-21k, then fine-tuned on 1k
    entry = Published(url, settings, timm, apache, None, source, HALF_STATS)
    return table | {'vit-base-r50-s16_in1k': entry}


@MODELS.register_module()
class VisionTransformer(MetaFormer):
    """ViT, DeiT, MAE's encoder and the hybrids, equal to timm's; and ViTDet's form of them.

    Isotropic: one patch embedding, then equal blocks, tapped after every quarter of them. ViTDet
    (https://arxiv.org/abs/2203.16527, ``vit.py`` of detectron2) is ``with_cls_token=False,
    window_size=14, rel_pos=True, img_size=1024, antialias=False, out_indices=(3,),
    out_norm=False``.

    Args:
        arch: 'tiny', 'small', 'base', 'large' or 'huge' (patch 16, huge 14); 'small-pam' or
            'small-mh-mlp', CONTAINER's forms of DeiT-S (``token_mixers``); or a hybrid, named by
            its ResNet and total stride: 'base-r50-s16', 'base-r26-s32', 'small-r26-s32',
            'large-r50-s32', 'tiny-r-s16-p8' (which timm calls so; its total stride is 32).
            ``stem_indices`` taps the stages of the ResNet.
        patch_size: 8, 14, 16, 32 or any other; overrides the table. Of a hybrid: the total stride.
        token_mixers: 'pam' for attention plus a static matrix a head, class token included
            (CONTAINER-PAM, arXiv 2106.01401), 'mh-mlp' for these matrices alone, or what
            :class:`MetaFormer` takes.
        pretrain_img_size: Images (H, W), or the side of a square, of the pre-training: positions
            and static matrices are stored for its grid and resampled for every input.
        with_cls_token: Whether there is a class token. It is in no output but ``pooled='token'``.
        distilled: Whether DeiT's distillation token takes part too.
        window_size: Tokens along the side of attention windows; None for none.
        global_blocks: Blocks without windows, by default the last of every quarter, as in ViTDet.
        rel_pos: Whether attention has decomposed relative positions: windows for their size, other
            blocks for the grid of ``img_size``.
        img_size: Images (H, W), or the side of a square, of the training at hand; needed only for
            ``rel_pos`` of blocks without windows, by default ``pretrain_img_size``.
        qkv_bias: Whether queries, keys and values have a bias.
        antialias: How positions are resampled: see :class:`mmpatch.layers.PositionEmbed`.
        pos_kind: Absolute positions: the ``kind`` of :class:`mmpatch.layers.PositionEmbed`. The
            paper's relative ones (Appendix D.4) are, in two dimensions, ``pos_kind='none',
            rel_pos=True, with_cls_token=False``.
        interpolation: 'bicubic' as in timm, 'linear' as in the paper's code.
        drop_rate: Dropout rate of positions, MLPs and outputs of mixers, in the paper 0.1; your own
            ``positions`` and ``token_mixers`` set it themselves.
        attn_drop_rate: Dropout rate of affinities, likewise.
        pooled: Adds a last output (B, C, 1, 1), not counted in ``out_channels``, for classifiers:
            'token' is the class token after the norm of the last map, 'average' the mean of that
            map. None adds none.
        kwargs: Further arguments of :class:`MetaFormer`.

    Raises:
        ValueError: If arguments do not fit each other; the message names the one at fault.
    """

    NAME: ClassVar[str] = 'vit'
    #: width, depth, heads, patch, bottlenecks of the ResNet in front
    TABLE: ClassVar[dict[str, tuple[int, int, int, int, tuple[int, ...] | None]]] = {
        'tiny': (192, 12, 3, 16, None),
        'small': (384, 12, 6, 16, None),
        'base': (768, 12, 12, 16, None),
        'large': (1024, 24, 16, 16, None),
        'huge': (1280, 32, 16, 14, None),
        'tiny-r-s16-p8': (192, 12, 3, 32, ()),
        'small-r26-s32': (384, 12, 6, 32, (2, 2, 2, 2)),
        'base-r26-s32': (768, 12, 12, 32, (2, 2, 2, 2)),
        'base-r50-s16': (768, 12, 12, 16, (3, 4, 9)),
        'large-r50-s32': (1024, 24, 16, 32, (3, 4, 6, 3)),
    }
    ARCHS: ClassVar[dict[str, dict[str, Any]]] = {
        name: {'width': width, 'depth': depth, 'heads': heads, 'patch': patch, 'resnet': resnet}
        for name, (width, depth, heads, patch, resnet) in TABLE.items()
    }
    ARCHS['small-pam'] = ARCHS['small'] | {'token_mixers': 'pam'}
    ARCHS['small-mh-mlp'] = ARCHS['small'] | {'token_mixers': 'mh-mlp'}
    LAYOUTS: ClassVar[tuple[Layout, ...]] = (TIMM_LAYOUT, GOOGLE_LAYOUT, MM_LAYOUT)
    PUBLISHED: ClassVar[dict[str, Published]] = _list_published()

    def __init__(
        self,
        arch: str = 'base',
        *,
        patch_size: int | None = None,
        token_mixers: Any = None,
        pretrain_img_size: int | Sequence[int] = 224,
        with_cls_token: bool = True,
        distilled: bool = False,
        window_size: int | None = None,
        global_blocks: Sequence[int] | None = None,
        rel_pos: bool = False,
        img_size: int | Sequence[int] | None = None,
        qkv_bias: bool = True,
        antialias: bool = True,
        pos_kind: str = 'learned',
        interpolation: str = 'bicubic',
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        pooled: str | None = None,
        **kwargs: Any,
    ) -> None:
        row = self.get_arch_settings(arch)
        patch = patch_size or row['patch']
        if pooled not in ((None, 'average', 'token') if with_cls_token else (None, 'average')):
            given = f'VisionTransformer: pooled={pooled!r}, with_cls_token={with_cls_token}'
            raise ValueError(f"{given}: choose 'token' of such a token, 'average' or None")
        if distilled and not with_cls_token:
            raise ValueError('VisionTransformer: distilled=True needs with_cls_token=True')
        depths = kwargs.get('depths', (row['depth'] // 4,) * 4)
        count = sum(depths)
        if global_blocks is None:
            global_blocks = [end - 1 for end in accumulate(depths)]
        elif any(not 0 <= i < count for i in global_blocks):
            given = f'VisionTransformer: global_blocks={tuple(global_blocks)}'
            raise ValueError(f'{given} must name blocks of 0..{count - 1}')
        grid, num_tokens = _get_grid(pretrain_img_size, patch), with_cls_token + distilled
        attention: dict[str, Any] = {'type': 'Attention', 'num_heads': row['heads']}
        attention |= {'qkv_bias': qkv_bias, 'attn_drop': attn_drop_rate, 'proj_drop': drop_rate}
        pam = attention | {'type': 'ContextAggregation', 'static': 'mlp', 'gate': None}
        pam |= {'grid': grid, 'token_rows': num_tokens}
        forms = {'pam': pam, 'mh-mlp': pam | {'dynamic': False}}
        windowed = {'type': 'Windowed', 'mixer': attention, 'window_size': window_size}
        if rel_pos:
            windowed['mixer'] = attention | {'rel_pos_size': window_size}
            attention |= {'rel_pos_size': _get_grid(img_size or pretrain_img_size, patch)}
        unwindowed = range(count) if window_size is None else global_blocks
        mixers = token_mixers or row.get('token_mixers')
        if mixers is None:
            mixers = [attention if i in unwindowed else windowed for i in range(count)]
        elif isinstance(mixers, str) and mixers in forms:
            if window_size or rel_pos:
                raise ValueError(f'VisionTransformer: {mixers} takes no windows and no rel_pos')
            mixers = forms[mixers]
        resnet = {'type': 'ResNetStem', 'depths': row['resnet']}
        block_args = {'drop': drop_rate} if drop_rate else {}
        settings = {
            'depths': depths,
            'dims': row['width'],
            'strides': (patch, *(1,) * (len(depths) - 1)),
            'token_mixers': mixers,
            'stem': None if row['resnet'] is None else resnet,
            'norm_cfg': {'type': 'LN2d', 'eps': 1e-6},
            'block_args': block_args | (kwargs.pop('block_args', None) or {}),
            'positions': {
                'grid': grid,
                'num_tokens': num_tokens,
                'antialias': antialias,
                'kind': pos_kind,
                'interpolation': interpolation,
                'drop': drop_rate,
            },
        }
        super().__init__(**(settings | kwargs))
        tokens = self.positions.num_tokens if self.positions is not None else 0
        if pooled == 'token' and not tokens:
            raise ValueError("VisionTransformer: pooled='token' needs a class token in positions")
        self.pooled = pooled

    def _pool(self, last: Tensor, tokens: Tensor | None) -> tuple[Tensor, ...]:
        if self.pooled == 'average':
            return (last.mean((2, 3), keepdim=True),)
        norm = self.out_norms[str(self.out_indices[-1])] if self.out_norms else nn.Identity()
        return () if self.pooled is None or tokens is None else (norm(tokens[..., :1]),)

    @classmethod
    def infer_settings(cls, arch: str, tensors: dict[str | None, Tensor]) -> dict[str, Any]:
        """Patch, grid and tokens, which the ``arch`` does not say; see :class:`MetaFormer`."""
        row = cls.get_arch_settings(arch)
        positions, tokens = (tensors.get(f'positions.{x}') for x in ('pos_embed', 'cls_token'))
        kernel = tensors.get('stem.proj.conv.weight', tensors.get('stem.conv.weight'))
        if positions is None or kernel is None:
            return {}
        patch = kernel.shape[2] if row['resnet'] is None else row['patch']
        count = 0 if tokens is None else tokens.shape[3]
        scaled = any(name and '.layer_scale' in name for name in tensors)
        return ({'layer_scale': 1.0} if scaled else {}) | {
            'patch_size': patch,
            'pretrain_img_size': tuple(side * patch for side in positions.shape[2:]),
            'with_cls_token': count > 0,
            'distilled': count == 2,
        }


def _get_grid(img_size: int | Sequence[int], patch: int) -> tuple[int, int]:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width) < patch:
        raise ValueError(f'VisionTransformer: images of {height}x{width} have no patch of {patch}')
    return height // patch, width // patch
