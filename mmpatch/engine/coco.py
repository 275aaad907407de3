"""Checks of annotation files in COCO's format, while mmdet has them in memory."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmpatch.engine.classes import warn
from mmpatch.engine.errors import join_first

ID, NUMBER, MAX_NUMBER = (int, float, str), (int, float), 1e12
#: Keys that mmdet, and evaluation by pycocotools, read of every entry, and types of their values.
COCO_KEYS: dict[str, dict[str, Any]] = {
    'images': {'id': ID, 'file_name': str, 'height': NUMBER, 'width': NUMBER},
    'annotations': {'id': ID, 'image_id': ID, 'category_id': ID, 'bbox': list, 'area': NUMBER},
    'categories': {'id': ID, 'name': str},
}


def check_coco(coco: Any, file: str, classes: Sequence[str]) -> None:
    """Check the classes and boxes of a COCO file against the classes of the dataset that reads it.

    mmdet numbers labels in the order in which the file lists the categories, whatever the order of
    ``classes``, and drops boxes that it cannot use. Both happen in silence.

    Args:
        coco: An object of pycocotools that holds the file.
        file: Its path, for messages.
        classes: Of the dataset.

    Raises:
        ValueError: If labels would get wrong names, or no box can be used.
    """
    named = [category['name'] for category in coco.dataset['categories']]
    used = [name for name in named if name in classes]
    missing = [name for name in classes if name not in named]
    unused = [name for name in named if name not in classes]
    if used != list(classes)[: len(used)] or (missing and unused):
        right = used if used and not missing else named
        what = (
            f'{file} has the categories {join_first(named)}, and the classes of the dataset are '
            f'{join_first(classes)}'
        )
        if len(set(named)) < len(named):
            raise ValueError(f'{what}; give every category a name of its own')
        way = f'set metainfo=dict(classes={_quote(right)}) in every dataset and num_classes='
        way += f'{len(right)} in every head'
        if not (missing and unused):
            what += ': mmdet counts labels in the order of the file, so that names would be wrong'
            way += ', or list the categories in the file as the classes are'
        raise ValueError(f'{what}; {way}')
    if missing:
        warn(f'{len(missing)} classes are no categories of {file}: {join_first(missing)}')
    counts = Counter(a['category_id'] for a in coco.dataset.get('annotations', ()))
    if unused:
        lost = sum(counts[c['id']] for c in coco.dataset['categories'] if c['name'] in unused)
        warn(
            f'{len(unused)} categories of {file}, with {lost} objects, are no classes of the '
            f'dataset and are not used: {join_first(unused)}'
        )
    _check_boxes(coco, file)


def _check_boxes(coco: Any, file: str) -> None:
    lost: dict[str, list[str]] = {}
    beyond: list[str] = []
    total = 0
    for annotation in coco.dataset.get('annotations', ()):
        image = coco.imgs.get(annotation['image_id'])
        total += 1
        (x, y, w, h), name = annotation['bbox'], str(annotation['id'])
        mask, size = annotation.get('segmentation'), [*map((image or {}).get, ('height', 'width'))]
        if image and isinstance(mask, dict) and mask.get('size') != size:  # pycocotools crashes
            raise ValueError(
                f'{file}: annotation {name} has a mask of size {mask.get("size")}, its image {size}'
            )
        if image is None:
            reason = 'belong to images that the file does not list'
        elif annotation['category_id'] not in coco.cats:
            reason = 'have a category_id that the file does not list'
        elif not (w >= 1 and h >= 1):
            reason = 'are narrower than a pixel'
        elif x + w <= 0 or y + h <= 0 or x >= image['width'] or y >= image['height']:
            reason = 'lie outside their image'
        elif annotation['area'] <= 0:
            reason = 'have area 0'
        else:
            width, height = image['width'], image['height']
            if min(x / width, y / height, 1 - (x + w) / width, 1 - (y + h) / height) < -0.02:
                beyond.append(name)
            continue
        lost.setdefault(reason, []).append(name)
    count = sum(map(len, lost.values()))
    reasons = [f'{len(ids)} {why} (ids {join_first(ids)})' for why, ids in lost.items()]
    if total and count == total:
        raise ValueError(
            f'{file}: none of its {total} annotations can be used: {", ".join(reasons)}. COCO '
            'writes bbox=[x, y, width, height] in pixels'
        )
    if count:
        warn(f'{count} of {total} annotations in {file} are not used: {", ".join(reasons)}')
    if len(beyond) > total / 2:
        raise ValueError(
            f'{file}: {len(beyond)} of {total} boxes reach beyond their image (ids '
            f'{join_first(beyond)}). COCO writes bbox=[x, y, width, height] in pixels, not two '
            'corners; or width and height of the images are wrong'
        )
    if beyond:
        warn(
            f'{len(beyond)} of {total} boxes in {file} reach beyond their image by more than 2 % '
            f'and are clipped: ids {join_first(beyond)}'
        )


def check_layout(content: Any, file: str) -> None:
    """Check that the content of an annotation file is laid out as COCO's.

    Raises:
        ValueError: If a list or a key that mmdet reads is missing, a box is not four numbers, or
            two entries share an id.
    """
    if not isinstance(content, dict):
        raise ValueError(f'{file} holds a {type(content).__name__}, not the dict of a COCO file')
    for part, keys in COCO_KEYS.items():
        rows = content.get(part, [] if part == 'annotations' else None)
        if not isinstance(rows, list) or not (rows or part == 'annotations'):
            raise ValueError(f'{file} has no list of {part}; it must be laid out as COCO 2017')
        for i, row in enumerate(rows):
            place = f'{file}: {part}[{i}]'
            if lacking := [key for key in keys if not isinstance(row, dict) or key not in row]:
                raise ValueError(f'{place} lacks {", ".join(lacking)}')
            for key, kind in keys.items():
                if not (_is_number(row[key]) if kind is NUMBER else isinstance(row[key], kind)):
                    raise ValueError(f'{place} has {key}={row[key]!r:.60}, of a wrong type or size')
        if len({row['id'] for row in rows}) < len(rows):
            raise ValueError(f'{file}: several {part} have the same id; number them from 1')
    for annotation in content.get('annotations', ()):
        if len(annotation['bbox']) != 4 or not all(map(_is_number, annotation['bbox'])):
            raise ValueError(
                f'{file}: annotation {annotation["id"]} has bbox={annotation["bbox"]}, which is '
                'not four finite numbers [x, y, width, height]'
            )


def check_masks(evaluator: Any) -> None:
    """Check that every annotation has a mask where an evaluator of mmdet compares masks.

    Raises:
        ValueError: If some have none.
    """
    for metric in getattr(evaluator, 'metrics', ()):
        coco = getattr(metric, '_coco_api', None)
        if coco is None or metric.format_only or 'segm' not in getattr(metric, 'metrics', ()):
            continue
        ids = set(coco.get_cat_ids(cat_names=metric.dataset_meta['classes']))
        found = [a for a in coco.dataset.get('annotations', ()) if a['category_id'] in ids]
        if lacking := [str(a['id']) for a in found if not a.get('segmentation')]:
            where = getattr(coco, 'file', type(metric).__name__)
            raise ValueError(
                f'{where}: {len(lacking)} of {len(found)} annotations have no segmentation '
                f'(ids {join_first(lacking)}), which the metric segm needs; add them, or evaluate '
                "metric='bbox' alone"
            )


def complete_annotations(content: Any) -> None:
    """Add what pycocotools needs to evaluate: ``iscrowd``, and whole numbers from 1 as ids.

    It takes an annotation with id 0 for none, and fails on ids that are text.
    """
    annotations = content.get('annotations', ()) if isinstance(content, dict) else ()
    for annotation in annotations:
        annotation['iscrowd'] = annotation.get('iscrowd') or 0
    if not all(isinstance(a.get('id'), int) and a['id'] > 0 for a in annotations):
        for number, annotation in enumerate(annotations, 1):
            annotation['id'] = number


def _is_number(value: Any) -> bool:
    return isinstance(value, NUMBER) and abs(value) < MAX_NUMBER


def _quote(names: list[str]) -> str:
    """A tuple as one writes it into a config, cut off if it is long."""
    return repr(tuple(names)) if len(names) <= 20 else repr(tuple(names[:20]))[:-1] + ', ...)'
