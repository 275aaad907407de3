"""Checks of classes and labels before the first iteration: COCO files, label maps, heads."""

import json
import logging
import random
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import TRANSFORMS
from mmengine.runner import get_priority
from PIL import Image
from torch import nn

import mmpatch
from mmpatch.engine import DataCheckHook
from mmpatch.engine.build import build_model
from mmpatch.engine.classes import check_dataset_types, check_heads
from mmpatch.engine.coco import check_coco, check_layout, check_masks
from mmpatch.engine.data import build_dataloader, check_annotation_files, check_dataset, check_paths
from mmpatch.engine.errors import SampleError, describe_mistake
from mmpatch.engine.samples import PATH_KEYS, watch_samples

pytestmark = pytest.mark.hosts
NAMES = ('apple', 'box', 'cone')
BOX = [2, 3, 10, 8]


@pytest.fixture
def warnings(tmp_path):
    """Warnings of MMEngine's current logger."""
    lines = []
    handler = logging.Handler(logging.INFO)
    handler.addFilter(lambda record: not record.getMessage().startswith('mmpatch: '))
    handler.emit = lambda record: lines.append(record.getMessage())
    MMLogger.get_instance('classes').addHandler(handler)
    MMLogger.get_instance('classes')  # the latest one is the current one
    yield lines
    MMLogger.get_instance('classes').removeHandler(handler)


def content(boxes=(BOX, BOX, BOX), names=NAMES, labels=(0, 1, 2), **changes):
    """A COCO file of one picture; ids are those of a file with gaps."""
    return {
        'images': [{'id': 5, 'file_name': 'a.jpg', 'width': 40, 'height': 30}],
        'categories': [{'id': 10 * i + 1, 'name': name} for i, name in enumerate(names)],
        'annotations': [
            {'id': i, 'image_id': 5, 'category_id': 10 * k + 1, 'bbox': list(box), 'area': 9.0}
            for i, (box, k) in enumerate(zip(boxes, labels, strict=True))
        ],
        **changes,
    }


def read(tmp_path, data, classes=NAMES, orientation=1, **settings):
    """A dataset of mmdet that reads the file."""
    from mmdet.datasets import CocoDataset

    check_annotation_files('mmdet')
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (40, 30)).save(tmp_path / 'a.jpg', exif=exif)
    (tmp_path / 'a.json').write_text(data if isinstance(data, str) else json.dumps(data))
    prefix = {'img': f'{tmp_path}/'}
    meta = {'classes': classes}
    file = str(tmp_path / 'a.json')
    steps = [{'type': f'mmdet.{name}'} for name in ('LoadImageFromFile', 'LoadAnnotations')]
    settings = {'pipeline': steps, **settings}
    return CocoDataset(ann_file=file, metainfo=meta, data_prefix=prefix, **settings)


def test_labels_have_the_names_of_the_file(tmp_path, warnings):
    dataset = read(tmp_path, content(labels=(2, 1, 1)))
    check_dataset(dataset)
    names = [NAMES[box['bbox_label']] for box in dataset.get_data_info(0)['instances']]
    assert names == ['cone', 'box', 'box']
    table = f'CocoDataset ({tmp_path}/a.json): 1 images, 3 objects: box 2, cone 1'
    assert warnings == [table, '1 of 3 classes have no object here: apple']


@pytest.mark.parametrize(
    ('names', 'classes', 'right'),
    [
        (NAMES[::-1], NAMES, "('cone', 'box', 'apple')"),  # mmdet would swap the names
        (NAMES, NAMES[::-1], "('apple', 'box', 'cone')"),
        (NAMES[1:], NAMES, "('box', 'cone')"),  # all labels would be one too low
        (NAMES, None, "('apple', 'box', 'cone')"),  # 'apple' is one of COCO's 80
        (NAMES[1:], None, "('box', 'cone')"),
    ],
)
def test_labels_that_would_get_wrong_names(tmp_path, names, classes, right):
    from mmdet.datasets import CocoDataset

    labels = range(len(names))
    data = content([BOX] * len(names), names, labels)
    with pytest.raises(ValueError) as caught:
        read(tmp_path, data, classes or CocoDataset.METAINFO['classes'])
    count = len(names)
    what = f'metainfo=dict(classes={right}) in every dataset and num_classes={count} in every head'
    assert what in str(caught.value) and 'a.json has the categories' in str(caught.value)


def test_classes_that_are_left_out_are_counted(tmp_path, warnings):
    dataset = read(tmp_path, content(labels=(0, 1, 2)), classes=('box', 'cone'))
    assert warnings == [
        f'1 categories of {tmp_path}/a.json, with 1 objects, are no classes of the dataset and '
        'are not used: apple'
    ]
    assert [box['bbox_label'] for box in dataset.get_data_info(0)['instances']] == [0, 1]
    read(tmp_path, content(names=NAMES[:2], labels=(0, 1, 1)))
    assert warnings[1:] == [f'1 classes are no categories of {tmp_path}/a.json: cone']


def test_annotations_that_mmdet_drops_are_counted(tmp_path, warnings):
    data = content([BOX, (50, 3, 4, 4), (3, 3, 0.5, 4), (3, 3, -4, 4), BOX, BOX], labels=[0] * 6)
    data['annotations'][4]['category_id'] = 7
    data['annotations'][5]['area'] = 0
    dataset = read(tmp_path, data)
    assert warnings == [
        f'5 of 6 annotations in {tmp_path}/a.json are not used: 1 lie outside their image (ids 1), '
        '2 are narrower than a pixel (ids 2, 3), 1 have a category_id that the file does not list '
        '(ids 4), 1 have area 0 (ids 5)'
    ]
    assert len(dataset.get_data_info(0)['instances']) == 1
    read(tmp_path, content([BOX, BOX, (30, 3, 30, 8)]))
    assert 'reach beyond their image by more than 2 % and are clipped: ids 2' in warnings[1]


@pytest.mark.parametrize(
    ('data', 'error'),
    [
        ('', r'a\.json is no JSON, or cut off: Expecting value'),
        (json.dumps(content())[:90], r'a\.json is no JSON, or cut off: '),
        ('[]', r'a\.json does not hold the dict of a COCO file'),
        ({}, r'a\.json has no list of images; it must be laid out as COCO 2017'),
        (content(images=[]), r'a\.json has no list of images'),
        (content([(1, 2, 3), BOX, BOX]), r'annotation 0 has bbox=\[1, 2, 3\], which is not four'),
        (content([(1, 2, 3, float('nan')), BOX, BOX]), r'annotation 0 has bbox=.*nan\], which is'),
        (content([('1', 2, 3, 4), BOX, BOX]), r"annotation 0 has bbox=\['1', 2, 3, 4\]"),
        (content(annotations=[{'id': 3}]), r'annotations\[0\] lacks image_id, category_id, bbox'),
        (content(images=[{'id': 5}] * 2), r'images\[0\] lacks file_name, height, width'),
        (content(categories=[{'id': 1, 'name': 'a'}] * 2), 'several categories have the same id'),
        (content(names=('box', 'box', 'cone')), 'give every category a name of its own'),
        (content([(0.1, 0.2, 0.3, 0.4)] * 3), 'none of its 3 annotations .* in pixels'),
        (content([(20, 15, 30, 25)] * 3), '3 of 3 boxes reach beyond .* not two corners'),
        (content([], labels=[]), r'a\.json\): no image has an object that can be used'),
    ],
)
def test_files_that_cannot_train(tmp_path, data, error):
    with pytest.raises(ValueError, match=error):
        check_dataset(read(tmp_path, data))


def test_a_dataset_without_images_is_named(tmp_path):
    few = {'filter_empty_gt': True, 'min_size': 32}
    with pytest.raises(ValueError, match=r'CocoDataset \(.*a\.json\) has no image that can be use'):
        read(tmp_path, content(), filter_cfg=few)
    no_annotations = {key: value for key, value in content().items() if key != 'annotations'}
    test_dev = read(tmp_path, no_annotations, filter_cfg=few, test_mode=True)
    check_dataset(test_dev)  # files without annotations are there to predict on
    assert len(test_dev) == 1


def test_files_of_the_size_of_coco_take_seconds():
    draw = random.Random(0)
    images = [{'id': i, 'file_name': '', 'width': 640, 'height': 480} for i in range(11800)]
    rows = content([BOX] * 86000, labels=[draw.randrange(3) for _ in range(86000)], images=images)
    coco = SimpleNamespace(dataset=rows, imgs={5: images[5]}, cats={1: {}, 11: {}, 21: {}})
    start = time.process_time()
    check_layout(rows, 'a.json')
    check_coco(coco, 'a.json', NAMES)
    assert time.process_time() - start < 2  # a tenth of COCO's training set


class BoxHead(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes


class STDCHead(BoxHead):
    """A head for boundaries, as mmseg's of this name."""


class RPNHead(BoxHead):
    """A head for proposals, which mmdet's RPN has as its ``bbox_head``."""


class LinearReIDHead(BoxHead):
    """A head for identities, which mmdet's trackers have."""


def test_every_head_is_named():
    model = nn.Module()
    model.rpn_head, model.auxiliary_head = BoxHead(1), nn.ModuleList([STDCHead(2)])
    model.bbox_head = RPNHead(1)
    model.reid = nn.ModuleDict({'head': LinearReIDHead(380)})
    model.roi_head = nn.ModuleDict(
        {'bbox_head': nn.ModuleList([BoxHead(80), BoxHead(3)]), 'mask_head': BoxHead(80)}
    )
    data = SimpleNamespace(metainfo={'classes': NAMES})
    heads = 'model.roi_head.bbox_head.0.num_classes=80, model.roi_head.mask_head.num_classes=80'
    message = rf'^{heads}, but SimpleNamespace has 3 classes \(apple, box, cone\)'
    with pytest.raises(ValueError, match=message):
        check_heads(model, data)
    for head in (model.roi_head['bbox_head'][0], model.roi_head['mask_head']):
        head.num_classes = 3
    check_heads(model, data)


def test_heads_of_panoptic_data_have_its_things_or_all_classes():
    model = nn.ModuleDict({'bbox_head': BoxHead(2), 'fusion_head': BoxHead(3)})
    model['fusion_head'].num_things_classes = 2
    info = {'classes': NAMES, 'thing_classes': NAMES[:2], 'stuff_classes': NAMES[2:]}
    data = SimpleNamespace(metainfo=info)
    check_heads(model, data)
    model['bbox_head'].num_classes = 3
    with pytest.raises(ValueError, match=r'^model\.bbox_head\.num_classes=3, .* set 2 in these'):
        check_heads(model, data)
    model['fusion_head'].num_classes = 2
    message = (
        'bbox_head.* set 2 in .*fusion_head.*(num_things_classes.*)=2, .* set 3 in these heads$'
    )
    with pytest.raises(ValueError, match=message):
        check_heads(model, data)
    model['bbox_head'].num_classes, model['fusion_head'].num_classes = 1, 2
    info['classes'] = NAMES[1:]
    check_heads(model, data)
    info['classes'] = ('person', 'cone')  # of which the type does not know what they are
    check_heads(model, data)


@pytest.mark.parametrize(
    ('task', 'count'),
    [('mask-rcnn', 80), ('mask2former', 80), ('retinanet', 80), ('dino', 80), ('fpn', 150)],
)
def test_heads_of_configs_have_the_classes_of_their_data(task, count):
    name = next(n for n in mmpatch.list_configs() if n.startswith(f'poolformer/{task}'))
    cfg = Config.fromfile(mmpatch.config_path(name))
    with torch.device('meta'):
        model = build_model(cfg)
    check_heads(model, SimpleNamespace(metainfo={'classes': ['?'] * count}))
    with pytest.raises(ValueError, match='but SimpleNamespace has 3 classes'):
        check_heads(model, SimpleNamespace(metainfo={'classes': NAMES}))


def segmentation(tmp_path, maps, classes=NAMES, size=(8, 6), **settings):
    """A dataset of mmseg whose label maps are given as arrays."""
    from mmseg.datasets import BaseSegDataset
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    for i, array in enumerate(maps):
        Image.new('RGB', size).save(tmp_path / f'{i}.jpg')
        image = array if isinstance(array, Image.Image) else Image.fromarray(np.uint8(array))
        image.save(tmp_path / f'{i}.png')
    defaults = {
        'data_prefix': {'img_path': str(tmp_path), 'seg_map_path': str(tmp_path)},
        'pipeline': [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}],
    }
    return BaseSegDataset(metainfo={'classes': classes}, **{**defaults, **settings})


def rows_of(*values):
    """A label map 6 pixels high and 8 wide whose rows have these labels."""
    return np.repeat(np.uint8(values), 8).reshape(6, 8)


def test_pixels_of_classes_are_counted(tmp_path, warnings):
    maps = [rows_of(0, 0, 1, 1, 255, 255), rows_of(1, 1, 1, 1, 1, 1)]
    check_dataset(segmentation(tmp_path, maps))
    table = f'BaseSegDataset ({tmp_path}): 2 images, pixels: apple 16, box 64'
    assert warnings == [table, '1 of 3 classes have no pixel here: cone']


def test_label_0_is_no_class_on_request(tmp_path, warnings):
    labels = rows_of(0, 1, 1, 2, 2, 3)
    with pytest.raises(SampleError) as caught:
        check_dataset(segmentation(tmp_path, [labels]))
    assert str(caught.value) == (
        f'{tmp_path}/0.png has the labels 3, but there are 3 classes: 0 to 2, and 255 for pixels '
        'to ignore (reduce_zero_label=False). If label 0 is no class, set reduce_zero_label=True '
        'in the dataset'
    )
    check_dataset(segmentation(tmp_path, [labels], reduce_zero_label=True))
    assert warnings[-1].endswith('pixels: apple 16, box 16, cone 8')


@pytest.mark.parametrize(
    ('labels', 'error'),
    [
        (rows_of(0, 1, 2, 3, 7, 9), r'0\.png has the labels 3, 7, 9, but there are 3 classes'),
        (Image.new('RGB', (8, 6)), r'0\.png is a picture of mode RGB, not a label map'),
        (Image.new('I;16', (8, 6)), r'0\.png is a picture of mode I;16, not a label map'),
        (rows_of(255, 255, 255, 255, 255, 255), '1 label maps were read, and no pixel belongs'),
        (Image.new('L', (6, 8)), r'0\.png has 6x8 pixels, its image .*0\.jpg has 8x6'),
    ],
)
def test_label_maps_that_cannot_train(tmp_path, labels, error):
    with pytest.raises((ValueError, RuntimeError), match=error):
        check_dataset(segmentation(tmp_path, [labels]))


def test_fifty_maps_are_looked_at(tmp_path, warnings):
    check_dataset(segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)] * 60))
    assert '60 images; pixels of 50 label maps: apple 800' in warnings[0]


@pytest.mark.parametrize(
    ('label', 'error'),
    [
        (rows_of(0, 1, 2, 9, 1, 2), r'^\S+/5\.png has the labels 9, but there are 3 classes'),
        (Image.new('RGB', (8, 6)), r'^\S+/5\.png is a picture of mode RGB, not a label map'),
        (Image.new('I;16', (8, 6)), r'^\S+/5\.png is a picture of mode I;16, not a label map'),
    ],
)
@pytest.mark.parametrize('settings', [{}, {'serialize_data': False}])
def test_every_map_is_checked_when_it_is_read(tmp_path, label, error, settings):
    """With a host's loop by iteration, workers start before the first fifty are looked at."""
    dataset = segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)] * 60, **settings)
    (label if isinstance(label, Image.Image) else Image.fromarray(label)).save(tmp_path / '5.png')
    sampler = {'type': 'DefaultSampler', 'shuffle': False}
    loader = build_dataloader(
        {
            'dataset': dataset,
            'sampler': sampler,
            'batch_size': 1,
            'num_workers': 1,
            'collate_fn': {'type': 'pseudo_collate'},
        }
    )
    with pytest.raises(SampleError) as caught:
        list(loader)
    assert re.search(error, describe_mistake(caught.value))


def test_boxes_that_do_not_turn_with_their_picture(tmp_path):
    """Orientation 6 turns a picture of 40 x 30 pixels by 90 degrees."""
    load = {'type': 'LoadImageFromFile'}
    assert read(tmp_path, content(), pipeline=[load])[0]['img'].shape == (30, 40, 3)
    dataset = read(tmp_path, content(), orientation=6, pipeline=[load])
    watch_samples(dataset)
    message = r'a\.jpg has 30x40 pixels, but 40x30 in the annotations, .*color_ignore_orientation'
    with pytest.raises(SampleError, match=message):
        dataset[0]
    load['color_type'] = 'color_ignore_orientation'
    dataset = read(tmp_path, content(), orientation=6, pipeline=[load])
    watch_samples(dataset)
    assert dataset[0]['img'].shape == (30, 40, 3)
    for width, height in ((80, 60), (30, 40)):
        image = {'id': 5, 'file_name': 'a.jpg', 'width': width, 'height': height}
        dataset = read(tmp_path, content([], labels=[], images=[image]), pipeline=[load])
        watch_samples(dataset)
        message = f'has 40x30 pixels, but {width}x{height} in .* would be wrong$'
        with pytest.raises(SampleError, match=message):
            dataset[0]


@pytest.mark.parametrize('color_type', ['color', 'color_ignore_orientation'])
def test_label_maps_have_the_size_of_the_picture_that_is_read(tmp_path, color_type):
    load = {'type': 'LoadImageFromFile', 'color_type': color_type}
    steps = [load, {'type': 'LoadAnnotations'}]
    dataset = segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)], pipeline=steps)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (8, 6)).save(tmp_path / '0.jpg', exif=exif)
    is_turned = color_type == 'color'
    for read_map in (lambda: check_dataset(dataset), lambda: dataset[0]):
        with pytest.raises(SampleError, match='8x6 .* has 6x8') if is_turned else nullcontext():
            read_map()


def test_steps_inside_others_are_checked(tmp_path):
    flips = [[{'type': 'RandomFlip', 'prob': 0.0}]]
    load = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}]
    augment = {'type': 'TestTimeAug', 'transforms': [*([step] for step in load), *flips]}
    dataset = segmentation(tmp_path, [rows_of(0, 1, 2, 9, 1, 2)], pipeline=[augment])
    watch_samples(dataset)
    with pytest.raises(SampleError, match='has the labels 9'):
        dataset[0]


def test_readers_of_ones_own_may_read_other_files(tmp_path):
    from mmseg.datasets.transforms import LoadAnnotations

    class PaletteReader(LoadAnnotations):
        def _load_seg_map(self, results):
            with Image.open(results['seg_map_path']) as image:
                results['gt_seg_map'] = np.array(image)[..., 0]

    class Dataset(BaseDataset):
        def load_data_list(self):
            name = str(tmp_path / '0')
            paths = {'img_path': f'{name}.npy', 'seg_map_path': f'{name}.png'}
            return [{**paths, 'seg_fields': [], 'reduce_zero_label': False}]

    class ArrayReader:
        def __call__(self, info):
            image = np.load(info['img_path'])
            return {**info, 'img': image, 'ori_shape': image.shape[:2]}

    np.save(tmp_path / '0.npy', np.zeros((6, 8, 5)))
    for kind, mode in ((LoadAnnotations, 'L'), (PaletteReader, 'RGB')):
        Image.new(mode, (8, 6)).save(tmp_path / '0.png')
        dataset = Dataset(metainfo={'classes': NAMES}, pipeline=[ArrayReader(), kind()])
        check_dataset(dataset)
        assert dataset[0]['gt_seg_map'].shape == (6, 8)


@pytest.mark.parametrize('dtype', [np.int64, np.float32])
@pytest.mark.parametrize('other', [-1, 255, 65535, None])
def test_maps_of_ones_own_readers(tmp_path, other, dtype):
    """One number is for pixels to ignore; None is for another sample."""
    from mmseg.datasets.transforms import LoadAnnotations

    class Reader(LoadAnnotations):
        def transform(self, results):
            if other is None and results['img_path'].endswith('0.jpg'):
                return None
            labels = rows_of(0, 1, 2, 0, 1, 2).astype(dtype)
            labels[0] = other or 0
            return {**results, 'gt_seg_map': labels}

    maps = [rows_of(0, 0, 0, 0, 0, 0)] * 2
    for ignored in {other or 255, 9}:
        dataset = segmentation(tmp_path, maps, pipeline=[Reader()], ignore_index=ignored)
        passes = other in (None, ignored)
        message = rf'0\.png has the labels {other}(\.0)?, .* {ignored} for pixels to ignore'
        check_dataset(dataset)  # reads no map
        with nullcontext() if passes else pytest.raises(SampleError, match=message):
            dataset[0]


def test_maps_that_a_later_step_makes(tmp_path):
    from mmseg.datasets.transforms import LoadAnnotations

    class Reader(LoadAnnotations):
        def transform(self, results):
            return results

    check_dataset(segmentation(tmp_path, [rows_of(0, 0, 0, 0, 0, 0)], pipeline=[Reader()]))


@pytest.mark.parametrize('name', ['0.tif', '0.h5', ['0.tif', '1.tif']])
def test_pictures_that_only_their_reader_knows(tmp_path, name):
    class Dataset(BaseDataset):
        def load_data_list(self):
            paths = [str(tmp_path / part) for part in ([name] if isinstance(name, str) else name)]
            for path in paths:
                Path(path).write_bytes(b'no picture for PIL')
            image = paths if isinstance(name, list) else paths[0]
            names = {'img_path': image, 'seg_map_path': str(tmp_path / '0.png')}
            return [{**names, 'seg_fields': [], 'reduce_zero_label': False}]

    segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)])
    load = TRANSFORMS.build({'type': 'mmseg.LoadAnnotations'})
    check_dataset(Dataset(metainfo={'classes': NAMES}, pipeline=[load]))
    if isinstance(name, list):
        image = TRANSFORMS.build({'type': 'mmdet.LoadMultiChannelImageFromFiles'})
        dataset = Dataset(metainfo={'classes': NAMES}, pipeline=[image])
        (tmp_path / name[1]).unlink()
        with pytest.raises(FileNotFoundError, match=r'^1 of the files .* or empty: \S+1\.tif$'):
            check_dataset(dataset)


def test_files_inside_others_are_known_to_their_reader(tmp_path):
    class Dataset(BaseDataset):
        def load_data_list(self):
            return [{'img_path': 'all.h5/0', 'seg_map_path': 'all.h5/0'}]

    check_dataset(Dataset(metainfo={'classes': NAMES}, pipeline=[lambda info: info]))
    load = TRANSFORMS.build({'type': 'mmcv.LoadImageFromFile'})
    with pytest.raises(FileNotFoundError, match='all.h5/0'):
        check_dataset(Dataset(metainfo={'classes': NAMES}, pipeline=[load]))


@pytest.mark.parametrize('kind', ['LoadPanopticAnnotations', 'LoadAnnotations'])
def test_objects_without_masks_or_classes_of_their_own(tmp_path, monkeypatch, kind):
    """Masks of panoptic data are in PNGs; objects of RefCOCO have no class."""
    for package in ('panopticapi', 'panopticapi.utils'):  # which needs a compiler
        monkeypatch.setitem(sys.modules, package, MagicMock())

    class Dataset(BaseDataset):
        def load_data_list(self):
            name = str(tmp_path / '0.png')
            box = {'bbox': BOX, 'bbox_label': 0, 'ignore_flag': 0}
            panoptic = {'seg_map_path': name, 'instances': [box]}
            referring = {'instances': [{'mask': [], 'ignore_flag': 0}]}
            return [{'img_path': name, **info} for info in (panoptic, referring)]

    Image.new('L', (8, 6)).save(tmp_path / '0.png')
    load = TRANSFORMS.build({'type': f'mmdet.{kind}', 'with_mask': True})
    passes, message = 'Panoptic' in kind, '^1 objects of Dataset .* no usable segmentation'
    with nullcontext() if passes else pytest.raises(ValueError, match=message):
        check_dataset(Dataset(metainfo={'classes': NAMES}, pipeline=[load]))


@pytest.mark.parametrize(('mode', 'shape'), [('L', (4, 3)), ('RGB', (6, 8))])
def test_maps_of_the_wrong_shape_whatever_reads_them(tmp_path, mode, shape):
    load = {'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'imdecode_backend': 'cv2'}
    dataset = segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)], pipeline=[*load])
    watch_samples(dataset)
    Image.new(mode, shape[::-1]).save(tmp_path / '0.png')
    message = {
        'L': r'0\.png has 3x4 pixels, its image \S+/0\.jpg has 8x6$',
        'RGB': r'0\.png was read as an array of shape \(6, 8, 3\), not \(H, W\)$',
    }[mode]
    with pytest.raises(SampleError, match=message):
        dataset[0]


def test_a_pipeline_that_a_hook_sets_is_watched(tmp_path):
    """In every epoch, after hooks such as mmdet's."""
    from mmdet.engine.hooks import PipelineSwitchHook

    load = [{'type': 'LoadImageFromFile'}]
    dataset = read(tmp_path, content(), pipeline=[])
    Image.new('RGB', (20, 30)).save(tmp_path / 'a.jpg')
    loader = SimpleNamespace(dataset=dataset, persistent_workers=False)
    runner = SimpleNamespace(epoch=0, train_dataloader=loader, logger=MagicMock())
    switch, check = PipelineSwitchHook(0, load), DataCheckHook()
    assert get_priority(switch.priority) < get_priority(check.priority)
    for hook in (switch, check):
        hook.before_train_epoch(runner)
    with pytest.raises(SampleError, match='has 20x30 pixels, but 40x30'):
        dataset[0]


def test_a_size_of_zero_is_not_stated(tmp_path):
    dataset = read(tmp_path, content(), pipeline=[{'type': 'LoadImageFromFile'}])
    watch_samples(dataset)
    info = {**dataset.get_data_info(0), 'height': 0, 'width': 0}  # as in some files of VOC
    assert dataset.pipeline(info)['img'].shape == (30, 40, 3)


MASK = [[2, 3, 12, 3, 12, 11]]


@pytest.mark.parametrize('is_whole', [True, False])
def test_masks_that_are_needed(tmp_path, is_whole):
    from mmdet.evaluation import CocoMetric

    data = content()
    for annotation in data['annotations'][: 3 if is_whole else 2]:
        annotation['segmentation'] = MASK
    steps = [{'type': 'LoadImageFromFile'}, {'type': 'mmdet.LoadAnnotations', 'with_mask': True}]
    dataset = read(tmp_path, data, pipeline=steps)
    message = r'^1 objects of CocoDataset \(\S+a\.json\) have no usable segmentation, and its'
    with nullcontext() if is_whole else pytest.raises(ValueError, match=message):
        check_dataset(dataset)
    message = r'a\.json: 1 of 3 annotations have no segmentation \(ids 3\), which the metric segm'
    for metric in ('bbox', ['bbox', 'segm']):
        for classes in (NAMES, NAMES[:2]):  # the third object has no mask
            evaluator = Evaluator([CocoMetric(str(tmp_path / 'a.json'), metric)])
            evaluator.dataset_meta = {'classes': classes}
            passes = is_whole or metric == 'bbox' or classes != NAMES
            with nullcontext() if passes else pytest.raises(ValueError, match=message):
                check_masks(evaluator)


@pytest.mark.parametrize('first', [0, 1, 'a'])
def test_evaluation_counts_annotations_whatever_their_ids(tmp_path, first):
    from mmdet.evaluation import CocoMetric

    boxes = [BOX, [20, 3, 10, 8], [2, 15, 10, 8]]
    data = content(boxes, labels=(0, 0, 0))
    image = data['images'][0]['id'] = 'b' if first == 'a' else 5
    for i, annotation in enumerate(data['annotations']):
        number = f'a{i}' if first == 'a' else first + i
        annotation.update(id=number, image_id=image, **({'iscrowd': None} if i else {}))
    dataset = read(tmp_path, data, pipeline=[])
    metric = CocoMetric(str(tmp_path / 'a.json'))
    metric.dataset_meta = dataset.metainfo
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes])
    found = {'bboxes': corners, 'scores': torch.ones(3), 'labels': torch.zeros(3, dtype=int)}
    metric.process({}, [{'img_id': image, 'ori_shape': (30, 40), 'pred_instances': found}])
    assert metric.evaluate(1)['coco/bbox_mAP'] == 1


def settings_of(tmp_path, **dataset):
    (tmp_path / 'a.png').touch()
    prefix = {'img_path': str(tmp_path), 'seg_map_path': str(tmp_path)}
    dataset = {'type': 'BaseSegDataset', 'data_prefix': prefix, **dataset}
    return Config({'default_scope': 'mmseg', 'train_dataloader': {'dataset': dataset}})


PLACE = r'train_dataloader\.dataset'


@pytest.mark.parametrize(
    ('dataset', 'error'),
    [
        ({'metainfo': {'classes': 'box'}}, rf"{PLACE}.metainfo.classes='box' is one string: write"),
        (
            {'type': 'ADE20KDataset', 'metainfo': {'classes': NAMES}},
            rf"{PLACE}\.metainfo\.classes: apple, cone: not among the 150 .* type='BaseSegDataset'",
        ),
    ],
)
def test_settings_of_segmentation_data(tmp_path, dataset, error):
    import mmseg.datasets  # noqa: F401

    with pytest.raises(ValueError, match=f'^{error}'):
        check_dataset_types(settings_of(tmp_path, **dataset), ('train',))


@pytest.mark.parametrize(
    ('settings', 'error'),
    [
        ({'classes': ()}, r'BaseSegDataset has no classes; set metainfo=dict\(classes='),
        (
            {'pipeline': [{'type': 'LoadAnnotations', 'reduce_zero_label': True}]},
            'reduce_zero_label=False in the dataset, True in LoadAnnotations of its',
        ),
        ({'img_suffix': '.bmp'}, r"no file in .* ends with \.bmp; set img_suffix='\.jpg' in the"),
        (
            {'indices': 0, 'img_suffix': '0.jpg'},
            r'BaseSegDataset \(.*\) has no image that can be used',
        ),
        ({'data_prefix': None}, r'0\.jpg has no label map: set data_prefix=dict\(seg_map_path='),
    ],
)
def test_settings_of_a_dataset_that_is_built(tmp_path, settings, error):
    check_annotation_files('mmseg')
    if 'data_prefix' in settings:
        settings = {'data_prefix': {'img_path': str(tmp_path)}}
    with pytest.raises((ValueError, RuntimeError), match=error):
        check_dataset(segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)], **settings))


def test_a_loader_without_images_is_refused(tmp_path):
    """Loops by iteration would look for the first one for ever."""
    settings = {'img_suffix': '.bmp', 'serialize_data': False}
    dataset = segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)], **settings)
    sampler = {'type': 'InfiniteSampler', 'shuffle': False}
    loader = {'dataset': dataset, 'sampler': sampler, 'batch_size': 1, 'num_workers': 0}
    with pytest.raises(ValueError, match=r"no file in .* ends with \.bmp; set img_suffix='\.jpg'"):
        build_dataloader(loader)
    other = segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)], serialize_data=False)
    assert build_dataloader({**loader, 'dataset': ConcatDataset([dataset, other])})
    message = r'ends with \.bmp$'
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=message):
        settings['data_prefix'] = {'img_path': str(tmp_path / 'empty')}
        build_dataloader({**loader, 'dataset': segmentation(tmp_path, [], **settings)})


def test_settings_that_a_class_of_ones_own_makes(tmp_path):
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    class Drawn(LoadAnnotations):
        """Draws polygons into a map of the size of the picture."""

        def transform(self, info):
            return {**info, 'gt_seg_map': np.zeros(info['img_shape'], np.uint8)}

    class Listed(BaseSegDataset):
        METAINFO: ClassVar = {}

        def __init__(self, **kwargs):
            kwargs['metainfo'] = {'classes': NAMES}
            super().__init__(reduce_zero_label=True, img_suffix='.bmp', **kwargs)

        def load_data_list(self):
            return [{'img_path': str(tmp_path / '0.jpg'), 'seg_fields': []}]

    segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)])
    dataset = {'type': Listed, 'data_root': str(tmp_path), 'subset': 'a'}
    cfg = Config({'default_scope': 'mmseg', 'train_dataloader': {'dataset': dataset}})
    check_dataset_types(cfg, ('train',))
    load = TRANSFORMS.build({'type': 'LoadImageFromFile'})
    made = Listed(pipeline=[load, Drawn(reduce_zero_label=True)])
    made.dataset, made.datasets = 'a part', ['several', 'parts']  # is no wrapper
    check_dataset(made)
    assert made[0]['gt_seg_map'].shape == (6, 8)


def test_samples_that_a_dataset_prepares_itself(tmp_path):
    """A step of one's own may need what the dataset adds, and set what mmseg's reader needs."""

    class Dataset(BaseDataset):
        def load_data_list(self):
            info = {'img_path': [str(tmp_path / '0.jpg')], 'seg_fields': []}
            return [{**info, 'reduce_zero_label': True}]

        def prepare_data(self, index):
            return self.pipeline({**self.get_data_info(index), 'path': str(tmp_path / '0.png')})

    def add_path(info):
        return {**info, 'seg_map_path': info.pop('path')}

    segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)])
    load = TRANSFORMS.build({'type': 'mmseg.LoadAnnotations', 'reduce_zero_label': True})
    made = Dataset(metainfo={'classes': NAMES}, pipeline=[add_path, load])
    check_dataset(made)
    assert made[0]['gt_seg_map'].tolist() == (rows_of(0, 1, 2, 0, 1, 2) - 1).tolist()


@pytest.mark.parametrize('first', ['a step', 'a step between', 'prepare_data'])
def test_paths_that_are_completed_later(tmp_path, first):
    """By a step of one's own, or by a dataset; they are looked for when they are read."""

    class Dataset(BaseDataset):
        def load_data_list(self):
            image = tmp_path / '0.jpg' if first == 'a step between' else '0.jpg'
            info = {'img_path': str(image), 'seg_map_path': '0.png', 'seg_fields': []}
            return [{**info, 'reduce_zero_label': False}]

    class Prepared(Dataset):
        def prepare_data(self, index):
            return self.pipeline(complete(self.get_data_info(index)))

    def complete(info):
        return {**info, **{key: str(tmp_path / info[key]) for key in PATH_KEYS}}

    segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)])
    load = [TRANSFORMS.build({'type': k}) for k in ('LoadImageFromFile', 'mmseg.LoadAnnotations')]
    steps = {'a step': [complete, *load], 'a step between': [load[0], complete, load[1]]}
    kind = Prepared if first == 'prepare_data' else Dataset
    made = kind(metainfo={'classes': NAMES}, pipeline=steps.get(first, load))
    check_dataset(made)
    assert made[0]['gt_seg_map'].shape == (6, 8)
    (tmp_path / '0.png').unlink()
    with pytest.raises(SampleError, match=r'0\.png cannot be read: FileNotFoundError'):
        made[0]


def test_pipelines_that_take_several_samples(tmp_path):
    class Dataset(BaseDataset):
        def load_data_list(self):
            return [{'img_path': str(tmp_path / '0.jpg')}]

        def prepare_data(self, index):
            return self.pipeline([self.get_data_info(index)] * 2)

    made = Dataset(pipeline=[lambda several: {'number': len(several)}])
    check_dataset(made)
    assert made[0] == {'number': 2}
    made = Dataset(pipeline=[lambda several: several['number']])
    check_dataset(made)
    with pytest.raises(SampleError, match='the data pipeline failed on a sample: TypeError'):
        made[0]


@pytest.mark.parametrize('step', ['mmseg.LoadDepthAnnotation', 'mmdet.PackTrackInputs', None])
def test_classes_are_needed_where_labels_are_read(tmp_path, step):
    """Datasets of texts, depths or pictures alone have none; steps may have no text."""
    steps = [{'type': 'LoadImageFromFile'}, *([{'type': step}] if step else [])]
    settings = {'data_prefix': {'img_path': str(tmp_path)}, 'pipeline': steps}
    made = segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)], classes=(), **settings)
    watch_samples(made)
    check_dataset(made)


def test_checking_draws_no_random_numbers(tmp_path):
    steps = [{'type': 'LoadImageFromFile'}, {'type': 'RandomFlip', 'prob': 0.5}]
    steps += [{'type': 'mmseg.PhotoMetricDistortion'}, {'type': 'LoadAnnotations'}]
    state = np.random.get_state()[1].tolist()
    check_dataset(segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)], pipeline=steps))
    assert np.random.get_state()[1].tolist() == state


def test_data_without_objects_beside_others(tmp_path):
    """Hard negatives, or what semi-supervised learning reads."""
    some = read(tmp_path, content())
    none = read(tmp_path, content([], labels=[]))
    for parts in ([none, some], [some, none]):
        check_dataset(ConcatDataset(parts))  # of one file
        for part in parts:
            part.pipeline.is_checked = False
    with pytest.raises(ValueError, match=r'a\.json\): no image has an object that can be used'):
        check_dataset(ConcatDataset([read(tmp_path, content([], labels=[]))] * 2))


def test_maps_that_are_mostly_ignored(tmp_path):
    maps = [rows_of(255, 255, 255, 255, 255, 255)] * 60
    maps[-1] = rows_of(0, 1, 2, 0, 1, 2)
    check_dataset(segmentation(tmp_path, maps))


def test_evaluators_read_the_file_of_their_data(tmp_path):
    for name in ('a.json', 'b.json'):
        (tmp_path / name).write_text(name)
    (tmp_path / 'copy.json').write_text('a.json')
    dataset = {'type': 'CocoDataset', 'data_root': str(tmp_path), 'ann_file': 'a.json'}
    cfg = Config({'val_dataloader': {'dataset': dataset}, 'val_evaluator': {'ann_file': 'no.json'}})
    with pytest.raises(FileNotFoundError, match=r'^val_evaluator\.ann_file=no\.json does not exis'):
        check_paths(cfg, ('val',))
    cfg.val_evaluator = [{'ann_file': f'{tmp_path}/b.json'}]
    with pytest.raises(ValueError, match=r'b\.json is another file; set it to .*a\.json$'):
        check_paths(cfg, ('val',))
    cfg.val_evaluator = [{'ann_file': f'{tmp_path}/{name}.json'} for name in 'ab']
    with pytest.raises(ValueError, match=r'b\.json is another file; set it to .*a\.json$'):
        check_paths(cfg, ('val',))
    several = {'type': 'ConcatDataset', 'datasets': [dataset, dataset]}
    panoptic = {**dataset, 'type': 'CocoPanopticDataset'}  # whose boxes are in a file of their own
    found = cfg.val_evaluator
    for cfg.val_dataloader.dataset in (several, panoptic):
        cfg.val_evaluator = found
        check_paths(cfg, ('val',))
        cfg.val_evaluator = [*found, {'ann_file': 'no.json'}]
        with pytest.raises(FileNotFoundError, match=r'no\.json does not exist'):
            check_paths(cfg, ('val',))
    cfg.val_dataloader.dataset = dataset
    for given in (f'{tmp_path}/copy.json', [f'{tmp_path}/b.json']):  # a metric of one's own
        cfg.val_evaluator = {'ann_file': given}
        check_paths(cfg, ('val',))
    cfg.val_dataloader.dataset.update(
        ann_file=['a.json', 'b.json'], data_prefix={'img': ['a', 'b']}
    )
    check_paths(cfg, ('val',))


@pytest.mark.parametrize('kind', ['LoadAnnotations', 'LoadBiomedicalAnnotation', None])
def test_folders_of_labels_are_needed_where_they_are_read(tmp_path, kind):
    steps = [{'type': 'LoadImageFromFile'}, *([{'type': kind}] if kind else [])]
    prefix = {'img_path': str(tmp_path), 'seg_map_path': str(tmp_path / 'none')}
    dataset = {'type': 'BaseSegDataset', 'data_prefix': prefix, 'pipeline': steps}
    cfg = Config({'train_dataloader': {'dataset': dataset}})
    with pytest.raises(FileNotFoundError, match='none does not') if kind else nullcontext():
        check_paths(cfg, ('train',))
    (tmp_path / 'none').mkdir()
    settings = {'data_prefix': prefix, 'pipeline': steps}
    made = segmentation(tmp_path, [rows_of(0, 1, 2, 0, 1, 2)], **settings)
    with pytest.raises(FileNotFoundError, match=r'none/0\.png') if kind else nullcontext():
        check_dataset(made)
