"""Draw a small COCO and a small ADE20K, to try training and evaluation on without a download.

    python tools/make_toy_data.py --out data/toy --seed 0

This writes ``data/toy/coco`` (RetinaNet, Mask R-CNN, DETR) and ``data/toy/ade`` (Semantic FPN) in
the layout, the file formats and the class names of COCO 2017 and ADE20K. The pictures are drawn:
objects of five COCO classes on textured, cluttered ground, some occluded by others, and landscapes
of eight ADE20K classes. A pixel depends only on the seed, the split and the number of its
picture.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from mmpatch.engine.errors import report_errors

Rng = np.random.Generator
SIZES = ((192, 144), (176, 160), (160, 160), (144, 176), (208, 144))  # width, height
FINE = 16  # cv2 draws at 1/16 pixel
LINE = cv2.LINE_8


def noise(rng: Rng, height: int, width: int, cell: float, stretch: float = 1.0) -> np.ndarray:
    """Smooth noise in 0..1 of shape (height, width), with blobs of about ``cell`` pixels."""
    total = np.zeros((height, width), np.float32)
    for octave, weight in ((1, 0.6), (3, 0.4)):
        rows = int(np.ceil(height * octave / cell)) + 2
        columns = int(np.ceil(width * octave / (cell * stretch))) + 2
        grid = rng.random((rows, columns), np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return total.clip(0, 1)


def colour(
    rng: Rng, hue: tuple[int, int], sat: tuple[int, int], val: tuple[int, int]
) -> np.ndarray:
    """A random BGR colour from ranges of hue (degrees), saturation and value (percent)."""
    h, s, v = (rng.uniform(*span) for span in (hue, sat, val))
    pixel = np.float32([[[h % 360, s / 100, v / 100]]])
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0] * 255


def blend(field: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(H, W, 3) picture between two colours."""
    return low + field[..., None] * (high - low)


def filled(shape: tuple[int, int], points: np.ndarray) -> np.ndarray:
    """(H, W) bool mask of a polygon of (N, 2) points x, y."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(points * FINE).astype(np.int32)], 1, LINE, 4)
    return mask.astype(bool)


def turned(points: np.ndarray, centre: np.ndarray, size: float, angle: float) -> np.ndarray:
    """Points of the unit square [-1, 1]^2, scaled to ``size`` pixels across, turned and moved."""
    c, s = np.cos(angle), np.sin(angle)
    return centre + points @ np.array([[c, s], [-s, c]]) * size / 2


def ring(count: int, radius: float = 1.0, phase: float = 0.0) -> np.ndarray:
    """(count, 2) points on a circle."""
    angles = phase + np.arange(count) * 2 * np.pi / count
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


# --- objects: each paints itself over `picture` (H, W, 3) and returns its (H, W) mask -------------


def sports_ball(picture: np.ndarray, rng: Rng, centre: np.ndarray, size: float) -> np.ndarray:
    mask = filled(picture.shape[:2], turned(ring(32), centre, size, 0))
    base = colour(rng, (0, 360), (60, 90), (60, 95))
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    across = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    stripe = np.sin(across * 7 / size) > 0.3
    picture[mask] = base
    picture[mask & stripe] = (240, 240, 240)
    return mask


def stop_sign(picture: np.ndarray, rng: Rng, centre: np.ndarray, size: float) -> np.ndarray:
    angle = rng.uniform(-0.15, 0.15)
    shape = picture.shape[:2]
    mask = filled(shape, turned(ring(8, 1.05, np.pi / 8), centre, size, angle))
    picture[mask] = (235, 235, 235)
    inner = filled(shape, turned(ring(8, 0.9, np.pi / 8), centre, size, angle))
    picture[inner] = colour(rng, (-8, 8), (75, 95), (60, 85))
    bar = np.array([[-0.65, -0.17], [0.65, -0.17], [0.65, 0.17], [-0.65, 0.17]])
    picture[filled(shape, turned(bar, centre, size, angle))] = (235, 235, 235)
    return mask


def kite(picture: np.ndarray, rng: Rng, centre: np.ndarray, size: float) -> np.ndarray:
    angle = rng.uniform(-0.5, 0.5)
    top, right, bottom, left = np.array([[0, -1], [0.75, -0.25], [0, 1], [-0.75, -0.25]])
    middle = np.array([0, -0.25])
    shape = picture.shape[:2]
    hue = rng.uniform(0, 360)
    colours = [colour(rng, (hue + turn, hue + turn), (60, 90), (70, 95)) for turn in (0, 150)]
    mask = np.zeros(shape, bool)
    for k, part in enumerate(((top, right), (right, bottom), (bottom, left), (left, top))):
        piece = filled(shape, turned(np.array([middle, *part]), centre, size, angle))
        picture[piece] = colours[k % 2]
        mask |= piece
    return mask


def traffic_light(picture: np.ndarray, rng: Rng, centre: np.ndarray, size: float) -> np.ndarray:
    angle = rng.uniform(-0.1, 0.1)
    shape = picture.shape[:2]
    case = np.array([[-0.42, -1], [0.42, -1], [0.42, 1], [-0.42, 1]])
    mask = filled(shape, turned(case, centre, size, angle))
    picture[mask] = colour(rng, (0, 360), (0, 30), (10, 25))
    lit = rng.integers(3)
    for k, hue in enumerate((0, 45, 130)):
        lamp = turned(ring(16, 0.26) + [0, 0.62 * (k - 1)], centre, size, angle)
        value = (85, 100) if k == lit else (30, 45)
        picture[filled(shape, lamp)] = colour(rng, (hue - 6, hue + 6), (80, 100), value)
    return mask


def donut(picture: np.ndarray, rng: Rng, centre: np.ndarray, size: float) -> np.ndarray:
    shape = picture.shape[:2]
    hole = filled(shape, turned(ring(24, 0.36), centre, size, 0))
    mask = filled(shape, turned(ring(32), centre, size, 0)) & ~hole
    icing = filled(shape, turned(ring(32, 0.88), centre, size, 0)) & ~hole
    picture[mask] = colour(rng, (28, 38), (55, 70), (65, 80))
    picture[icing & mask] = colour(rng, (300, 350), (30, 60), (75, 95))
    for _ in range(14):
        start = turned(ring(1, rng.uniform(0.48, 0.78), rng.uniform(0, 7)), centre, size, 0)
        sprinkle = turned(
            np.array([[-1, -0.4], [1, -0.4], [1, 0.4], [-1, 0.4]]),
            start,
            size / 11,
            rng.uniform(0, 3),
        )
        picture[filled(shape, sprinkle) & icing] = colour(rng, (0, 360), (70, 90), (80, 100))
    return mask


OBJECTS: dict[str, Callable[[np.ndarray, Rng, np.ndarray, float], np.ndarray]] = {
    'sports ball': sports_ball,
    'stop sign': stop_sign,
    'kite': kite,
    'traffic light': traffic_light,
    'donut': donut,
}


def clutter(picture: np.ndarray, rng: Rng, count: int) -> np.ndarray:
    """Paint triangles, boards and wires that belong to no class; returns their mask."""
    shape = picture.shape[:2]
    mask = np.zeros(shape, bool)
    for _ in range(count):
        centre, size = rng.random(2) * shape[::-1], rng.uniform(8, 34)
        points = (
            ring(3, 1.0, rng.uniform(0, 7)),
            np.array([[-1, -0.5], [1, -0.5], [1, 0.5], [-1, 0.5]]) * rng.uniform(0.4, 1, 2),
            np.array([[-4, -0.06], [4, -0.06], [4, 0.06], [-4, 0.06]]),
        )[rng.integers(3)]
        piece = filled(shape, turned(points, centre, size, rng.uniform(0, np.pi)))
        field = noise(rng, *shape, 9)
        low, high = (colour(rng, (0, 360), (10, 70), (20, 90)) for _ in range(2))
        picture[piece] = blend(field, low, high)[piece]
        mask |= piece
    return mask


def object_scene(rng: Rng) -> tuple[np.ndarray, list[tuple[str, np.ndarray, bool]]]:
    """A picture and its objects: class, visible mask, whether it stands for a crowd."""
    width, height = SIZES[rng.integers(len(SIZES))]
    hue = rng.uniform(0, 360)
    low = colour(rng, (hue - 30, hue + 30), (10, 45), (15, 60))
    high = colour(rng, (hue + 20, hue + 90), (10, 45), (45, 95))
    picture = blend(noise(rng, height, width, rng.uniform(18, 60), rng.uniform(1, 3)), low, high)
    clutter(picture, rng, int(rng.integers(3, 7)))
    owner = np.zeros((height, width), int)  # which object is seen at a pixel, from 1
    objects: list[tuple[str, int, bool]] = []  # class, full area, crowd
    wanted = 0 if rng.random() < 0.05 else int(rng.integers(2, 6))
    names = list(OBJECTS)
    for _ in range(wanted):
        name = names[rng.integers(len(names))]
        size = np.exp(rng.uniform(np.log(28), np.log(120)))
        for _attempt in range(10):
            centre = size * 0.4 + rng.random(2) * (np.array([width, height]) - size * 0.8).clip(1)
            if place(picture, rng, owner, objects, [(name, centre, size)], False):
                break
    if wanted and rng.random() < 0.06:
        name, start = names[rng.integers(len(names))], rng.random(2) * (width, height)
        members = [(name, start + rng.normal(0, 16, 2), rng.uniform(14, 20)) for _ in range(9)]
        place(picture, rng, owner, objects, members, True)
    for _ in range(int(rng.integers(0, 2))):  # something in front
        front = picture.copy()
        mask = clutter(front, rng, 1)
        if covers_little(owner, objects, mask):
            picture[mask], owner[mask] = front[mask], 0
    picture += rng.normal(0, 5, picture.shape)
    visible = [(name, owner == k + 1, crowd) for k, (name, _, crowd) in enumerate(objects)]
    return picture, [item for item in visible if item[1].any()]


def covers_little(owner: np.ndarray, objects: list, mask: np.ndarray) -> bool:
    """Whether every object keeps at least 0.7 of its area in sight when ``mask`` is painted."""
    seen = np.bincount(owner[~mask], minlength=len(objects) + 1)[1:]
    return all(left >= 0.7 * area for left, (_, area, _) in zip(seen, objects, strict=True))


def place(
    picture: np.ndarray, rng: Rng, owner: np.ndarray, objects: list, members: list, crowd: bool
) -> bool:
    """Paint an object, or the members of a crowd, unless it would hide another."""
    painted = picture.copy()
    mask = np.zeros(owner.shape, bool)
    for name, centre, size in members:
        mask |= OBJECTS[name](painted, rng, centre, size)
    if not mask.any() or not covers_little(owner, objects, mask):
        return False
    picture[mask] = painted[mask]
    objects.append((members[0][0], int(mask.sum()), crowd))
    owner[mask] = len(objects)
    return True


# --- landscapes -----------------------------------------------------------------------------------

#: Number of a class in ADE20K's label files; 0 is unlabelled.
ADE = {
    'building': 2,
    'sky': 3,
    'tree': 5,
    'road': 7,
    'grass': 10,
    'mountain': 17,
    'car': 21,
    'water': 22,
}


def landscape(rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its (H, W) uint8 label map."""
    width, height = SIZES[rng.integers(len(SIZES))]
    shape = (height, width)
    label = np.zeros(shape, np.uint8)
    picture = np.zeros((*shape, 3), np.float32)
    horizon = height * rng.uniform(0.35, 0.6)

    def paint(name: str, mask: np.ndarray, texture: np.ndarray) -> None:
        picture[mask] = texture[mask]
        label[mask] = ADE[name]

    def textured(cell: float, stretch: float, low: tuple, high: tuple) -> np.ndarray:
        return blend(noise(rng, *shape, cell, stretch), colour(rng, *low), colour(rng, *high))

    y, x = np.mgrid[:height, :width]
    paint(
        'sky',
        y < horizon + 2,
        textured(70, 2, ((190, 230), (15, 60), (55, 85)), ((190, 230), (5, 30), (80, 100))),
    )
    ground = 'grass' if rng.random() < 0.5 else 'water'
    grass = textured(5, 0.6, ((70, 110), (45, 75), (25, 45)), ((60, 100), (40, 70), (50, 75)))
    water = textured(6, 6, ((190, 230), (45, 70), (25, 45)), ((190, 220), (25, 50), (50, 75)))
    paint(ground, y >= horizon, grass if ground == 'grass' else water)
    if rng.random() < 0.6:
        ridge = horizon - height * 0.3 * noise(rng, 1, width, rng.uniform(30, 60))[0] ** 1.5
        rock = textured(12, 1, ((10, 40), (10, 30), (25, 45)), ((10, 60), (5, 25), (50, 70)))
        paint('mountain', (y >= ridge[None]) & (y < horizon), rock)
    if rng.random() < 0.65:
        near, far = rng.uniform(0.1, 0.9, 2) * width
        half = width * rng.uniform(0.2, 0.35)
        corners = [
            [far - half / 5, horizon],
            [far + half / 5, horizon],
            [near + half, height],
            [near - half, height],
        ]
        road = filled(shape, np.array(corners))
        paint(
            'road', road, textured(4, 1, ((0, 60), (0, 8), (28, 40)), ((0, 60), (0, 8), (45, 58)))
        )
        middle = far + (near - far) * (y - horizon) / (height - horizon)
        picture[road & (abs(x - middle) < (y - horizon) * 0.03) & (y // 8 % 2 == 0)] = 220
    for _ in range(rng.integers(0, 3)):
        building(rng, shape, horizon, paint, textured)
    for _ in range(rng.integers(0, 4)):
        tree(rng, shape, horizon, paint, textured)
    for _ in range(rng.integers(0, 4) if ADE['road'] in label or ground == 'grass' else 0):
        car(rng, shape, horizon, picture, paint)
    label[clutter(picture, rng, int(rng.integers(0, 3)))] = 0
    picture += rng.normal(0, 4, picture.shape)
    return picture, label


def building(rng: Rng, shape: tuple, horizon: float, paint: Callable, textured: Callable) -> None:
    """A block with rows of windows, standing on the ground."""
    left, wide = rng.uniform(-0.1, 0.8) * shape[1], rng.uniform(0.18, 0.4) * shape[1]
    bottom = horizon + rng.uniform(0.02, 0.12) * shape[0]
    top = bottom - rng.uniform(0.25, 0.5) * shape[0]
    y, x = np.mgrid[: shape[0], : shape[1]]
    wall = textured(25, 1, ((0, 50), (15, 60), (45, 75)), ((0, 50), (15, 50), (60, 90)))
    step = rng.integers(9, 14)
    window = ((y - int(top)) % step > step * 0.55) & ((x - int(left)) % step > step * 0.45)
    wall[window] = colour(rng, (190, 230), (10, 50), (15, 35))
    paint('building', (x > left) & (x < left + wide) & (y > top) & (y < bottom), wall)


def tree(rng: Rng, shape: tuple, horizon: float, paint: Callable, textured: Callable) -> None:
    """A crown of coarse green on a trunk."""
    size = rng.uniform(0.2, 0.42) * shape[0]
    foot = np.array([rng.random() * shape[1], horizon + rng.uniform(0.0, 0.25) * shape[0]])
    trunk = foot + np.array([[-0.07, 0], [0.07, 0], [0.07, -0.7], [-0.07, -0.7]]) * size
    bark = textured(4, 0.5, ((15, 30), (40, 60), (15, 25)), ((15, 30), (40, 60), (25, 40)))
    paint('tree', filled(shape, trunk), bark)
    outline = ring(40) * (0.8 + 0.35 * rng.random((40, 1)))
    crown = turned(outline * [0.85, 1.1], foot - [0, size], size, 0)
    leaves = textured(9, 1, ((90, 140), (50, 80), (10, 25)), ((80, 130), (45, 70), (35, 55)))
    paint('tree', filled(shape, crown), leaves)


def car(rng: Rng, shape: tuple, horizon: float, picture: np.ndarray, paint: Callable) -> None:
    """A car from the side."""
    size = rng.uniform(0.16, 0.34) * shape[1]
    centre = np.array([rng.random() * shape[1], rng.uniform(horizon + size * 0.2, shape[0])])
    body = np.array(
        [
            [-1, 0.3],
            [-1, -0.05],
            [-0.6, -0.12],
            [-0.4, -0.45],
            [0.35, -0.45],
            [0.62, -0.1],
            [1, 0],
            [1, 0.3],
        ]
    )
    paint_of = np.broadcast_to(colour(rng, (0, 360), (65, 95), (50, 95)), (*shape, 3))
    paint('car', filled(shape, turned(body, centre, size, 0)), paint_of)
    glass = np.array([[-0.5, -0.12], [-0.34, -0.38], [0.3, -0.38], [0.5, -0.12]])
    picture[filled(shape, turned(glass, centre, size, 0))] = (70, 60, 50)
    for side in (-0.55, 0.55):
        wheel = filled(shape, turned(ring(20, 0.24) + [side, 0.3], centre, size, 0))
        paint('car', wheel, np.full((*shape, 3), 25.0))


# --- writing --------------------------------------------------------------------------------------


def rle(mask: np.ndarray) -> dict:
    """Uncompressed run lengths, column by column, as COCO stores its crowds."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {'counts': counts.tolist(), 'size': list(mask.shape)}


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of the parts of a mask; empty if polygons cannot say it (holes, specks)."""
    fine = 4  # a contour runs through the centres of pixels: make these small
    large = np.kron(mask, np.ones((fine, fine), np.uint8))
    contours, tree = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    smooth = [cv2.approxPolyDP(contour, 1.5, True) for contour in contours]
    if (tree[0, :, 3] >= 0).any() or any(len(contour) < 3 for contour in smooth):
        return []
    return [((contour.ravel() + 0.5) / fine).round(2).tolist() for contour in smooth]


def annotation(number: int, image: int, category: int, mask: np.ndarray, crowd: bool) -> dict:
    """One COCO annotation. Masks with holes, and crowds, are run lengths, the rest polygons."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    outline = [] if crowd else polygons(mask)
    return {
        'id': number,
        'image_id': image,
        'category_id': category,
        'bbox': [
            float(columns[0]),
            float(rows[0]),
            float(columns[-1] - columns[0] + 1),
            float(rows[-1] - rows[0] + 1),
        ],
        'area': float(mask.sum()),
        'iscrowd': int(crowd),
        'segmentation': outline or rle(mask),
    }


def coco_categories() -> list[dict]:
    """The 80 categories of COCO with its own ids, which have gaps."""
    from mmdet.datasets import CocoDataset

    ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    names = CocoDataset.METAINFO['classes']
    return [{'id': i, 'name': name} for i, name in zip(ids, names, strict=True)]


def write_jpeg(path: Path, picture: np.ndarray) -> None:
    cv2.imwrite(str(path), picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])


def write_coco(root: Path, split: str, count: int, seed: int) -> None:
    """``{split}2017/*.jpg`` and ``annotations/instances_{split}2017.json`` below ``root``."""
    folder = root / f'{split}2017'
    folder.mkdir(parents=True, exist_ok=True)
    (root / 'annotations').mkdir(exist_ok=True)
    categories = coco_categories()
    ids = {category['name']: category['id'] for category in categories}
    images: list[dict] = []
    annotations: list[dict] = []
    for number in range(1, count + 1):
        picture, objects = object_scene(np.random.default_rng([seed, split == 'val', 0, number]))
        name = f'{number:012}.jpg'
        write_jpeg(folder / name, picture)
        height, width = picture.shape[:2]
        images.append({'id': number, 'file_name': name, 'height': height, 'width': width})
        for class_name, mask, crowd in objects:
            annotations.append(
                annotation(len(annotations) + 1, number, ids[class_name], mask, crowd)
            )
    content = {
        'info': {'description': f'mmpatch toy set in the layout of COCO 2017, seed {seed}'},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }
    (root / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(content))


def write_ade(root: Path, split: str, count: int, seed: int) -> None:
    """``images/{split}/*.jpg`` and ``annotations/{split}/*.png`` below ``root``."""
    images, annotations = root / 'images' / split, root / 'annotations' / split
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    short = {'training': 'train', 'validation': 'val'}[split]
    for number in range(1, count + 1):
        picture, label = landscape(np.random.default_rng([seed, split == 'validation', 1, number]))
        write_jpeg(images / f'ADE_{short}_{number:08}.jpg', picture)
        cv2.imwrite(str(annotations / f'ADE_{short}_{number:08}.png'), label)


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path('data/toy'), help='folder to write')
    parser.add_argument('--seed', type=int, default=0, help='seed of all pictures')
    parser.add_argument('--train', type=int, default=480, help='pictures to train on, each set')
    parser.add_argument('--val', type=int, default=80, help='pictures to evaluate on, each set')
    args = parser.parse_args()
    if min(args.train, args.val) < 1:
        parser.error(f'--train {args.train} --val {args.val}: each set needs a picture')
    for split, count in (('train', args.train), ('val', args.val)):
        write_coco(args.out / 'coco', split, count, args.seed)
    for split, count in (('training', args.train), ('validation', args.val)):
        write_ade(args.out / 'ade', split, count, args.seed)
    print(f'{args.train} + {args.val} pictures in {args.out}/coco and in {args.out}/ade')


if __name__ == '__main__':
    main()
