"""Features: principal components of every output of a backbone as colours, and single channels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from visualization import picture
from visualization.subject import Subject


def project(features: Tensor, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Project a map on its principal components.

    Args:
        features: (C, h, w).
        count: Components.

    Returns:
        Components (h, w, count), and the share of the variance of each.
    """
    flat = features.flatten(1).T
    flat = flat - flat.mean(0)
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    shares = s.square() / s.square().sum().clamp(min=1e-12)
    lacking = max(count - len(s), 0)
    components = torch.cat([u * s, u.new_zeros(len(u), lacking)], 1)[:, :count]
    shares = torch.cat([shares, shares.new_zeros(lacking)])[:count]
    return components.unflatten(0, tuple(features.shape[1:])).numpy(), shares.numpy()


def pick_channels(features: Tensor, count: int) -> list[int]:
    """Channels of the largest variance over the places."""
    return features.flatten(1).var(1, correction=0).topk(min(count, len(features))).indices.tolist()


def to_colours(components: np.ndarray) -> np.ndarray:
    """Components as red, green and blue from 0 to 1; the outermost 2 % are cut."""
    low, high = np.percentile(components, (2, 98), axis=(0, 1))
    return ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1)


def draw(subject: Subject, photo: np.ndarray, channels: int) -> Any:
    """A row for each output: three components as colours, the first alone, then channels."""
    with torch.no_grad():
        maps = [x[0].float() for x in subject.backbone(subject.prepare(photo)) if x.shape[3] > 1]
    aspect = photo.shape[0] / photo.shape[1]
    title = f'Features of {subject.title}'
    figure, axes = picture.make_panels(len(maps), 3 + channels, title, aspect)
    for i, (row, x) in enumerate(zip(axes, maps, strict=True)):
        components, shares = project(x)
        if not i:
            picture.show_photo(row[0], photo, 'input')
        row[1].imshow(to_colours(components), interpolation='nearest')
        size = f'{x.shape[1]}x{x.shape[2]}, {x.shape[0]} channels'
        shown = f'components 1-3 as RGB ({100 * shares.sum():.0f} %)'
        row[1].set_title(f'output {i + 1}: {size}\n{shown}', fontsize=8)
        first = f'component 1 ({100 * shares[0]:.0f} %)'
        picture.show_map(row[2], components[..., 0], first)
        for axis, channel in zip(row[3:], pick_channels(x, channels), strict=False):
            picture.show_map(axis, x[channel].numpy(), f'channel {channel}')
    return figure
