"""ViT (https://arxiv.org/abs/2010.11929): the token mixer is self-attention."""

from collections.abc import Sequence
from typing import Any, ClassVar

from mmpatch.backbones.metaformer import MetaFormer
from mmpatch.registry import MODELS


@MODELS.register_module()
class VisionTransformer(MetaFormer):
    """ViT, DeiT, MAE's encoder and the hybrids, equal to timm's; and ViTDet's form of them.

    Isotropic: one patch embedding, then equal blocks, tapped after every quarter of them. ViTDet
    (https://arxiv.org/abs/2203.16527, ``vit.py`` of detectron2) is ``with_cls_token=False,
    window_size=14, rel_pos=True, img_size=1024, antialias=False, out_indices=(3,),
    out_norm=False``.

    Args:
        arch: 'tiny', 'small', 'base', 'large' or 'huge' (patch 16, huge 14), or a hybrid, named by
            its ResNet and total stride: 'base-r50-s16', 'base-r26-s32', 'small-r26-s32',
            'large-r50-s32', 'tiny-r-s16-p8' (which timm calls so; its total stride is 32).
            ``stem_indices`` taps the stages of the ResNet.
        patch_size: 8, 14, 16, 32 or any other; overrides the table. Of a hybrid: the total stride.
        pretrain_img_size: Images (H, W), or the side of a square, of the pre-training: positions
            are stored for its grid and resampled for every input.
        with_cls_token: Whether the class token takes part in the attention. It is in no output.
        distilled: Whether DeiT's distillation token takes part too.
        window_size: Tokens along the side of attention windows; None for none.
        global_blocks: Blocks without windows, by default the last of every quarter, as in ViTDet.
        rel_pos: Whether attention has decomposed relative positions: windows for their size, other
            blocks for the grid of ``img_size``.
        img_size: Images (H, W), or the side of a square, of the training at hand; needed only for
            ``rel_pos`` of blocks without windows, by default ``pretrain_img_size``.
        qkv_bias: Whether queries, keys and values have a bias.
        antialias: How positions are resampled: see :class:`mmpatch.layers.PositionEmbed`.
        kwargs: Further arguments of :class:`MetaFormer`.

    Raises:
        ValueError: If arguments do not fit each other; the message names the one at fault.
    """

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

    def __init__(
        self,
        arch: str = 'base',
        *,
        patch_size: int | None = None,
        pretrain_img_size: int | Sequence[int] = 224,
        with_cls_token: bool = True,
        distilled: bool = False,
        window_size: int | None = None,
        global_blocks: Sequence[int] | None = None,
        rel_pos: bool = False,
        img_size: int | Sequence[int] | None = None,
        qkv_bias: bool = True,
        antialias: bool = True,
        **kwargs: Any,
    ) -> None:
        row = self.arch_settings(arch)
        patch = patch_size or row['patch']
        if distilled and not with_cls_token:
            raise ValueError('VisionTransformer: distilled=True needs with_cls_token=True')
        depths = kwargs.get('depths', (row['depth'] // 4,) * 4)
        count = sum(depths)
        if global_blocks is None:
            global_blocks = [sum(depths[: i + 1]) - 1 for i in range(len(depths))]
        elif any(not 0 <= i < count for i in global_blocks):
            raise ValueError(
                f'VisionTransformer: global_blocks={tuple(global_blocks)} must name blocks of '
                f'0..{count - 1}'
            )
        attention = {'type': 'Attention', 'num_heads': row['heads'], 'qkv_bias': qkv_bias}
        everywhere, windowed = dict(attention), dict(attention)
        if rel_pos:
            everywhere['rel_pos_size'] = _grid(img_size or pretrain_img_size, patch)
            windowed['rel_pos_size'] = window_size
        mixers = [
            everywhere
            if window_size is None or i in global_blocks
            else {'type': 'Windowed', 'mixer': windowed, 'window_size': window_size}
            for i in range(count)
        ]
        hybrid = row['resnet'] is not None
        settings = {
            'depths': depths,
            'dims': row['width'],
            'strides': (patch, *(1,) * (len(depths) - 1)),
            'token_mixers': mixers,
            'stem': {'type': 'ResNetStem', 'depths': row['resnet']} if hybrid else None,
            'norm_cfg': {'type': 'LN2d', 'eps': 1e-6},
            'positions': {
                'grid': _grid(pretrain_img_size, patch),
                'num_tokens': with_cls_token + distilled,
                'antialias': antialias,
            },
        }
        super().__init__(**(settings | kwargs))


def _grid(img_size: int | Sequence[int], patch: int) -> tuple[int, int]:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return height // patch, width // patch
