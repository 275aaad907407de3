"""What is said of a model's settings before it is built: necks, cascades, unread outputs."""

import warnings
from copy import deepcopy

import pytest
from mmengine.config import Config

import mmpatch
from mmpatch.backbones import PoolFormer
from mmpatch.engine import check_model

from support import pretrained

pytestmark = pytest.mark.hosts
RETINANET = 'poolformer/retinanet_poolformer-s12_fpn_1x_coco.py'
FOUR = [64, 128, 320, 512]


def load(name=RETINANET, **changes):
    cfg = Config.fromfile(mmpatch.config_path(name))
    cfg.merge_from_dict({f'model.{key.replace("__", ".")}': v for key, v in changes.items()})
    return cfg.model


def check(model, scope='mmdet'):
    """Messages of the warnings about the backbone."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        check_model(model, scope)
    return [str(w.message) for w in caught if 'model.backbone' in str(w.message)]


def segmentor(head, out_indices=(0, 1, 2, 3), auxiliary_head=None, **backbone):
    return {
        'type': 'EncoderDecoder',
        'backbone': {
            'type': 'mmpatch.PoolFormer',
            'depths': (1, 1, 1, 1),
            'dims': (8, 16, 24, 32),
            'out_indices': out_indices,
            **backbone,
        },
        'decode_head': head,
        'auxiliary_head': auxiliary_head,
    }


def head(kind, in_channels, in_index, **more):
    common = {'channels': 8, 'num_classes': 3, 'dropout_ratio': 0.0}
    return {'type': kind, 'in_channels': in_channels, 'in_index': in_index, **common, **more}


OCR = [
    head('FCNHead', 32, 3, num_convs=1),
    head('OCRHead', 32, 3, ocr_channels=8),
]


@pytest.mark.parametrize('kind', ['PAFPN', 'ChannelMapper'])
def test_levels_of_any_neck_are_compared_with_the_anchors(kind):
    model = load()
    neck = {'type': kind, 'in_channels': FOUR[1:], 'out_channels': 256}
    check_model({**model, 'neck': {**neck, 'num_outs': 5}}, 'mmdet')
    with pytest.raises(ValueError, match=r'have strides \[8, 16, 32, 64\]'):
        check_model({**model, 'neck': {**neck, 'num_outs': 4}}, 'mmdet')
    neck['in_channels'] = [128, 320, 500]
    with pytest.raises(ValueError, match=r'neck\.in_channels=\[128, 320, 500\], but the backbone'):
        check_model({**model, 'neck': {**neck, 'num_outs': 5}}, 'mmdet')


def test_a_backbone_given_as_a_class_is_checked():
    model = load()
    model.backbone.type = PoolFormer  # in a config that imports it
    model.neck.num_outs = 4
    with pytest.raises(ValueError, match=r'have strides \[8, 16, 32, 64\]'):
        check_model(model, 'mmdet')


@pytest.mark.parametrize(
    'strides', [[7.97, 15.7, 30.6, 61.1, 110.0], [(8, 8), (16, 16), (32, 32), (64, 64), (128, 128)]]
)
def test_anchors_of_other_forms(strides):
    """YOLACT's strides, which are no whole numbers, and strides of both sides."""
    model = load()
    model.bbox_head.anchor_generator.strides = strides
    check_model(model, 'mmdet')


def test_several_necks_in_a_row():
    model = load()
    model.neck = [model.neck, {'type': 'BFP', 'in_channels': 256, 'num_levels': 5}]
    check_model(deepcopy(model), 'mmdet')
    model.neck[0].num_outs = model.neck[1].num_levels = 4
    with pytest.raises(ValueError, match=r'have strides \[8, 16, 32, 64\]'):
        check_model(model, 'mmdet')


def test_what_does_not_run_on_the_meta_device_is_not_checked():
    model = load()
    check_model({**model, 'neck': {'type': 'PAFPN', 'in_channels': [1], 'num_outs': 5}}, 'mmdet')
    check_model({**model, 'neck': {'type': 'OfAnotherPackage', 'in_channels': 1}}, 'mmdet')
    check_model({'type': 'RetinaNet', 'backbone': {'type': 'ResNet', 'depth': 50}}, 'mmdet')
    assert not check(segmentor({'type': 'Mask2FormerHead', 'num_classes': 3}), 'mmseg')


def test_a_neck_that_starts_later_leaves_outputs_unread():
    changes = {'backbone__out_indices': (0, 1, 2, 3), 'neck__in_channels': FOUR}
    message = r'outputs of stages \[0\].*out_indices=\(1, 2, 3\).*out_norm=False'
    with pytest.warns(UserWarning, match=message):
        check_model(load(**changes, neck__start_level=1), 'mmdet')
    without_norms = load(**changes, neck__start_level=1, backbone__out_norm=False)
    assert not check(without_norms)
    with pytest.raises(ValueError, match=r'strides \[4, 8, 16, 32, 64\]'):
        check_model(load(**changes), 'mmdet')  # read, but then the anchors are wrong


@pytest.mark.parametrize(
    ('decode_head', 'unread'),
    [
        (head('PSPHead', 32, 3, pool_scales=(1, 2)), [0, 1, 2]),
        (head('FCNHead', 32, -1, num_convs=1), [0, 1, 2]),
        (head('ASPPHead', 32, 3, dilations=(1, 2)), [0, 1, 2]),
        (
            head(
                'DepthwiseSeparableASPPHead',
                in_channels=32,
                in_index=3,
                dilations=(1, 2),
                c1_in_channels=8,
                c1_channels=4,
            ),
            [1, 2],
        ),
        (head('DAHead', 32, 3, pam_channels=4), [0, 1, 2]),
        (head('FCNHead', 24, 2, num_convs=1), [0, 1, 3]),
        (head('SegformerHead', [8, 16, 24, 32], [0, 1, 2, 3]), None),
        (head('UPerHead', [8, 16, 24, 32], [0, 1, 2, 3], pool_scales=(1, 2)), None),
        (OCR, [0, 1, 2]),
    ],
)
def test_heads_that_read_fewer_levels(decode_head, unread):
    messages = check(segmentor(decode_head), 'mmseg')
    assert len(messages) == (unread is not None)
    assert unread is None or f'outputs of stages {unread}.' in messages[0]


def test_auxiliary_heads_read_levels_as_well():
    psp, fcn = head('PSPHead', 32, 3, pool_scales=(1,)), head('FCNHead', 24, 2, num_convs=1)
    (message,) = check(segmentor(psp, auxiliary_head=fcn), 'mmseg')
    assert 'outputs of stages [0, 1].' in message and 'out_indices=(2, 3)' in message
    fcn['in_index'] = 0
    psp['in_index'] = 1
    fcn['in_channels'] = 24
    assert not check(segmentor(psp, (2, 3), auxiliary_head=[fcn]), 'mmseg')


def test_unread_outputs_without_norms_matter_only_for_the_last_stage():
    psp = head('PSPHead', 32, 3, pool_scales=(1,))
    assert not check(segmentor(psp, out_norm=False), 'mmseg')
    fcn = head('FCNHead', 24, 2, num_convs=1)
    (message,) = check(segmentor(fcn, out_norm=False), 'mmseg')
    assert 'out_indices=(2,)' in message


@pytest.mark.parametrize(
    ('wrong', 'culprit'),
    [
        (head('FCNHead', 32, 4), r'decode_head\.in_index=4, but there are 4 levels'),
        (head('FCNHead', 32, 2), r'decode_head\.in_channels=32, but the levels have \[24\]'),
        ([OCR[0], head('OCRHead', 24, 3)], r'in_channels=24, but the levels have \[32\]'),
    ],
)
def test_heads_of_segmentors_that_do_not_fit(wrong, culprit):
    with pytest.raises(ValueError, match=culprit):
        check_model(segmentor(wrong), 'mmseg')
    with pytest.raises(ValueError, match=culprit.replace('decode_head', 'auxiliary_head')):
        check_model(segmentor(OCR, auxiliary_head=wrong), 'mmseg')


@pytest.mark.parametrize(
    ('part', 'argument'), [('backbone', {'depth': 50}), ('neck', {'norm_groups': 4})]
)
def test_arguments_left_over_from_an_inherited_config(part, argument):
    model = load(**{f'{part}__{key}': value for key, value in argument.items()})
    name = next(iter(argument))
    match = rf"model\.{part}: .* takes no argument '{name}'.*_delete_=True"
    with pytest.raises(ValueError, match=match):
        check_model(model, 'mmdet')


@pytest.mark.parametrize('pooled', ['token', 'average'])
def test_a_pooled_output_is_no_level(pooled):
    model = segmentor(head('FCNHead', 192, -1))
    model['backbone'] = {'type': 'mmpatch.VisionTransformer', 'arch': 'tiny', 'pooled': pooled}
    with pytest.raises(ValueError, match=f"pooled='{pooled}' adds an output.*pooled=None"):
        check_model(model, 'mmseg')


def test_pixels_of_four_channels_are_compared_with_three():
    weights = pretrained('mmpatch://poolformer-s12_in1k', adapt_input=True)
    backbone = {'type': 'mmpatch.PoolFormer', 'arch': 's12', 'in_channels': 4, 'init_cfg': weights}
    pixels = {'mean': [0.0] * 4, 'std': None}
    check_model({'backbone': backbone, 'data_preprocessor': pixels})
