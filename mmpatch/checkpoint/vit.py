"""What renaming alone does not do to ViT's published tensors."""

import math
import re

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
#: Rows and columns of the model's positions; None for a model without.
Grid = tuple[int, int] | None


def split_positions(tensors: Tensors, grid: Grid = None) -> Tensors:
    """Separate the positions of the grid from those of the tokens, which stand in front.

    ``pos_embed`` (1, T + N, C) becomes maps ``positions.pos_embed`` (1, C, H, W) and
    ``positions.cls_pos_embed`` (1, C, 1, T); ``cls_token`` and ``dist_token`` (1, 1, C) become
    ``positions.cls_token`` (1, C, 1, T). Where the file has no positions for its tokens (DeiT III)
    those are zero. As many positions as the model has are of the model's grid, others of a square.

    Raises:
        ValueError: If the positions are of neither grid.
    """
    rest = dict(tensors)
    tokens = [rest.pop(key) for key in ('cls_token', 'dist_token') if key in rest]
    positions = rest.pop('pos_embed', None)
    if tokens:
        rest['positions.cls_token'] = torch.cat(tokens, 1).transpose(1, 2).unsqueeze(2)
    if positions is not None:
        if positions.ndim != 3:
            raise ValueError(f'pos_embed has shape {tuple(positions.shape)}, not (1, tokens, C)')
        count, ahead = positions.shape[1], len(tokens)
        size = _grid(count - ahead, grid)
        if size is None and (size := _grid(count, grid)):
            positions = torch.cat([torch.zeros_like(positions[:, :ahead]), positions], 1)
        if size is None:
            raise ValueError(
                f'pos_embed has {count - ahead} places, which are no square grid; say which with '
                'pretrain_img_size=(height, width)'
            )
        maps = positions.transpose(1, 2)
        rest['positions.pos_embed'] = maps[:, :, ahead:].unflatten(2, size)
        if tokens:
            rest['positions.cls_pos_embed'] = maps[:, :, :ahead].unsqueeze(2)
    return rest


def with_patch_bias(tensors: Tensors, grid: Grid = None) -> Tensors:
    """:func:`split_positions`; mmseg's patch embeddings, which have no bias, get one of zero."""
    weight = tensors.get('patch_embed.projection.weight')
    if weight is not None and 'patch_embed.projection.bias' not in tensors:
        tensors = {**tensors, 'patch_embed.projection.bias': torch.zeros(len(weight))}
    return split_positions(tensors, grid)


def from_npz(arrays: Tensors, grid: Grid = None) -> Tensors:
    """Arrays of the authors' JAX code, also as big_vision writes them, under timm's names.

    Kernels are (rows, columns, in, out) there, linear maps (in, out), and attention has its heads
    apart; big_vision stacks the blocks and numbers the layers of a block from 0.
    """
    plain = {re.sub(r'^(opt/target/|params/(img/)?)', '', key): v for key, v in arrays.items()}
    named: Tensors = {}
    heads: dict[str, Tensors] = {}
    for key, value in _unstacked(plain).items():
        attention = re.fullmatch(NPZ_ATTENTION, key)
        if attention:
            heads.setdefault(f'blocks.{attention[1]}.attn', {})[attention[2]] = value
            continue
        for pattern, name in NPZ_NAMES:
            if re.fullmatch(pattern, key):
                named[re.sub(pattern, name, key)] = _as_torch(key, value)
                break
        else:
            named[key] = value  # no rule will know it, so loading reports it
    for name, parts in heads.items():
        named |= _joined(name, parts)
    return split_positions({_from_zero(key): value for key, value in named.items()}, grid)


NPZ_ATTENTION = (
    r'Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/'
    r'((?:query|key|value|out)/(?:kernel|bias))'
)
NPZ_NAMES = (
    (r'cls', 'cls_token'),
    (r'(?:Transformer/posembed_input/)?pos_embedding', 'pos_embed'),
    (r'embedding/(kernel|bias)', r'patch_embed.proj.\1'),
    (r'Transformer/encoder_norm/(scale|bias)', r'norm.\1'),
    (r'(head|pre_logits)/(kernel|bias)', r'head.\2'),
    (r'Transformer/encoderblock_(\d+)/LayerNorm_0/(scale|bias)', r'blocks.\1.norm1.\2'),
    (r'Transformer/encoderblock_(\d+)/LayerNorm_[12]/(scale|bias)', r'blocks.\1.norm2.\2'),
    (
        r'Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_0/(kernel|bias)',
        r'blocks.\1.mlp.fc1.\2',
    ),
    (
        r'Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_1/(kernel|bias)',
        r'blocks.\1.mlp.fc2.\2',
    ),
    (r'conv_root/(kernel)', r'patch_embed.backbone.stem.conv.\1'),
    (r'gn_root/(scale|bias)', r'patch_embed.backbone.stem.norm.\1'),
    (r'block(\d)/unit(\d)/conv([123])/(kernel)', r'block\1.unit\2.conv\3.\4'),
    (r'block(\d)/unit(\d)/gn([123])/(scale|bias)', r'block\1.unit\2.norm\3.\4'),
    (r'block(\d)/unit(\d)/conv_proj/(kernel)', r'block\1.unit\2.downsample.conv.\3'),
    (r'block(\d)/unit(\d)/gn_proj/(scale|bias)', r'block\1.unit\2.downsample.norm.\3'),
)


def _joined(name: str, parts: Tensors) -> Tensors:
    """Queries, keys, values and the projection of one block, their heads side by side."""
    joined: Tensors = {}
    for what, target in (('kernel', 'weight'), ('bias', 'bias')):
        rows = [parts.pop(f'{part}/{what}', None) for part in ('query', 'key', 'value')]
        flat = [r.flatten(1).T if what == 'kernel' else r.flatten() for r in rows if r is not None]
        if len(flat) == len(rows):
            joined[f'{name}.qkv.{target}'] = torch.cat(flat)
        out = parts.pop(f'out/{what}', None)
        if out is not None:
            joined[f'{name}.proj.{target}'] = out.flatten(0, 1).T if what == 'kernel' else out
    return joined


def _from_zero(key: str) -> str:
    """``kernel`` and ``scale`` become ``weight``; blocks and units are counted from 0."""
    key = re.sub(r'\.(kernel|scale)$', '.weight', key)
    return re.sub(
        r'^block(\d)\.unit(\d)\.',
        lambda m: f'patch_embed.backbone.stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}.',
        key,
    )


def _unstacked(arrays: Tensors) -> Tensors:
    """One array a block where all blocks lie in one."""
    stacked = 'Transformer/encoderblock/'
    flat: Tensors = {}
    for key, value in arrays.items():
        if key.startswith(stacked):
            for i, part in enumerate(value):
                flat[f'Transformer/encoderblock_{i}/{key.removeprefix(stacked)}'] = part
        else:
            flat[key] = value
    return flat


def _as_torch(key: str, value: Tensor) -> Tensor:
    if key.endswith('/kernel'):
        return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value.flatten() if key.endswith(('/scale', '/bias')) else value


def _grid(count: int, grid: Grid) -> Grid:
    """Grid of so many places: that of the model, or a square; None if neither fits."""
    if grid is not None and grid[0] * grid[1] == count:
        return grid
    side = math.isqrt(max(count, 0))
    return (side, side) if count > 0 and side**2 == count else None
