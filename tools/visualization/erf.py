"""Effective receptive field (Luo et al., https://arxiv.org/abs/1701.04128) of every output."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from visualization import picture
from visualization.subject import Subject

#: Smallest value drawn, over the largest.
FLOOR = 1e-3


def measure(backbone: Any, inputs: Tensor) -> list[np.ndarray]:
    """Measure how strongly the token in the middle of each output depends on each pixel.

    The norm of its Jacobian, estimated by the gradients of random sums over its channels (a plain
    sum would be constant behind a layer norm), is averaged over the inputs as a root of squares.

    Args:
        backbone: In evaluation mode.
        inputs: (N, 3, H, W).

    Returns:
        (H, W) for each output.
    """
    squares: list[Any] = []
    generator = torch.Generator().manual_seed(0)
    for i in range(len(inputs)):
        x = inputs[i : i + 1].clone().requires_grad_()
        outs = [out for out in backbone(x) if out.shape[3] > 1]
        squares = squares or [0.0] * len(outs)
        for j, out in enumerate(outs):
            token = out[0, :, out.shape[2] // 2, out.shape[3] // 2]
            total = (token * torch.randn(len(token), generator=generator)).sum()
            (gradient,) = torch.autograd.grad(total, x, retain_graph=True)
            squares[j] = squares[j] + gradient[0].square().sum(0)
    return [(square / len(inputs)).sqrt().numpy() for square in squares]


def find_reach(field: np.ndarray, centre: tuple[float, float], share: float = 0.95) -> int:
    """Side in pixels of the square around the centre that holds a share of the sum of squares."""
    rows, columns = (np.abs(np.arange(n) - c) for n, c in zip(field.shape, centre, strict=True))
    distance = np.maximum(rows[:, None], columns).ravel()
    order = distance.argsort()
    energy = np.square(field.ravel()[order]).cumsum()
    return int(2 * distance[order][np.searchsorted(energy, share * energy[-1])]) + 1


def find_centre(field: np.ndarray) -> tuple[float, float]:
    """Centre of gravity of the squared field: padding may move it off the middle of the token."""
    energy = np.square(field)
    row, column = ((np.indices(field.shape) * energy).sum((1, 2)) / energy.sum()).tolist()
    return row, column


def draw(subject: Subject, inputs: Tensor, what: str) -> Any:
    """A panel for each output, on a logarithmic scale."""
    fields = measure(subject.backbone, inputs)
    with torch.no_grad():
        grids = [x.shape[2:] for x in subject.backbone(inputs[:1]) if x.shape[3] > 1]
    height, width = inputs.shape[2:]
    title = f'Effective receptive field of {subject.title}\nover {what}, largest = 1'
    figure, axes = picture.make_panels(1, len(fields), title, height / width, 3.2)
    for i, (axis, field, grid) in enumerate(zip(axes[0], fields, grids, strict=True)):
        centre = find_centre(field)
        side = find_reach(field, centre)
        shown = np.maximum(field / max(field.max(), 1e-30), FLOOR)
        text = f'output {i + 1}, stride {height / grid[0]:g}\n'
        text += f'95 % of the squared gradient within {side} px'
        picture.show_map(axis, shown, text, log=True, lowest=FLOOR, highest=1.0)
        picture.mark(axis, centre[1] - side / 2 + 0.5, centre[0] - side / 2 + 0.5, side, side)
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
    return figure
