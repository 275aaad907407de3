"""Tiles of large pictures: where they lie, and how what is found in them becomes one result."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Grid:
    """Square tiles that cover a picture and overlap; the last ones end where the picture does.

    Args:
        width, height: Of the picture, in pixels.
        side: Of a tile, in pixels; None for one tile over everything. A picture that is narrower
            or lower gets tiles of its own width or height.
        overlap: Share of a side that two neighbours have in common, at least.

    Attributes:
        tiles: (column, row) of each tile, row by row.
    """

    def __init__(self, width: int, height: int, side: int | None, overlap: float) -> None:
        self.lengths = width, height
        self.sides = tuple(min(side or length, length) for length in self.lengths)
        step = max(1, round((side or 0) * (1 - overlap)))
        self.starts = tuple(
            [*range(0, length - side, step), length - side]
            for length, side in zip(self.lengths, self.sides, strict=True)
        )
        columns, rows = (range(len(starts)) for starts in self.starts)
        self.tiles = [(column, row) for row in rows for column in columns]
        # A box that ends this near a tile's border may be cut.
        self.margin = (side or 0) * overlap / 16

    def get_corner(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Pixel x, y of the picture at which a tile starts."""
        return self.starts[0][tile[0]], self.starts[1][tile[1]]

    def crop(self, picture: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
        """Part (h, w, ...) of a picture (H, W, ...)."""
        x, y = self.get_corner(tile)
        return np.ascontiguousarray(picture[y : y + self.sides[1], x : x + self.sides[0]])

    def find_cut(self, tile: tuple[int, int], boxes: Tensor) -> Tensor:
        """Find boxes that end at a border of their tile and lie well inside the next tile.

        The next tile shows the whole object, or more of it. What is wider than seven eighths of
        the overlap may lie well inside neither and is never among them.

        Args:
            tile: The tile in which the boxes were found.
            boxes: (N, 4) as x1, y1, x2, y2 in pixels of the picture.

        Returns:
            (N,) bool.
        """
        cut = torch.zeros(len(boxes), dtype=torch.bool)
        for axis, (starts, side) in enumerate(zip(self.starts, self.sides, strict=True)):
            index, low, high = tile[axis], boxes[:, axis], boxes[:, axis + 2]
            if index:
                ends = low < starts[index] + self.margin
                cut |= ends & (high < starts[index - 1] + side - self.margin)
            if index + 1 < len(starts):
                ends = high > starts[index] + side - self.margin
                cut |= ends & (low > starts[index + 1] + self.margin)
        return cut

    def place(self, target: np.ndarray, tile: tuple[int, int], part: np.ndarray) -> None:
        """Copy a tile's class map (h, w) into the picture's (H, W) up to the middle of overlaps."""
        spans = []
        for starts, side, index in zip(self.starts, self.sides, tile, strict=True):
            start, before, after = starts[index], starts[:index][-1:], starts[index + 1 :][:1]
            low = (before[0] + side + start) // 2 if before else start
            high = (start + side + after[0]) // 2 if after else start + side
            spans.append((low, high, start))
        (x1, x2, x), (y1, y2, y) = spans
        target[y1:y2, x1:x2] = part[y1 - y : y2 - y, x1 - x : x2 - x]

    def paste_mask(self, mask: dict[str, Any], tile: tuple[int, int]) -> dict[str, Any]:
        """Run-length code of a mask in a tile (h, w) -> the same in the picture (H, W)."""
        from pycocotools import mask as coco

        (width, height), (x, y) = self.lengths, self.get_corner(tile)
        strip = np.zeros((height, self.sides[0]), np.int8)  # columns of the tile, in full height
        strip[y : y + self.sides[1]] = coco.decode(mask)
        # the code counts pixels down the columns, in turn outside and inside
        edges = np.flatnonzero(np.diff(strip.ravel('F'), prepend=0, append=0)) + x * height
        counts = np.diff(edges, prepend=0, append=width * height).tolist()
        size = [height, width]
        return coco.frPyObjects({'size': size, 'counts': counts}, *size)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Find the boxes (N, 4) that remain after the hosts' NMS, class by class.

    Returns:
        (K,) indices, by falling score.
    """
    from mmcv.ops import batched_nms

    settings, keep = {'type': 'nms', 'iou_threshold': iou_threshold}, [labels.new_zeros(0)]
    for label in labels.unique():
        # One class at a time: the shift that keeps classes apart costs digits of the coordinates.
        found = (labels == label).nonzero()[:, 0]
        same = torch.zeros_like(found)
        # mmcv's compiled NMS takes float32 alone
        inside = batched_nms(boxes[found].float(), scores[found].float(), same, settings)[1]
        keep.append(found[inside])
    kept = torch.cat(keep)
    return kept[scores[kept].argsort(descending=True, stable=True)]
