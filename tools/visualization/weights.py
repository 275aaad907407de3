"""Weights: patch-embedding filters, depthwise kernels, positions, and how far attention looks."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ticker import MaxNLocator
from mmengine.utils import track_iter_progress
from torch import Tensor, nn

from visualization import picture
from visualization.affinity import Block, find_blocks
from visualization.subject import Subject

SHOWN = 64  # filters, and kernels of a block


def find_filters(backbone: Any, channels: int) -> Tensor | None:
    """Filters (N, channels, h, w) of the first convolution of the image."""
    kernels = (m.weight for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.groups == 1)
    return next((w.detach() for w in kernels if w.shape[1] == channels and w.shape[3] > 1), None)


def find_kernels(backbone: Any) -> dict[str, Tensor]:
    """Depthwise kernels (C, h, w) by name of their layer; of layers in a list the last one."""
    found: dict[str, tuple[str, Tensor]] = {}
    for name, m in backbone.named_modules():
        if isinstance(m, nn.Conv2d) and 1 < m.groups == m.in_channels and m.kernel_size[0] > 1:
            # stages.2.blocks.5.token_mixer.conv: one for each stage and place in a block
            head, _, rest = name.partition('blocks.')
            found[f'{head}{rest.partition(".")[2]}'] = name, m.weight.detach()[:, 0]
    return dict(found.values())


def find_positions(backbone: Any) -> Tensor | None:
    """Absolute positions (C, h, w) of the first layer that has such on a map."""
    for name, parameter in backbone.named_parameters():
        if name.endswith('pos_embed') and parameter.ndim == 4 and parameter.shape[2] > 1:
            return parameter.detach()[0]
        if name.endswith('pos_embed') and parameter.ndim == 3:  # timm's: tokens first
            side = int(parameter.shape[1] ** 0.5)
            return parameter.detach()[0, -side * side :].T.unflatten(1, (side, side))
    return None


def compare_positions(
    positions: Tensor, places: int = 5
) -> tuple[np.ndarray, list[int], list[int]]:
    """Cosine similarity of some places with all: (rows, columns, h, w), and which these are."""
    rows, columns = (
        sorted({round(x) for x in np.linspace(0, n - 1, min(n, places))})
        for n in positions.shape[1:]
    )
    unit = F.normalize(positions, dim=0)
    chosen = unit[:, rows][:, :, columns]
    return torch.einsum('cij,chw->ijhw', chosen, unit).numpy(), rows, columns


def measure_distances(block: Block, pixels: tuple[float, float]) -> Tensor:
    """Mean distance in pixels over which each head mixes (2010.11929, Figure 7), (heads,).

    Args:
        block: Whose weights are taken as shares, so without their signs; tokens without a place
            are left out.
        pixels: Height and width of a token.
    """
    height, width = block.grid
    y = (torch.arange(height) * pixels[0]).repeat_interleave(width)
    x = (torch.arange(width) * pixels[1]).repeat(height)
    distances = torch.cdist(torch.stack([y, x], 1), torch.stack([y, x], 1))
    means = []
    step = max(height * width // 64, 1)  # of some tokens, as all of them would take long
    tokens = range(step // 2, height * width, step)
    for token in tokens:
        rows = block.get_rows(block.ahead + token)
        row = list(rows.values())[-1]  # the sum, where there are parts
        shares = row[:, block.ahead :].abs()
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
        means.append(shares @ distances[token])
    return torch.stack(means).mean(0)


def draw(subject: Subject, photo: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Draw what of it the network has: name and figure of each."""
    backbone = subject.backbone
    filters = find_filters(backbone, 3)
    if filters is not None:
        yield 'filters', draw_filters(subject, filters)
    kernels = find_kernels(backbone)
    if kernels:
        yield 'kernels', draw_kernels(subject, kernels)
    positions = find_positions(backbone)
    if positions is not None:
        yield 'positions', draw_positions(subject, positions)
    with torch.no_grad():
        try:
            blocks = find_blocks(backbone, subject.prepare(photo))
        except SystemExit:  # a network without mixers
            return
        yield 'distance', draw_distances(subject, photo, blocks)


def draw_filters(subject: Subject, filters: Tensor) -> Any:
    """Filters as colours, each stretched to its own range."""
    shown = filters[:SHOWN] if subject.rgb else filters[:SHOWN].flip(1)
    low, high = shown.amin((1, 2, 3), True), shown.amax((1, 2, 3), True)
    tiles = ((shown - low) / (high - low).clamp(min=1e-12)).permute(0, 2, 3, 1).numpy()
    size = 'x'.join(map(str, filters.shape[2:]))
    title = f'Filters of the patch embedding ({len(tiles)} of {len(filters)}, {size})'
    figure, axes = _make_tiles(len(tiles), f'{title}\n{subject.title}')
    for axis, tile in zip(axes.flat, tiles, strict=False):
        axis.imshow(tile, interpolation='nearest')
    return figure


def draw_kernels(subject: Subject, kernels: dict[str, Tensor]) -> Any:
    """Sixteen channels of each layer, on one scale a layer."""
    count = 16
    title = f'Depthwise kernels: {subject.title}'
    figure, axes = picture.make_panels(len(kernels), count, title, width=0.85)
    for row, (name, kernel) in zip(axes, kernels.items(), strict=True):
        top = kernel[:count].abs().max().item()
        for axis, values in zip(row, kernel, strict=False):
            image = axis.imshow(values, cmap=picture.DIVERGING, vmin=-top, vmax=top)
        size = 'x'.join(map(str, kernel.shape[1:]))
        text = f'{name} ({size}), channels 1 to {count}'
        place = {'transform': row[0].transAxes, 'va': 'bottom'}
        row[0].text(0, 1.05, text, fontsize=8, **place).set_in_layout(False)
        picture.add_scale(row[-1], image)
    return figure


def draw_positions(subject: Subject, positions: Tensor) -> Any:
    """Each panel: how similar all positions are to the one at its place."""
    similar, rows, columns = compare_positions(positions)
    title = f'Cosine similarity of positions: {subject.title}'
    figure, axes = picture.make_panels(len(rows), len(columns), title, width=1.7)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            axis = axes[i][j]
            image = axis.imshow(similar[i, j], cmap='cividis', vmin=-1, vmax=1)
            axis.set_title(f'row {row + 1}, column {column + 1}', fontsize=8)
    figure.colorbar(image, ax=axes, fraction=0.03)
    return figure


def draw_distances(subject: Subject, photo: np.ndarray, blocks: list[Block]) -> Any:
    """A point for each head of each block."""
    title = f'Mean distance of mixing: {subject.title}'
    figure, axes = picture.make_panels(1, 1, title, 0.5, 8)
    axis = axes[0][0]
    axis.axis('on')
    for i, block in enumerate(track_iter_progress(blocks, file=sys.stderr)):
        pixels = photo.shape[0] / block.grid[0], photo.shape[1] / block.grid[1]
        means = measure_distances(block, pixels)
        colour = ('#0072B2', '#E69F00', '#009E73', '#CC79A7')[(block.stage - 1) % 4]
        axis.scatter([i + 1] * len(means), means, s=12, color=colour, alpha=0.6)
        axis.plot([i + 0.7, i + 1.3], [means.mean()] * 2, color='black', lw=1.5)
    axis.set_xlabel('block (one colour per stage; points are heads or channels, a line their mean)')
    axis.set_ylabel('distance in pixels of the input')
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    return figure


def _make_tiles(count: int, title: str) -> tuple[Any, Any]:
    columns = min(count, 16)
    return picture.make_panels(-(-count // columns), columns, title, 0.4, 0.7)
