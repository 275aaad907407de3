"""Figures of panels: titles, scales, and colours that colour-blind people can tell apart."""

import textwrap
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

#: From small to large, and around zero.
SEQUENTIAL, DIVERGING = 'viridis', 'PuOr_r'
MARK = '#E69F00'
PANEL = 2.6  # inches


def make_panels(
    rows: int, columns: int, title: str, aspect: float = 1.0, width: float = PANEL
) -> tuple[Any, Any]:
    """A figure of empty panels of an aspect (height over width), and its axes (rows, columns)."""
    letters = int(12 * columns * width)  # of one line of the title
    title = '\n'.join(
        textwrap.fill(line, letters, break_on_hyphens=False) for line in title.splitlines()
    )
    size = (
        columns * width + 0.2,
        rows * (0.85 * width * aspect + 0.45) + 0.5 + title.count('\n') * 0.2,
    )
    figure, axes = plt.subplots(*(rows, columns), figsize=size, squeeze=False, layout='constrained')
    figure.suptitle(title, fontsize=11)
    for axis in axes.flat:
        axis.axis('off')
    return figure, axes


def show_photo(axis: Any, photo: np.ndarray, title: str = '') -> None:
    axis.imshow(photo)
    axis.set_title(title, fontsize=9)


def show_map(
    axis: Any,
    values: np.ndarray,
    title: str,
    photo: np.ndarray | None = None,
    log: bool = False,
    lowest: float | None = None,
    highest: float | None = None,
    colours: str | None = None,
) -> None:
    """Draw a map (h, w) with its scale, over a photograph in grey if there is one."""
    height, width = values.shape if photo is None else photo.shape[:2]
    signed = values.min() < 0
    top = float(np.abs(values).max()) or 1.0
    norm: Any = Normalize(-top, top) if signed else Normalize(lowest, highest)
    if log:
        norm = LogNorm(lowest, highest)
    if photo is not None:
        axis.imshow(photo.mean(2), cmap='gray', vmin=-80, vmax=335)
    image = axis.imshow(
        values,
        cmap=colours or (DIVERGING if signed else SEQUENTIAL),
        norm=norm,
        alpha=None if photo is None else 0.7,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation='nearest',
    )
    axis.set_title(title, fontsize=9)
    add_scale(axis, image)


def add_scale(axis: Any, image: Any) -> None:
    """Put a scale beside a panel."""
    scale = axis.figure.colorbar(image, ax=axis, fraction=0.046, pad=0.02)
    scale.ax.tick_params(labelsize=7)
    scale.solids.set_alpha(1)
    if not isinstance(image.norm, LogNorm):
        scale.formatter.set_powerlimits((-2, 3))
        scale.ax.yaxis.get_offset_text().set_fontsize(7)
        scale.update_ticks()


def mark(axis: Any, left: float, top: float, width: float, height: float) -> None:
    """Outline a region."""
    corner = left - 0.5, top - 0.5
    axis.add_patch(Rectangle(corner, width, height, fill=False, ec='white', lw=3))
    axis.add_patch(Rectangle(corner, width, height, fill=False, ec=MARK, lw=1.5))


def save(figure: Any, file: Any) -> None:
    figure.savefig(file, dpi=120)
    plt.close(figure)
    print(file)
