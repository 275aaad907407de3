"""Affinities: with which tokens a mixer mixes one, for every mixer that is linear in its values."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmpatch.backbones import MetaFormer
from mmpatch.mixers import ContextAggregation, Windowed
from mmpatch.mixers.tokens import StaticMixer
from mmpatch.mixers.windowed import split_windows

from visualization import picture
from visualization.subject import Subject

#: Most numbers of one affinity: 1 GiB.
MOST_NUMBERS = 2**28


@dataclass
class Block:
    """A block, and what its mixer was given for one picture.

    Attributes:
        name: Shown in pictures.
        stage: Number of its stage, from 1.
        grid: Rows and columns of the tokens on the map.
        ahead: Tokens in front of them, such as a class token.
        mixer: None for an attention of timm's.
        x: Input of the mixer (1, C, H, W); of an attention of timm's its affinity (1, heads, N, N).
    """

    name: str
    stage: int
    grid: tuple[int, int]
    ahead: int
    mixer: Any
    x: Tensor

    def get_rows(self, token: int) -> dict[str, Tensor]:
        """Weights (heads, N) with which a token collects the values of all, for each part."""
        if self.mixer is None:
            return {'affinity': self.x[0, :, token]}
        return get_rows(self.mixer, self.x, token)

    def get_matrix(self) -> Tensor:
        """Mixing with the residual, (N, N): mean over heads of abs(1 + A), rows of sum 1.

        For attention that is the paper's (https://arxiv.org/abs/2005.00928): half the identity.
        """
        if self.mixer is None:
            affinity = self.x[0]
        elif isinstance(self.mixer, Windowed):
            affinity = _spread_windows(self.mixer, self.x)
        else:
            affinity = _get_affinity(self.mixer, self.x)[0]
        mixed = (affinity + torch.eye(affinity.shape[-1])).abs().mean(0)
        return mixed / mixed.sum(1, keepdim=True).clamp(min=1e-12)


def get_rows(mixer: Any, x: Tensor, token: int) -> dict[str, Tensor]:
    """Rows of a mixer's affinity: see :meth:`Block.get_rows`."""
    if isinstance(mixer, Windowed):
        return _get_rows_in_window(mixer, x, token)
    if isinstance(mixer, StaticMixer) and not getattr(mixer, 'fc1', None):
        return {'affinity': _get_static_row(mixer, x, token)}
    if isinstance(mixer, ContextAggregation) and mixer.static is not None:
        static = get_rows(mixer.static, mixer._split(x)[-1], token)['affinity']
        if not mixer.dynamic:
            return {'affinity': static}
        alpha, beta = mixer.gate_weights()
        dynamic = alpha * mixer.dynamic_affinity(x)[0, :, token]
        dynamic = dynamic.repeat_interleave(len(static) // len(dynamic), 0)
        text = f'alpha={alpha.item():.2f}', f'beta={beta.item():.2f}'
        static = beta * static
        both = {f'alpha A(X), {text[0]}': dynamic, f'beta A, {text[1]}': static}
        return both | {'alpha A(X) + beta A': dynamic + static}
    return {'affinity': _get_affinity(mixer, x)[0, :, token]}


def _get_static_row(mixer: Any, x: Tensor, token: int) -> Tensor:
    """Row (heads, N) of a mixer that is linear in its input: the gradient of one output."""
    row, column = divmod(token, x.shape[3])
    with torch.enable_grad():
        probe = torch.zeros(1, mixer.num_heads, *x.shape[2:], requires_grad=True)
        (gradient,) = torch.autograd.grad(mixer(probe)[0, :, row, column].sum(), probe)
    return gradient[0].flatten(1)


def _get_affinity(mixer: Any, x: Tensor) -> Tensor:
    """(1, heads, N, N), if it fits into memory.

    Raises:
        SystemExit: If it does not, or the mixer has none.
    """
    kind = type(mixer).__name__
    if not hasattr(mixer, 'affinity'):
        sys.exit(f'error: {kind} has no affinity(x); mixers of mmpatch that are linear have one')
    heads = getattr(getattr(mixer, 'static', None) or mixer, 'num_heads', 1)
    if heads * (x.shape[2] * x.shape[3]) ** 2 > MOST_NUMBERS:
        size = f'{heads} heads on {x.shape[2]}x{x.shape[3]} tokens'
        sys.exit(f'error: all affinities of {kind} ({size}) take too much memory; lower --size')
    try:
        return mixer.affinity(x)
    except ValueError as error:
        sys.exit(f'error: {kind}: {error}')


def _get_rows_in_window(mixer: Windowed, x: Tensor, token: int) -> dict[str, Tensor]:
    """Rows on the map, zero outside of the window; weights of padding are cut off."""
    side, (height, width) = mixer.window_size, x.shape[2:]
    row, column = divmod(token, width)
    across = -(-width // side)
    windows = split_windows(x.permute(0, 2, 3, 1), (side, side)).permute(0, 3, 1, 2)
    number = row // side * across + column // side
    inner = row % side * side + column % side
    top, left = row // side * side, column // side * side
    found = {}
    for name, rows in get_rows(mixer.mixer, windows[number : number + 1], inner).items():
        whole = torch.zeros(len(rows), height + side, width + side)
        whole[:, top : top + side, left : left + side] = rows.unflatten(1, (side, side))
        found[name] = whole[:, :height, :width].flatten(1)
    return found


def _spread_windows(mixer: Windowed, x: Tensor) -> Tensor:
    """Affinity (heads, N, N) of a map from those of its windows."""
    side, (height, width) = mixer.window_size, x.shape[2:]
    numbers = torch.arange(1, height * width + 1.0).view(1, height, width, 1)
    places = split_windows(numbers, (side, side)).flatten(1).long() - 1  # -1 is padding
    windows = split_windows(x.permute(0, 2, 3, 1), (side, side)).permute(0, 3, 1, 2)
    inner = _get_affinity(mixer.mixer, windows)
    whole = torch.zeros(inner.shape[1], height * width, height * width)
    for place, affinity in zip(places, inner, strict=True):
        inside = place >= 0
        at = place[inside]
        whole[:, at[:, None], at] = affinity[:, inside][..., inside]
    return whole


def find_blocks(backbone: Any, x: Tensor) -> list[Block]:
    """Run a backbone on a picture and keep what its mixers are given.

    Raises:
        SystemExit: If it has no mixers that can be looked at.
    """
    blocks = list(_follow_mixers(backbone, x) if isinstance(backbone, MetaFormer) else ())
    blocks = blocks or list(_follow_attention(backbone, x))
    if not blocks:
        sys.exit(
            f'error: {type(backbone).__name__} has no mixers with an affinity of its own and no '
            'attention over its whole map; `erf` shows what it sees'
        )
    return blocks


def _follow_mixers(backbone: MetaFormer, x: Tensor) -> Iterator[Block]:
    """Inputs of the mixers of blocks, in order."""
    inputs: dict[Any, Tensor] = {}
    grids: list[Any] = []
    with ExitStack() as stack:
        for stage in backbone.stages:
            hook = stage.register_forward_hook(lambda _, args, out: grids.append(out[0].shape[2:]))
            stack.callback(hook.remove)
            for block in stage.blocks:
                mixer = getattr(block, 'token_mixer', None)
                if mixer is not None:
                    hook = mixer.register_forward_pre_hook(
                        lambda module, args: inputs.update({module: args[0]})
                    )
                    stack.callback(hook.remove)
        backbone(x)
    number = 0
    for i, (stage, grid) in enumerate(zip(backbone.stages, grids, strict=True)):
        for block in stage.blocks:
            number += 1
            mixer = getattr(block, 'token_mixer', None)
            if mixer is None:
                continue
            given = inputs[mixer]
            rows = getattr(mixer, 'token_rows', 0)
            ahead = rows or given.shape[2] * given.shape[3] - grid[0] * grid[1]
            inside = mixer.mixer if isinstance(mixer, Windowed) else mixer
            kind = type(inside).__name__ + (' in windows' if inside is not mixer else '')
            yield Block(f'block {number}: {kind}', i + 1, tuple(grid), ahead, mixer, given)


class _AttentionKeeper(TorchFunctionMode):
    """Keeps the affinities of every scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k = args[:2]
            mask = kwargs.get('attn_mask', args[3] if len(args) > 3 else None)
            scale = kwargs.get('scale') or q.shape[-1] ** -0.5
            logits = q @ k.mT * scale
            if mask is not None and mask.dtype == torch.bool:
                logits = logits.masked_fill(~mask, -torch.inf)
            elif mask is not None:
                logits = logits + mask
            self.found.append(logits.softmax(-1))
        return func(*args, **kwargs)


def _follow_attention(backbone: Any, x: Tensor) -> Iterator[Block]:
    """Attention over all tokens of an isotropic network, such as timm's ViTs."""
    with _AttentionKeeper() as keeper:
        outs = backbone(x)
    grid = tuple(outs[-1].shape[2:])
    count = len(keeper.found)
    for i, affinity in enumerate(keeper.found):
        ahead = affinity.shape[-1] - grid[0] * grid[1]
        if len(affinity) == 1 and ahead >= 0 and affinity.shape[-1] == affinity.shape[-2]:
            stage = 1 + 4 * i // max(count, 4)
            yield Block(f'block {i + 1}: attention', stage, grid, ahead, None, affinity)


def choose_last(blocks: list[Block]) -> list[Block]:
    """The last block of each stage."""
    return list({block.stage: block for block in blocks}.values())


def find_token(block: Block, at: tuple[float, float] | None) -> int:
    """Number of the token at a place (x, y) from 0 to 1; of the class token if None.

    Raises:
        SystemExit: If there is no class token.
    """
    if at is None:
        if not block.ahead:
            sys.exit(f'error: {block.name} sees no class token; leave out --class-token')
        return 0
    height, width = block.grid
    column, row = (min(int(place * n), n - 1) for place, n in zip(at, (width, height), strict=True))
    return block.ahead + row * width + column


def roll_out(blocks: list[Block], last: Block, token: int) -> Tensor:
    """What a token of a block collects through all blocks on its grid up to it: (N,), of sum 1."""
    weights = torch.zeros(last.ahead + last.grid[0] * last.grid[1])
    weights[token] = 1.0
    end = blocks.index(last)
    start = end
    while start and (blocks[start - 1].grid, blocks[start - 1].ahead) == (last.grid, last.ahead):
        start -= 1
    for block in reversed(blocks[start : end + 1]):
        weights = weights @ block.get_matrix()
    return weights


def draw(
    subject: Subject,
    photo: np.ndarray,
    at: tuple[float, float] | None,
    heads: int,
    numbers: list[int] | None,
    with_rollout: bool,
) -> Any:
    """A row for each part of each chosen block: the token, the mean of the heads, then heads."""
    with torch.no_grad():
        blocks = find_blocks(subject.backbone, subject.prepare(photo))
        chosen = choose_last(blocks)
        if numbers:
            if not all(1 <= n <= len(blocks) for n in numbers):
                sys.exit(f'error: --blocks {numbers}: there are blocks 1 to {len(blocks)}')
            chosen = [blocks[n - 1] for n in numbers]
        rows = []
        for block in chosen:
            token = find_token(block, at)
            rolled = roll_out(blocks, block, token) if with_rollout else None
            parts = block.get_rows(token).items()
            rows += [(block, token, name, part, rolled) for name, part in parts]
    most = max(min(heads, len(part)) for *_, part, _ in rows)
    most = (most if most > 1 else 0) + with_rollout
    what = 'of the class token' if at is None else f'of the token at {at[0]:g}, {at[1]:g}'
    title = f'Affinity {what}: {subject.title}'
    figure, axes = picture.make_panels(len(rows), 2 + most, title, photo.shape[0] / photo.shape[1])
    for line, (block, token, name, part, rolled) in zip(axes, rows, strict=True):
        shown = list_panels(block, name, part, heads)
        if rolled is not None:
            title = f'rollout up to it, sum {rolled.sum():.3g}'
            shown.append((title, _to_map(block, rolled)))
        _draw_row(line, photo, block, token, len(part), shown)
    return figure


def list_panels(block: Block, name: str, part: Tensor, heads: int) -> list[tuple[str, np.ndarray]]:
    """Titles and maps of one part: the mean of its heads, then some, evenly spaced."""
    picks = np.unique(np.linspace(0, len(part) - 1, min(heads, len(part))).round().astype(int))
    shown = [('mean of heads' if len(part) > 1 else '', part.mean(0))]
    shown += [(f'head {i + 1}', part[i]) for i in picks if len(part) > 1]
    return [(_describe(name, which, row), _to_map(block, row)) for which, row in shown]


def _describe(name: str, which: str, row: Tensor) -> str:
    total = row.sum().item()
    total = 0.0 if abs(total) < 1e-5 else total
    return f'{name}\n{which}{", " * bool(which)}sum {total:.3g}'


def _to_map(block: Block, row: Tensor) -> np.ndarray:
    """Weights (N,) -> (rows, columns), without tokens that have no place."""
    return row[block.ahead :].unflatten(0, block.grid).numpy()


def _draw_row(
    axes: Any,
    photo: np.ndarray,
    block: Block,
    token: int,
    heads: int,
    shown: list[tuple[str, np.ndarray]],
) -> None:
    rows, columns = block.grid
    height, width = photo.shape[0] / rows, photo.shape[1] / columns
    text = f'{block.name}\n{rows}x{columns} tokens, {heads} head{"s" * (heads > 1)}'
    picture.show_photo(axes[0], photo, text)
    if token >= block.ahead:
        row, column = divmod(token - block.ahead, columns)
        picture.mark(axes[0], column * width, row * height, width, height)
    top, bottom, left, right = find_region(np.stack([x for _, x in shown]), block, token)
    across = slice(round(left * width), round(right * width))
    cut = photo[round(top * height) : round(bottom * height), across]
    if (bottom - top, right - left) != block.grid:
        size = (right - left) * width, (bottom - top) * height
        picture.mark(axes[0], left * width, top * height, *size)
    for axis, (title, values) in zip(axes[1:], shown, strict=False):
        picture.show_map(axis, values[top:bottom, left:right], title, cut)


def find_region(maps: np.ndarray, block: Block, token: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what is drawn: less than the map if all else is zero."""
    height, width = block.grid
    used = (np.abs(maps) > 1e-6 * np.abs(maps).max()).any(0)
    if token < block.ahead or not used.any():
        return 0, height, 0, width
    rows, columns = (np.flatnonzero(used.any(axis)) for axis in (1, 0))
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    if 3 * side > min(height, width):
        return 0, height, 0, width
    half = side // 2 + 2
    row, column = divmod(token - block.ahead, width)
    return *_clip(row, half, height), *_clip(column, round(half * width / height), width)


def _clip(centre: int, half: int, end: int) -> tuple[int, int]:
    return max(centre - half, 0), min(centre + half + 1, end)
