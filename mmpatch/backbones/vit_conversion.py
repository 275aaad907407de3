"""Conversion of ViT's published tensors where renaming is not enough."""

import math
import re

import torch
from torch import Tensor

from mmpatch.checkpoint.layout import Grid, Tensors

NAMES = {'cls': 'cls_token', 'pos_embedding': 'pos_embed'}


def split_positions(tensors: Tensors, grid: Grid = None) -> Tensors:
    """Separate the positions of the grid from those of the tokens, which come first.

    ``pos_embed`` (1, T + N, C) becomes maps ``positions.pos_embed`` (1, C, H, W) and
    ``positions.cls_pos_embed`` (1, C, 1, T); ``cls_token`` and ``dist_token`` (1, 1, C) become
    ``positions.cls_token`` (1, C, 1, T). If the file has no positions for its tokens (DeiT III),
    they are zero. If it has the position of a class token that was left out (ViTDet, ViT-Adapter),
    that one comes by itself. The grid is the model's if it has as many places, or else a square.

    Raises:
        ValueError: If the places fill neither grid.
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
        size = _find_grid(count - ahead, grid)
        if size is None and ahead and (size := _find_grid(count, grid)):
            positions = torch.cat([torch.zeros_like(positions[:, :ahead]), positions], 1)
        if size is None and not ahead and (size := _find_grid(count - 1, grid)):
            ahead = 1
        if size is None:
            raise ValueError(
                f'pos_embed has {count - ahead} places, which form no square; say which with '
                'pretrain_img_size=(height, width)'
            )
        maps = positions.transpose(1, 2)
        rest['positions.pos_embed'] = maps[:, :, ahead:].unflatten(2, size)
        if ahead:
            rest['positions.cls_pos_embed'] = maps[:, :, :ahead].unsqueeze(2)
    return rest


def add_patch_bias(tensors: Tensors, grid: Grid = None) -> Tensors:
    """:func:`split_positions`; and zeros for the bias that mmseg's patch embeddings do not have."""
    weight = tensors.get('patch_embed.projection.weight')
    if weight is not None and 'patch_embed.projection.bias' not in tensors:
        tensors = {**tensors, 'patch_embed.projection.bias': torch.zeros(len(weight))}
    return split_positions(tensors, grid)


def convert_arrays(arrays: Tensors, grid: Grid = None) -> Tensors:
    """Give arrays of the authors' JAX code, or of big_vision, the shapes of PyTorch's tensors.

    There, kernels are (rows, columns, in, out), linear maps (in, out), and attention has one map
    for queries, keys and values each, with an axis for the heads. big_vision stacks all blocks.
    """
    tensors: Tensors = {}
    for key, value in arrays.items():
        name = re.sub(r'^(opt/target/|params/(img/)?)?(Transformer/posembed_input/)?', '', key)
        name = re.sub(r'/(kernel|scale)$', '/weight', NAMES.get(name, name))
        stacked = 'encoderblock/' in name
        for i, part in enumerate(value if stacked else [value]):
            one = name.replace('encoderblock/', f'encoderblock_{i}/')
            tensors[one] = _reshape(one, key, part)
    for query in [name for name in tensors if re.search(r'Attention_[01]/query/\w+$', name)]:
        parts = [query.replace('/query/', f'/{part}/') for part in ('query', 'key', 'value')]
        if all(part in tensors for part in parts):
            tensors[query.replace('/query/', '/qkv/')] = torch.cat([tensors.pop(p) for p in parts])
    return split_positions(tensors, grid)


def _reshape(name: str, key: str, array: Tensor) -> Tensor:
    if key.endswith('/kernel'):
        if array.ndim == 4:
            return array.permute(3, 2, 0, 1)
        if array.ndim == 3:  # the heads are the first axis of the projection's inputs
            array = array.flatten(0, 1) if '/out/' in name else array.flatten(1)
        return array.T
    return array.flatten() if key.endswith(('/scale', '/bias')) else array


def _find_grid(count: int, grid: Grid) -> Grid:
    """Find the grid of so many places: the model's, or a square; None if neither fits."""
    if grid is not None and grid[0] * grid[1] == count:
        return grid
    side = math.isqrt(max(count, 0))
    return (side, side) if count > 0 and side**2 == count else None
