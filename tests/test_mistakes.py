"""Mistakes that a new user makes, each with the message that it gets: one line, no traceback."""

import json
import re
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyObject
from PIL import Image
from torch import nn

import mmpatch
from mmpatch.backbones import PoolFormer
from mmpatch.backbones.base import Backbone
from mmpatch.compat import stand_in
from mmpatch.engine.build import build_model
from mmpatch.engine.errors import report_errors
from mmpatch.engine.storage import load_strictly, load_to_train
from mmpatch.registry import MODELS

from support import ROOT, try_tool

pytestmark = pytest.mark.hosts
NAMES = ['apple', 'box', 'cone']
REMEDY = (
    'Correct them; if an inherited config brings one along, add _delete_=True to the dict that has '
    'the type. MMPATCH_TRACEBACK=1 shows where'
)

#: Two configs as users write them, for three classes of their own.
DETECTOR = """
_base_ = 'retinanet.py'
data_root = 'own/'
metainfo = dict(classes=('apple', 'box', 'cone'))
model = dict(
    backbone=dict(depths=(1, 1, 1, 1)),
    bbox_head=dict(num_classes=3),
)
own = dict(data_root=data_root, metainfo=metainfo, data_prefix=dict(img='pictures/'))
train_dataloader = dict(batch_size=2, dataset=dict(ann_file='train.json', **own))
val_dataloader = dict(batch_size=2, dataset=dict(ann_file='val.json', **own))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='own/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
"""
SEGMENTOR = """
_base_ = 'fpn.py'
data_root = 'own/'
metainfo = dict(classes=('apple', 'box', 'cone'))
model = dict(backbone=dict(depths=(1, 1, 1, 1)), decode_head=dict(num_classes=3))
train_pipeline = _base_.train_pipeline
train_pipeline[1]['reduce_zero_label'] = False
test_pipeline = _base_.test_pipeline
test_pipeline[3]['reduce_zero_label'] = False
own = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    data_prefix=dict(img_path='scenes/', seg_map_path='labels/'),
)
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline, **own))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **own))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=1, val_interval=1)
"""
#: mmdet's and mmseg's parts of them, read once.
BASES = {
    'retinanet.py': 'demo/retinanet_poolformer-nano_fpn_toy-coco.py',
    'fpn.py': 'demo/fpn_poolformer-nano_toy-ade20k.py',
    'resnet.py': 'baselines/retinanet_r50_fpn_1x_coco.py',
}
#: Start of a PNG of 65,536 x 65,536 pixels.
HUGE = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\b\0\0\0\0I\xefo?\0\0\0\0IDAT'
PRETRAINED = "model['backbone']['init_cfg'] = dict(type='Pretrained', _delete_=True, {})"


@pytest.fixture(autouse=True)
def no_pretty_text(monkeypatch):
    """Runners write their config three times, formatted, which takes a second."""
    monkeypatch.setattr(Config, 'pretty_text', '')


@pytest.fixture(scope='module')
def project(toy, tmp_path_factory):
    """A folder with both configs, and with data of three classes in own/."""
    import mmdet.utils
    import mmseg.utils

    mmdet.utils.register_all_modules(init_default_scope=False)  # so that no test pays for it
    mmseg.utils.register_all_modules(init_default_scope=False)
    folder = tmp_path_factory.mktemp('project')
    for name, config in BASES.items():
        Config.fromfile(mmpatch.config_path(config)).dump(folder / name)
    (folder / 'detector.py').write_text(DETECTOR)
    (folder / 'segmentor.py').write_text(SEGMENTOR)
    (folder / 'own').mkdir()
    for split in ('train', 'val'):
        pictures = toy / f'coco/{split}2017'
        for file in pictures.iterdir():
            target = folder / f'own/pictures/{split}{file.name}'
            target.parent.mkdir(exist_ok=True)
            shutil.copy(file, target)
        content = json.loads((toy / f'coco/annotations/instances_{split}2017.json').read_text())
        used = {37: 1, 13: 2, 38: 3}  # sports ball, stop sign, kite
        for image in content['images']:
            image['file_name'] = split + image['file_name']
        content['annotations'] = [
            {**a, 'category_id': used[a['category_id']]}
            for a in content['annotations']
            if a['category_id'] in used
        ]
        content['categories'] = [{'id': i + 1, 'name': name} for i, name in enumerate(NAMES)]
        (folder / f'own/{split}.json').write_text(json.dumps(content))
    for kind, name in (('images', 'scenes'), ('annotations', 'labels')):
        shutil.copytree(toy / f'ade/{kind}/training', folder / 'own' / name)
    for file in (folder / 'own/labels').iterdir():
        label = np.array(Image.open(file))
        three = np.select([label == 0, label < 4, label < 10], [255, 0, 1], 2)
        Image.fromarray(np.uint8(three)).save(file)
    return folder


class Project:
    """A user's folder, to make mistakes in."""

    def __init__(self, folder, setenv=None):
        self.folder = folder
        self.setenv = setenv

    def edit(self, name, change):
        """Change the text of a file, or the content of a JSON file."""
        file = self.folder / name
        if file.suffix == '.json':
            content = json.loads(file.read_text())
            change(content)
            file.write_text(json.dumps(content))
        else:
            file.write_text(change(file.read_text()))

    def run(self, tool, *arguments):
        """Status and output of a tool."""
        return try_tool(f'tools/{tool}.py', *arguments, cwd=self.folder)


def add(text, name='detector.py'):
    """Append lines to a config."""
    return lambda project: project.edit(name, lambda old: f'{old}\n{text}\n')


def replace(old, new, name='detector.py'):
    """Replace text in a config."""
    return lambda project: project.edit(name, lambda text: text.replace(old, new))


def train_data(change):
    """Change the annotations to train on."""
    return lambda project: project.edit('own/train.json', change)


def reverse(content):
    content['categories'].reverse()


def use_corners(content):
    for a in content['annotations']:
        x, y, w, h = a['bbox']
        a['bbox'] = [x, y, x + w, y + h]


def use_fractions(content):
    for a in content['annotations']:
        a['bbox'] = [value / 200 for value in a['bbox']]


def write(name, data):
    def change(project):
        (project.folder / name).parent.mkdir(exist_ok=True)
        (project.folder / name).write_bytes(data)

    return change


def remove(name):
    return lambda project: (project.folder / name).unlink()


def write_weights(name, arch, **more):
    def change(project):
        model = PoolFormer(arch, **more)
        torch.save(model.state_dict(), project.folder / name)

    return change


def write_text_for_a_tensor(project):
    cfg = Config.fromfile(project.folder / 'detector.py')
    state = build_model(cfg).state_dict()
    state['backbone.stem.conv.bias'] = 'text'
    torch.save({'state_dict': state}, project.folder / 'a.pth')


def hint(name):
    """What Python 3.13 adds to the error of a misspelt argument."""
    return f". Did you mean '{name}'?" if sys.version_info >= (3, 13) else ''


def each(*changes):
    def change(project):
        for one in changes:
            one(project)

    return change


def go_offline(project):
    project.setenv('TORCH_HOME', str(project.folder))
    for scheme in ('http', 'https'):
        project.setenv(f'{scheme}_proxy', 'http://127.0.0.1:9')


TRAIN = ('train', 'detector.py')
SEGMENT = ('train', 'segmentor.py')
TEST = ('test', 'detector.py', 'a.pth')

#: name: (what is done to the project, command, message)
MISTAKES = {
    # of the command line
    'config that is not there': (
        None,
        ('train', 'none.py'),
        "there is no file none.py, and mmpatch has no config 'none.py'; nearest: none is similar. "
        'mmpatch.list_configs() lists all',
    ),
    "host's config that is not there": (
        None,
        ('train', 'mmdet::none/none'),
        'there is no file mmdet::none/none, and file "<...>none" does not exist',
    ),
    'missing base': (
        replace('retinanet.py', 'base.py'),
        TRAIN,
        'config detector.py, or one that it inherits (_base_), cannot be read: '
        "FileNotFoundError: [Errno 2] No such file or directory: '<...>base.py'",
    ),
    'misspelt base': (
        replace('retinanet.py', 'mmpatch::demo/none.py'),
        TRAIN,
        'config detector.py, or one that it inherits (_base_), cannot be read: '
        "ValueError: mmpatch has no config 'mmpatch::demo/none.py'; nearest: none is similar. "
        'mmpatch.list_configs() lists all',
    ),
    'syntax error': (
        add('train_cfg = dict('),
        TRAIN,
        'config detector.py, or one that it inherits (_base_), cannot be read: syntax error '
        "in line 17, 'train_cfg = dict(': '(' was never closed",
    ),
    'unknown name in a config': (
        add('scale = width'),
        TRAIN,
        'config detector.py, or one that it inherits (_base_), cannot be read: NameError: name '
        "'width' is not defined (line 17 of <...>/detector.py)",
    ),
    'option without a sign': (
        None,
        (*TRAIN, '--cfg-options', 'model.depth'),
        '--cfg-options model.depth: write KEY=VALUE, without spaces around =',
    ),
    'option with a typo': (
        None,
        (*TRAIN, '--cfg-options', 'optim_wraper.optimizer.lr=1'),
        '--cfg-options optim_wraper.optimizer.lr: the config has no such setting; did you '
        'mean optim_wrapper?',
    ),
    'option deeper than the config': (
        None,
        (*TRAIN, '--cfg-options', 'train_dataloader.dataset.pipeline.9.scale=(1,1)'),
        '--cfg-options train_dataloader.dataset.pipeline.9.scale: Index 9 exceeds the length '
        'of list [<...>',
    ),
    'mixed precision of MMEngine on a CPU': (
        add("optim_wrapper = dict(type='AmpOptimWrapper')"),
        TRAIN,
        'the config asks for AmpOptimWrapper, which needs a GPU: add --amp to train in bfloat16, '
        'or --cfg-options optim_wrapper.type=OptimWrapper to train in float32',
    ),
    'scaled rate without a base': (
        add('auto_scale_lr = dict(_delete_=True)'),
        (*TRAIN, '--auto-scale-lr'),
        'detector.py has no auto_scale_lr.base_batch_size to scale from',
    ),
    'resuming from a file that is not there': (
        None,
        (*TRAIN, '--resume', 'a.pth'),
        'checkpoint a.pth does not exist',
    ),
    'resuming where the work dir was moved': (
        write('out/last_checkpoint', b'elsewhere/epoch_1.pth'),
        (*TRAIN, '--resume', '--work-dir', 'out'),
        'out/last_checkpoint names elsewhere/epoch_1.pth, which does not exist or is damaged; '
        'continue with --resume PATH. No other checkpoint in out is whole',
    ),
    # of the config
    'config of another host': (
        add("default_scope = 'mmpretrain'"),
        TRAIN,
        "detector.py: default_scope='mmpretrain' must name a host, of ('mmdet', 'mmseg')",
    ),
    'list for a scope': (
        add('default_scope = []'),
        TRAIN,
        "detector.py: default_scope=[] must name a host, of ('mmdet', 'mmseg')",
    ),
    'text for a number of threads': (
        add("env_cfg = dict(mp_cfg=dict(opencv_num_threads='3'))"),
        TRAIN,
        "detector.py cannot be run: env_cfg (mp_cfg, dist_cfg): TypeError: Argument 'nthreads' is "
        'required to be an integer (in set_multi_processing). MMPATCH_TRACEBACK=1 shows where',
    ),
    'no default scope': (
        add('default_scope = None'),
        TRAIN,
        "detector.py: default_scope=None must name a host, of ('mmdet', 'mmseg')",
    ),
    'no model': (
        write('bare.py', b"default_scope = 'mmdet'"),
        ('train', 'bare.py'),
        'bare.py has no model=dict(...): is it a config of mmdet?',
    ),
    '_delete_ forgotten': (
        each(
            replace('retinanet.py', 'resnet.py'),
            replace('depths=(1, 1, 1, 1)', "type='mmpatch.PoolFormer', arch='s12'"),
        ),
        TRAIN,
        "detector.py: model.backbone: mmpatch.PoolFormer takes no argument 'depth'. If an "
        'inherited config brings it along, add _delete_=True to this backbone',
    ),
    'misspelt backbone': (
        add("model['backbone']['type'] = 'mmpatch.Poolformer'"),
        TRAIN,
        "type='mmpatch.Poolformer' is no model that is registered; nearest: mmpatch.PoolFormer",
    ),
    'backbone without scope': (
        add("model['backbone']['type'] = 'PoolFormer'"),
        TRAIN,
        "type='PoolFormer' is no model that is registered; nearest: mmpatch.PoolFormer",
    ),
    'misspelt head': (
        add("model['bbox_head']['type'] = 'RetinaHed'"),
        TRAIN,
        "type='RetinaHed' is no model that is registered; nearest: mmdet.RetinaHead, "
        'mmdet.GARetinaHead, mmdet.SABLRetinaHead',
    ),
    'misspelt argument': (
        add("model['backbone']['drop_path'] = 0.1"),
        TRAIN,
        "detector.py: model.backbone: mmpatch.PoolFormer takes no argument 'drop_path'. If "
        'an inherited config brings it along, add _delete_=True to this backbone',
    ),
    'misspelt argument of a head': (
        add("model['bbox_head']['classes'] = 3"),
        TRAIN,
        "type='RetinaHead' cannot be built with its settings: TypeError: AnchorHead.__init__() got "
        f"an unexpected keyword argument 'classes'. {REMEDY}",
    ),
    'misspelt part of a model': (
        add("model['nek'] = dict(type='FPN')"),
        TRAIN,
        "type='RetinaNet' cannot be built with its settings: TypeError: RetinaNet.__init__() got "
        f"an unexpected keyword argument 'nek'{hint('neck')}. {REMEDY}",
    ),
    'misspelt argument of a loader': (
        add("train_dataloader['batchsize'] = 2"),
        TRAIN,
        "type='EpochBasedTrainLoop' cannot be built with its settings: TypeError: "
        "DataLoader.__init__() got an unexpected keyword argument 'batchsize'"
        f'{hint("batch_size")}. {REMEDY}',
    ),
    'number for a loader': (
        add('train_dataloader = 3'),
        TRAIN,
        'train_dataloader=3 must be a dict',
    ),
    'loader without a dataset': (
        add('train_dataloader = dict(_delete_=True, batch_size=2)'),
        TRAIN,
        'train_dataloader has no dataset',
    ),
    'list of hooks': (
        add("default_hooks = [dict(type='TimerHook')]"),
        TRAIN,
        "default_hooks=[{'type': 'TimerHook'}] must be a dict",
    ),
    'number for hooks': (
        add('custom_hooks = 3'),
        TRAIN,
        'custom_hooks=3 must be a list of dict(type=...), in the config',
    ),
    'hook on the command line': (
        None,
        (*TRAIN, '--cfg-options', "custom_hooks=[{'type':'EMAHook'}]"),
        'custom_hooks=[<...>] must be a list of dict(type=...), in the config',
    ),
    'text for a number of classes': (
        replace('num_classes=3', "num_classes='3'"),
        TRAIN,
        f"type='RetinaHead' cannot be built with its settings: TypeError: <...>. {REMEDY}",
    ),
    'number for a hook': (
        add('default_hooks = dict(timer=3)'),
        TRAIN,
        'default_hooks.timer=3 must be a dict',
    ),
    'text for a weight of a loss': (
        add("model['bbox_head']['loss_bbox'] = dict(type='L1Loss', loss_weight='1')"),
        TRAIN,
        'detector.py cannot be run: TypeError: <...>. MMPATCH_TRACEBACK=1 shows where',
    ),
    'misspelt optimizer': (
        add("optim_wrapper = dict(optimizer=dict(type='AdmW'))"),
        TRAIN,
        "type='AdmW' is no optimizer that is registered; nearest: AdamW, Adam",
    ),
    'wrong arch': (
        add("model['backbone']['arch'] = 's13'"),
        TRAIN,
        "detector.py: PoolFormer has no arch 's13'; choose from ['s12', 's24', 's36', 'm36', "
        "'m48', 's12-id', 's12-pppa', 's12-ppaa', 's12-pppf', 's12-ppff']",
    ),
    'one number for out_indices': (
        add("model['backbone']['out_indices'] = 3"),
        TRAIN,
        'detector.py: PoolFormer: out_indices=3 is one number; write (3,)',
    ),
    'blocks for out_indices': (
        add(
            "model['backbone'] = dict(_delete_=True, type='mmpatch.VisionTransformer', "
            "arch='tiny', out_indices=(2, 5, 8, 11))"
        ),
        TRAIN,
        'detector.py: VisionTransformer: out_indices=(2, 5, 8, 11) must name stages of 0..3 '
        '(4 stages); each stage is several blocks, so count stages, not blocks',
    ),
    'wrong channels of the neck': (
        add("model['neck'] = dict(in_channels=[8, 8, 8])"),
        TRAIN,
        'detector.py: model.neck.in_channels=[8, 8, 8], but the backbone gives [64, 128, '
        '192]: make them equal (out_indices of the backbone says which)',
    ),
    'drop rate in percent': (
        add("model['backbone']['drop_path_rate'] = 2"),
        TRAIN,
        'detector.py: PoolFormer: drop_path_rate=2 is not in [0, 1]',
    ),
    'number for compile': (
        add("model['backbone']['compile'] = 1"),
        TRAIN,
        "detector.py: PoolFormer: compile=1 is not True, False or dict(mode='...')",
    ),
    # of weights
    'init_cfg over one that is None': (
        add("model['backbone']['init_cfg'] = dict(type='Pretrained')"),
        TRAIN,
        'config detector.py, or one that it inherits (_base_), cannot be read: TypeError: '
        "init_cfg={'type': 'Pretrained'} in child config cannot inherit from base because "
        "init_cfg is a dict in the child config but is of type <class 'NoneType'> in base "
        'config. You may set `_delete_=True` to ignore the base config.',
    ),
    'string for init_cfg': (
        add("model['backbone']['init_cfg'] = 'mmpatch://poolformer-s12_in1k'"),
        TRAIN,
        "PoolFormer: init_cfg='mmpatch://poolformer-s12_in1k' is not a dict; write "
        "init_cfg=dict(type='Pretrained', checkpoint='mmpatch://poolformer-s12_in1k')",
    ),
    'no checkpoint in init_cfg': (
        add(PRETRAINED.format('')),
        TRAIN,
        "PoolFormer: init_cfg=dict(type='Pretrained') names no file; add "
        "checkpoint='mmpatch://NAME', a URL or a path",
    ),
    'name without mmpatch://': (
        add(PRETRAINED.format("checkpoint='poolformer-s12_in1k'")),
        TRAIN,
        'checkpoint poolformer-s12_in1k does not exist; write mmpatch://poolformer-s12_in1k',
    ),
    'misspelt name of weights': (
        add(PRETRAINED.format("checkpoint='mmpatch://poolformer-s21_in1k'")),
        TRAIN,
        'mmpatch://poolformer-s21_in1k: no published file of that name; nearest: '
        'poolformer-s24_in1k, poolformer-s12_in1k, poolformer-s36_in1k. '
        'mmpatch.checkpoint.PUBLISHED lists all 61',
    ),
    'weights that are not there': (
        add(PRETRAINED.format("checkpoint='a.pth'")),
        TRAIN,
        'checkpoint a.pth does not exist',
    ),
    'weights of another arch': (
        each(
            write_weights('a.pth', 's12', dims=(8, 8, 8, 8)),
            add(PRETRAINED.format("checkpoint='a.pth'")),
        ),
        TRAIN,
        'a.pth (mmpatch or timm MetaFormer layout) does not fit this PoolFormer; <...>',
    ),
    'weights that are a web page': (
        each(write('a.pth', b'<html>'), add(PRETRAINED.format("checkpoint='a.pth'"))),
        TRAIN,
        'a.pth is not a checkpoint but a web page; the download failed or needs a login',
    ),
    'weights without internet': (
        each(go_offline, add(PRETRAINED.format("checkpoint='mmpatch://poolformer-s12_in1k'"))),
        TRAIN,
        'https://github.com/sail-sg/poolformer/releases/download/v1.0/poolformer_s12.pth.tar '
        'cannot be downloaded (<<...>); fetch it elsewhere and put it at '
        '<...>/hub/checkpoints/bb971b00-poolformer_s12.pth.tar, or give its path (in '
        'init_cfg.checkpoint or load_from)',
    ),
    'evaluation of a file that is not there': (
        None,
        TEST,
        'checkpoint a.pth does not exist',
    ),
    'resuming from weights alone': (
        write_weights('a.pth', 's12', depths=(1, 1, 1, 1)),
        (*TRAIN, '--resume', 'a.pth'),
        'a.pth does not fit the config: no backbone.<...>. It takes what '
        'tools/train.py wrote with the same config and classes',
    ),
    'evaluation of text in the place of a tensor': (
        write_text_for_a_tensor,
        TEST,
        'a.pth does not fit the config: While copying the parameter named '
        '"backbone.stem.conv.bias", expected torch.Tensor <...>. It takes what tools/train.py '
        'wrote with the same config and classes',
    ),
    'evaluation of a backbone': (
        write_weights('a.pth', 's12'),
        TEST,
        'a.pth does not fit the config: no backbone.stem.conv.weight; <...>. It takes what '
        'tools/train.py wrote with the same config and classes',
    ),
    # of data
    'missing folder': (
        None,
        (*TRAIN, '--cfg-options', 'data_root=none'),
        'none does not exist (train data of the config). CocoDataset reads it; download it '
        'from https://cocodataset.org/#download (train2017, val2017, annotations). To train '
        'elsewhere, pass --cfg-options data_root=FOLDER; to draw a small set of the same '
        'layout, run python tools/make_toy_data.py.',
    ),
    'data root that is a file': (
        None,
        (*TRAIN, '--cfg-options', 'data_root=own/train.json'),
        'data_root=own/train.json is a file; give the folder of the data',
    ),
    'missing annotations': (
        remove('own/train.json'),
        TRAIN,
        'own/train.json does not exist (train data of the config). CocoDataset reads it; '
        'download it from https://cocodataset.org/#download (train2017, val2017, '
        'annotations). To train elsewhere, pass --cfg-options data_root=FOLDER; to draw a '
        'small set of the same layout, run python tools/make_toy_data.py.',
    ),
    'evaluator that reads other data': (
        add("val_evaluator = dict(ann_file='own/train.json')"),
        TRAIN,
        'val_evaluator.ann_file=own/train.json is another file; set it to that of the data, '
        'own/val.json',
    ),
    'empty annotations': (
        write('own/train.json', b''),
        TRAIN,
        'own/train.json is no JSON, or cut off: Expecting value: line 1 column 1 (char 0)',
    ),
    'annotations cut off': (
        write('own/train.json', b'{"images": [{"id": 1'),
        TRAIN,
        "own/train.json is no JSON, or cut off: Expecting ',' delimiter: line 1 column 21 "
        '(char 20)',
    ),
    'no objects': (
        train_data(lambda content: content.update(annotations=[])),
        TRAIN,
        'CocoDataset (own/train.json): no image has an object that can be used; the '
        'annotation file must list some, of categories that are named as the classes',
    ),
    'annotations of another encoding': (
        write('own/train.json', b'{"images": "\xff"}'),
        TRAIN,
        "own/train.json is no JSON, or cut off: 'utf-8' codec can't decode byte 0xff <...>",
    ),
    'text for an area': (
        train_data(lambda content: content['annotations'][2].update(area='9')),
        TRAIN,
        "own/train.json: annotations[2] has area='9', of a wrong type or size",
    ),
    'image without a name': (
        train_data(lambda content: content['images'][1].update(file_name=None)),
        TRAIN,
        'own/train.json: images[1] has file_name=None, of a wrong type or size',
    ),
    'list for an id': (
        train_data(lambda content: content['annotations'][0].update(category_id=[1])),
        TRAIN,
        'own/train.json: annotations[0] has category_id=[1], of a wrong type or size',
    ),
    'number for an annotation': (
        train_data(lambda content: content.update(annotations=[3])),
        TRAIN,
        'own/train.json: annotations[0] lacks id, image_id, category_id, bbox, area',
    ),
    'width that is not finite': (
        train_data(lambda content: content['images'][0].update(width=float('nan'))),
        TRAIN,
        'own/train.json: images[0] has width=nan, of a wrong type or size',
    ),
    'mask of another size': (
        train_data(
            lambda content: content['annotations'][0].update(
                segmentation={'counts': [9], 'size': [10**6, 10**6]}
            )
        ),
        TRAIN,
        'own/train.json: annotation <...> has a mask of size [1000000, 1000000], its image [<...>]',
    ),
    'label map that is too large': (
        write('own/labels/ADE_train_00000001.png', HUGE),
        SEGMENT,
        'own/labels/ADE_train_00000001.png cannot be read: DecompressionBombError: Image size '
        '(4294967296 pixels) exceeds limit of <...>',
    ),
    'missing picture': (
        remove('own/pictures/train000000000003.jpg'),
        TRAIN,
        '1 of the files that CocoDataset names are missing or empty: '
        'own/pictures/train000000000003.jpg',
    ),
    'damaged picture': (
        write('own/pictures/train000000000003.jpg', b'GIF'),
        TRAIN,
        'the data pipeline failed on own/pictures/train000000000003.jpg: AssertionError: '
        'failed to load image: own/pictures/train000000000003.jpg',
    ),
    'classes that do not fit the head': (
        replace('num_classes=3', 'num_classes=80'),
        TRAIN,
        'model.bbox_head.num_classes=80, but CocoDataset has 3 classes (apple, box, cone): '
        'set 3 in these heads',
    ),
    'classes forgotten': (
        each(
            replace('metainfo=metainfo, ', ''),
            replace('num_classes=3', 'num_classes=80'),
        ),
        TRAIN,
        'own/train.json has the categories apple, box, cone, and the classes of the dataset '
        'are person, bicycle, car, motorcycle, airplane, ...; set '
        "metainfo=dict(classes=('apple', 'box', 'cone')) in every dataset and num_classes=3 "
        'in every head',
    ),
    'class as a string': (
        replace("('apple', 'box', 'cone')", "('apple')"),
        TRAIN,
        "train_dataloader.dataset.metainfo.classes='apple' is one string: write ('apple',)",
    ),
    'categories in another order': (
        train_data(reverse),
        TRAIN,
        'own/train.json has the categories cone, box, apple, and the classes of the dataset '
        'are apple, box, cone: mmdet counts labels in the order of the file, so that names '
        "would be wrong; set metainfo=dict(classes=('cone', 'box', 'apple')) in every "
        'dataset and num_classes=3 in every head, or list the categories in the file as the '
        'classes are',
    ),
    'boxes as corners': (
        train_data(use_corners),
        TRAIN,
        'own/train.json: <...> of 23 boxes reach beyond their image (ids <...>). COCO writes '
        'bbox=[x, y, width, height] in pixels, not two corners; or width and height of the '
        'images are wrong',
    ),
    'boxes as fractions': (
        train_data(use_fractions),
        TRAIN,
        'own/train.json: none of its 23 annotations can be used: 23 are narrower than a '
        'pixel (ids <...>). COCO writes bbox=[x, y, width, height] in pixels',
    ),
    'missing label map': (
        remove('own/labels/ADE_train_00000003.png'),
        SEGMENT,
        '1 of the files that BaseSegDataset names are missing or empty: '
        'own/labels/ADE_train_00000003.png',
    ),
    'reduce_zero_label in one place': (
        add(
            "own['reduce_zero_label'] = True\ntrain_dataloader['dataset'].update(own)",
            'segmentor.py',
        ),
        SEGMENT,
        'own/labels/ADE_train_00000001.png: reduce_zero_label=True in the dataset, False in '
        'LoadAnnotations of its pipeline; set both to the same. True ignores label 0 and '
        'counts the classes from label 1',
    ),
    'labels that are no classes': (
        each(
            replace("'box', 'cone'", "'box'", 'segmentor.py'),
            replace('num_classes=3', 'num_classes=2', 'segmentor.py'),
        ),
        SEGMENT,
        'own/labels/<...>.png has the labels 2, but there are 2 classes: 0 to 1, and 255 for '
        'pixels to ignore (reduce_zero_label=False). If label 0 is no class, set '
        'reduce_zero_label=True in the dataset',
    ),
    'classes of ADE20K replaced': (
        replace('BaseSegDataset', 'ADE20KDataset', 'segmentor.py'),
        SEGMENT,
        'train_dataloader.dataset.metainfo.classes: apple, cone: not among the 150 classes '
        "of ADE20KDataset; for classes of your own set type='BaseSegDataset'",
    ),
    'pictures of another type': (
        add("train_dataloader['dataset']['img_suffix'] = '.png'", 'segmentor.py'),
        SEGMENT,
        "no file in own/scenes ends with .png; set img_suffix='.jpg' in the dataset",
    ),
    'segmentation with 150 classes': (
        replace('num_classes=3', 'num_classes=150', 'segmentor.py'),
        SEGMENT,
        'model.decode_head.num_classes=150, but BaseSegDataset has 3 classes (apple, box, '
        'cone): set 3 in these heads',
    ),
}


def matches(message, line):
    """Whether a line is the whole message, in which <...> stands for anything."""
    return re.fullmatch('.*'.join(map(re.escape, message.split('<...>'))), line)


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_gets_one_line(project, tmp_path, monkeypatch, name):
    change, (tool, *arguments), message = MISTAKES[name]
    shutil.copytree(project, tmp_path / 'project')
    user = Project(tmp_path / 'project', monkeypatch.setenv)
    if change:
        change(user)
    status, text = user.run(tool, *arguments)
    last = text.strip().splitlines()[-1]
    assert 'Traceback' not in text and status in (1, 2), text[-3000:]
    assert matches(f'error: {message}', last.removeprefix(f'{tool}.py: ')), last


#: The same for what is only dropped or likely to be wrong: name: (change, arguments, warning).
WARNINGS = {
    'BGR for weights of RGB': (
        each(
            add("model['data_preprocessor'] = dict(bgr_to_rgb=False)"),
            add(PRETRAINED.format("checkpoint='mmpatch://poolformer-s12_in1k'")),
            add("model['bbox_head']['type'] = 'RetinaHed'"),
        ),
        TRAIN,
        'model.data_preprocessor has bgr_to_rgb=False; mmpatch://poolformer-s12_in1k was trained '
        'on RGB pixels with bgr_to_rgb=True',
    ),
    'pixels of Google for others': (
        each(
            add("model['data_preprocessor'] = dict(mean=[127.5] * 3)"),
            add(PRETRAINED.format("checkpoint='mmpatch://poolformer-s12_in1k'")),
            add("model['bbox_head']['type'] = 'RetinaHed'"),
        ),
        TRAIN,
        'model.data_preprocessor has mean=[127.5, 127.5, 127.5]; mmpatch://poolformer-s12_in1k was '
        'trained on RGB pixels with mean=[123.675, 116.28, 103.53]',
    ),
    'typo in a setting': (
        add(
            "optim_wraper = dict(optimizer=dict(lr=1.0)); model['bbox_head']['type'] = 'RetinaHed'"
        ),
        TRAIN,
        'the config sets optim_wraper, which MMEngine does not read; did you mean optim_wrapper?',
    ),
    'nothing to resume': (
        add("model['bbox_head']['type'] = 'RetinaHed'"),
        (*TRAIN, '--resume'),
        '--resume: work_dirs/detector has no checkpoint yet, so training starts from the '
        'beginning; --work-dir or --resume PATH name another one',
    ),
    'box outside its picture': (
        train_data(lambda content: content['annotations'][0].update(bbox=[900, 3, 9, 9])),
        (*TRAIN, '--cfg-options', 'model.bbox_head.num_classes=80'),
        '1 of 23 annotations in own/train.json are not used: 1 lie outside their image (ids <...>)',
    ),
}


@pytest.mark.parametrize('name', WARNINGS)
def test_what_is_likely_to_be_wrong_gets_a_warning(project, tmp_path, name):
    change, (tool, *arguments), message = WARNINGS[name]
    shutil.copytree(project, tmp_path / 'project')
    user = Project(tmp_path / 'project')
    change(user)
    _, text = user.run(tool, *arguments)
    warnings = [line.split(' - ')[-1] for line in text.splitlines() if ' - WARNING - ' in line]
    assert any(matches(message, line) for line in warnings), warnings


@pytest.mark.process
def test_an_error_in_a_process_that_loads_data(project, tmp_path):
    """It arrives with a traceback in its text."""
    shutil.copytree(project, tmp_path / 'project')
    write('own/pictures/train000000000003.jpg', b'GIF')(Project(tmp_path / 'project'))
    train = ROOT / 'tools/train.py', 'detector.py', '--cfg-options'
    workers = 'train_dataloader.num_workers=1', 'train_dataloader.batch_size=12'
    env = {'PYTHONPATH': str(ROOT)}
    status, text = try_tool(*train, *workers, cwd=tmp_path / 'project', env=env)
    message = MISTAKES['damaged picture'][2]
    assert status == 1 and matches(f'error: {message}', text.splitlines()[-1])


def test_a_checkpoint_may_hold_more_than_the_model_but_not_less(tmp_path):
    """A neck, say, whose place an exported file takes."""
    model, file = nn.Linear(2, 2), str(tmp_path / 'a.pth')
    state = {'weight': torch.ones(2, 2), 'bias': torch.ones(2), 'neck.weight': torch.ones(1)}
    torch.save({'state_dict': state}, file)
    load_strictly(MagicMock(model=model), file)
    assert model.weight.eq(1).all()
    torch.save({'state_dict': {'weight': torch.ones(3, 2)}}, file)
    with pytest.raises(ValueError, match='size mismatch for weight.*; no bias. It takes'):
        load_strictly(MagicMock(model=model), file)


class Detector(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, classes)


def test_a_training_starts_from_the_whole_backbone_of_a_checkpoint(tmp_path):
    """The head may be of other classes."""
    model, file = Detector(), str(tmp_path / 'a.pth')
    runner = MagicMock(model=model, _resume=False)
    state = Detector(3).state_dict()
    torch.save({'state_dict': state}, file)
    load_to_train(runner, file)
    assert torch.equal(model.backbone.weight, state['backbone.weight'])
    torch.save({k.removeprefix('backbone.'): v for k, v in state.items()}, file)
    message = r'config: no backbone\.weight; no .*\.bias\. .* go into model\.backbone\.init_cfg'
    with pytest.raises(ValueError, match=message):
        load_to_train(runner, file)


@pytest.mark.parametrize(
    ('part', 'is_needed'),
    [
        ('backbone', True),
        ('student.backbone', True),
        ('backbone.out_norms', False),  # of outputs that another head reads
        ('backbone.norm1', True),
        ('backbone.stem.norm1', True),
        ('backbone_aux', False),
        ('head.backbones', False),
    ],
)
def test_parts_that_a_training_must_start_from(tmp_path, part, is_needed):
    file, names = str(tmp_path / 'a.pth'), part.split('.')
    torch.save({'state_dict': {'weight': torch.ones(1)}}, file)
    model = nn.Linear(2, 2)
    for name in reversed(names):
        model = nn.ModuleDict({name: model})
    runner = MagicMock(model=model, _resume=False)
    with pytest.raises(ValueError, match=part) if is_needed else nullcontext():
        load_to_train(runner, file)
    if part == 'backbone.norm1':  # an output norm where outputs are chosen, as in Swin
        model['backbone'].out_indices = (1,)
        load_to_train(runner, file)


def test_a_training_resumes_from_a_state_and_not_from_weights(tmp_path, monkeypatch):
    lines, file = [], str(tmp_path / 'a.pth')
    monkeypatch.setattr('mmpatch.engine.storage.print_log', lambda text, **_: lines.append(text))
    runner = MagicMock(model=Detector(), _resume=True, param_schedulers=[])
    state = {'state_dict': Detector().state_dict()}
    torch.save({**state, 'meta': {'epoch': 1}}, file)
    message = f'{file} holds weights, and no state to resume; .* --cfg-options load_from={file}$'
    with pytest.raises(ValueError, match=message):
        load_to_train(runner, file)
    torch.save({**state, 'meta': {'iter': 1}, 'message_hub': {}}, file)
    load_to_train(runner, file)
    assert lines[-1].startswith(f'{file} has no state of the optimizer, which starts anew')
    runner.param_schedulers = [{'type': 'LinearLR'}]
    with pytest.raises(ValueError, match=f'^{file} has no state of the schedule .*would be wrong'):
        load_to_train(runner, file)


def test_images_that_a_network_cannot_take():
    model = PoolFormer(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    message = 'PoolFormer takes normalised floating-point images, got torch.uint8: '
    with pytest.raises(TypeError, match=rf'^{message}x\.float\(\), less mean, over std$'):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=r'^PoolFormer takes \(B, 3, H, W\), got \(1, 64, 64, 3\)$'
    ):
        model(torch.zeros(1, 64, 64, 3))


def test_only_mistakes_lose_their_traceback(monkeypatch):
    message = r"^error: PoolFormer has no arch 's13'; choose from"
    with pytest.raises(SystemExit, match=message), report_errors():
        PoolFormer('s13')
    with pytest.raises(SystemExit, match='^interrupted$'), report_errors():
        raise KeyboardInterrupt
    with pytest.raises(AttributeError), report_errors():  # a fault in code of mmpatch
        mmpatch.config_path(3)
    with pytest.raises(ValueError, match='^mine$'), report_errors():  # code of others
        raise ValueError('mine')
    with pytest.raises(NotImplementedError), report_errors():  # without a message
        Backbone()._freeze()
    with pytest.raises(SystemExit, match='^error: mmcv op psamask_forward needs '), report_errors():
        stand_in.psamask_forward()
    with pytest.raises(SystemExit, match="^error: .*'/proc/none/a'$"), report_errors():
        Path('/proc/none/a').write_text('')
    missing = ConfigDict(type=LazyObject('torch.nn', 'NoSuchLayer', 'c.py, line 1'))
    message = (
        r"^error: type='NoSuchLayer' cannot be built .* Failed to import NoSuchLayer from torch"
    )
    with pytest.raises(SystemExit, match=message), report_errors():  # of a config that imports
        MODELS.build(missing)
    monkeypatch.setenv('MMPATCH_TRACEBACK', '1')
    with pytest.raises(ValueError), report_errors():
        PoolFormer('s13')
