"""Generated data has the layout, formats and class names of COCO and ADE20K."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from support import call_tool

TOOL = 'tools/make_toy_data.py'


@pytest.fixture(scope='module')
def coco(toy):
    return COCO(str(toy / 'coco/annotations/instances_train2017.json'))


def test_data_depends_on_the_seed_alone(toy, tmp_path, monkeypatch):
    sizes = ('--train', 2, '--val', 1)
    call_tool(monkeypatch, TOOL, '--out', tmp_path / 'same', *sizes)
    call_tool(monkeypatch, TOOL, '--out', tmp_path / 'other', *sizes, '--seed', 1)
    files = [f for f in (tmp_path / 'same').rglob('*.*') if f.suffix in ('.jpg', '.png')]
    assert len(files) == 2 * 2 + 1 * 2 + 3
    for file in files:
        name = file.relative_to(tmp_path / 'same')
        assert file.read_bytes() == (toy / name).read_bytes()
        assert file.read_bytes() != (tmp_path / 'other' / name).read_bytes()


def test_training_and_validation_differ(toy):
    train, val = (toy / f'coco/{s}2017/000000000001.jpg' for s in ('train', 'val'))
    assert train.read_bytes() != val.read_bytes()


def test_coco_lists_all_categories_and_images(toy, coco):
    assert len(coco.cats) == 80 and coco.cats[90]['name'] == 'toothbrush'
    assert len(coco.imgs) == 12
    for image in coco.imgs.values():
        picture = cv2.imread(str(toy / 'coco/train2017' / image['file_name']))
        assert picture.shape == (image['height'], image['width'], 3)


def test_masks_boxes_and_areas_agree(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, w, h = annotation['bbox']
        assert abs(mask.sum() - annotation['area']) <= 0.02 * annotation['area'] + 10
        assert (columns[0], rows[0]) == pytest.approx((x, y), abs=1)
        assert (columns[-1] + 1, rows[-1] + 1) == pytest.approx((x + w, y + h), abs=1)


def test_masks_do_not_overlap(coco):
    for image in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(image, iscrowd=0))]
        # Polygons are filled including their border, so neighbours may share a line of pixels.
        overlap = sum(masks) > 1 if masks else np.zeros(1)
        assert overlap.mean() < 0.02


def test_large_set_has_every_kind_of_annotation(tmp_path, monkeypatch):
    call_tool(monkeypatch, TOOL, '--out', tmp_path, '--train', 120, '--val', 1)
    content = json.loads((tmp_path / 'coco/annotations/instances_train2017.json').read_text())
    annotations = content['annotations']
    assert {type(a['segmentation']) for a in annotations} == {list, dict}
    assert {a['iscrowd'] for a in annotations} == {0, 1}
    areas = np.array([a['area'] for a in annotations])
    assert (areas < 32**2).any() and (areas > 96**2).any()
    assert ((areas > 32**2) & (areas < 96**2)).any()
    assert len({(i['height'], i['width']) for i in content['images']}) > 3
    assert {i['id'] for i in content['images']} - {a['image_id'] for a in annotations}
    counts = np.bincount([a['category_id'] for a in annotations])
    assert (counts[counts > 0] > 20).all() and (counts > 0).sum() == 5


def test_ade_labels(toy):
    seen = set()
    for file in (toy / 'ade/images/training').glob('*.jpg'):
        label = cv2.imread(str(toy / 'ade/annotations/training' / f'{file.stem}.png'), -1)
        assert label.dtype == np.uint8 and label.shape == cv2.imread(str(file)).shape[:2]
        seen |= set(np.unique(label))
    assert 0 in seen and {3, 5} < seen <= {0, 2, 3, 5, 7, 10, 17, 21, 22}
