"""Graphs of whole models: equal to the hosts' predictions, at sizes other than the example's."""

import copy
import importlib
import json
import re
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmpatch
from mmpatch.backbones import MetaFormer
from mmpatch.deployment.files import get_core
from mmpatch.deployment.graphs import make_graph, measure_difference
from mmpatch.deployment.symbolic import SymbolicSizes, make_openvino_extensions

import golden

SHAPES = ({0: (d := torch.export.Dim.DYNAMIC), 2: d, 3: d},)
PIXELS = {'mean': [120.0, 110.0, 100.0], 'std': [50.0, 60.0, 70.0], 'bgr_to_rgb': True}
SIZES = {'depths': (1, 1), 'dims': (8, 12), 'strides': (8, 2), 'token_mixers': 'Pooling'}
BACKBONE = {'type': 'mmpatch.MetaFormer', 'out_indices': (0, 1), **SIZES}


def make_backbone(**settings):
    return golden.randomize(MetaFormer(**SIZES, out_indices=(0, 1), **settings))


def make_detector(test_cfg=None, **head):
    """RetinaNet of two levels, with many detections."""
    from mmdet.utils import register_all_modules
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS

    register_all_modules()
    anchors = {'type': 'AnchorGenerator', 'scales': [3, 5], 'ratios': [0.5, 1.0]}
    settings = {
        'type': 'RetinaHead',
        'num_classes': 5,
        'in_channels': 8,
        'feat_channels': 8,
        'stacked_convs': 1,
        'anchor_generator': {**anchors, 'strides': [8, 16], 'center_offset': 0.5},
        'bbox_coder': {
            'type': 'DeltaXYWHBBoxCoder',
            'target_means': [0.0, 0.1, 0.0, 0.0],
            'target_stds': [0.3, 0.3, 0.2, 0.2],
        },
    }
    test = {'nms_pre': 100, 'score_thr': 0.05, 'min_bbox_size': 0, 'max_per_img': 20}
    test |= {'nms': {'type': 'nms', 'iou_threshold': 0.5}}
    model = MODELS.build(
        ConfigDict(
            type='mmdet.RetinaNet',
            data_preprocessor={'type': 'DetDataPreprocessor', 'pad_size_divisor': 32, **PIXELS},
            backbone={**BACKBONE, 'out_indices': (0,), 'norm_cfg': 'BN'},
            neck={'type': 'FPN', 'in_channels': [8], 'out_channels': 8, 'num_outs': 2},
            bbox_head={**settings, **head},
            test_cfg={**test, **(test_cfg or {})},
        )
    )
    golden.randomize(model)
    if hasattr(model.bbox_head, 'retina_cls'):  # an image of the mean colour shows nothing
        model.bbox_head.retina_cls.weight.data.mul_(4)
        model.bbox_head.retina_cls.bias.data.fill_(-6.4)
    model.dataset_meta = {'classes': tuple('abcde')}
    return model


def make_segmentor(head, backbone=BACKBONE, mode='whole', **settings):
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    rest = {'num_classes': 5, 'channels': 8, 'norm_cfg': {'type': 'BN'}}
    return golden.randomize(
        MODELS.build(
            ConfigDict(
                type='mmseg.EncoderDecoder',
                data_preprocessor={'type': 'SegDataPreProcessor', **PIXELS, **settings},
                backbone=backbone,
                decode_head={**rest, **head},
                test_cfg={'mode': mode, 'crop_size': (32, 32), 'stride': (16, 16)},
            )
        )
    )


def detect(model, pixels):
    """Prediction of mmdet for pixels in BGR, as the graph gives it."""
    inputs = model.data_preprocessor({'inputs': list(pixels)})['inputs']
    metas = [{'img_shape': tuple(pixels.shape[2:])}] * len(pixels)
    outs = model.bbox_head(model.extract_feat(inputs))
    found = model.bbox_head.predict_by_feat(*outs, batch_img_metas=metas, rescale=False)
    size = len(pixels), model.test_cfg.max_per_img
    rows = torch.zeros(*size, 4), torch.zeros(size), torch.full(size, -1)
    for i, row in enumerate(found):
        for tensor, values in zip(rows, (row.bboxes, row.scores, row.labels), strict=True):
            tensor[i, : len(values)] = values
    return rows


def segment(model, pixels):
    """Prediction of mmseg for pixels in BGR, as the graph gives it."""
    from mmseg.structures import SegDataSample

    samples = [SegDataSample() for _ in pixels]
    inputs = model.data_preprocessor({'inputs': list(pixels), 'data_samples': samples})['inputs']
    size = inputs.shape[2:]
    logits = model.inference(inputs, [{'ori_shape': size, 'img_shape': size}] * len(inputs))
    return (logits.argmax(1)[:, : pixels.shape[2], : pixels.shape[3]],)


def export(graph, x, folder, engines=('openvino', 'onnxruntime')):
    """Functions of a graph in each engine that is there, made with the example x.

    OpenVINO comes before ONNX, whose exporter leaves unbound symbols in a detector's program.
    """
    program = torch.export.export(graph, (x,), dynamic_shapes=SHAPES, strict=False)
    yield program.module()
    if 'openvino' in engines and find_spec('openvino'):
        import openvino

        model = openvino.convert_model(program, extension=make_openvino_extensions())
        compiled = get_core().compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        yield lambda y: [torch.tensor(out) for out in compiled(y.numpy()).values()]
    # The exporter of torch 2.6 cannot decompose operators of dynamic sizes.
    old = torch.__version__.startswith('2.6.')
    if 'onnxruntime' in engines and find_spec('onnxruntime') and not old:
        import onnxruntime

        torch.onnx.export(program, (), folder / 'graph.onnx', dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(folder / 'graph.onnx')
        name = session.get_inputs()[0].name
        yield lambda y: [torch.from_numpy(out) for out in session.run(None, {name: y.numpy()})]


@pytest.mark.hosts
@torch.no_grad()
def test_exported_detectors_equal_the_host_at_other_sizes(tmp_path, torch_seed):
    model = make_detector()
    graph = make_graph(model, normalize=True)
    images = [255 * torch.rand(shape) for shape in ((1, 3, 90, 133), (3, 3, 128, 65))]
    pairs = [(pixels, detect(model, pixels)) for pixels in images]
    assert all(
        (scores > 0.1).sum() > 5 and len(labels.unique()) > 1 for _, (_, scores, labels) in pairs
    )
    nothing = torch.tensor([100.0, 110.0, 120.0]).view(3, 1, 1).expand(2, 3, 70, 80)  # BGR means
    assert not detect(model, nothing)[1].any()
    for run in export(graph, 255 * torch.rand(2, 3, 101, 75), tmp_path):
        for pixels, theirs in pairs:
            ours = run(pixels)
            assert [(y.shape, y.dtype) for y in ours] == [(y.shape, y.dtype) for y in theirs]
            assert measure_difference('detector', ours, theirs, graph.score_thr) == 0
            assert (ours[1].diff(dim=1) <= 0).all()
        for ours, value in zip(run(nothing), (0, 0, -1), strict=True):
            assert (ours == value).all()


@pytest.mark.hosts
@pytest.mark.parametrize(('score_thr', 'is_warned'), [(0.05, False), (0.99, True)])
def test_a_check_without_a_box_says_so(tmp_path, monkeypatch, torch_seed, score_thr, is_warned):
    said, module = [], importlib.import_module('mmpatch.deployment.export')  # not the function
    monkeypatch.setattr(module, 'print_log', lambda line, *_, **__: said.append(line))
    model = make_detector({'score_thr': score_thr})
    mmpatch.export(model, tmp_path / 'a.pt2', input_size=(1, 3, 64, 64), dynamic=())
    assert ('so no box was compared' in said[-1]) == is_warned


@pytest.mark.hosts
@pytest.mark.parametrize(
    'test_cfg',
    [
        {'nms_pre': 7, 'max_per_img': 20},  # fewer candidates than rows
        {'nms_pre': 10000, 'max_per_img': 500},  # more than there are, in every level
        {'min_bbox_size': 40},
        {'nms': {'type': 'nms', 'iou_threshold': 0.3, 'class_agnostic': True}},
        {'score_thr': 0.0},
    ],
    ids=str,
)
@torch.no_grad()
def test_settings_of_detectors_are_honoured(test_cfg, torch_seed):
    model = make_detector(test_cfg)
    usual = make_graph(make_detector())
    graph = make_graph(model, normalize=True)
    pixels = 255 * torch.rand(2, 3, 101, 75)
    theirs = detect(model, pixels)
    ours = graph(pixels)
    rows = ours[1].shape[1]
    assert rows == min(model.test_cfg.max_per_img, 2 * model.test_cfg.nms_pre)
    assert not theirs[1][:, rows:].any()
    theirs = [y[:, :rows] for y in theirs]
    assert measure_difference('detector', ours, theirs, graph.score_thr) == 0
    assert usual.max_per_img == 20


@pytest.mark.hosts
@pytest.mark.parametrize('name, engine', [('UPerHead', 'onnxruntime'), ('FPNHead', 'openvino')])
@torch.no_grad()
def test_exported_segmentors_equal_the_host_at_other_sizes(name, engine, tmp_path, torch_seed):
    head = {'type': name, 'in_channels': (8, 12), 'in_index': (0, 1)}
    if name == 'UPerHead':  # with poolings to grids, which ONNX has not
        head |= {'align_corners': True, 'pool_scales': (1, 3)}
        model = make_segmentor(head, test_cfg={'size_divisor': 32})
        model.data_preprocessor.pad_size_divisor = 1  # as that of a fork, which ignores it, too
    else:  # with Upsample of mmseg, and conversions of sizes that OpenVINO has not
        model = make_segmentor({**head, 'feature_strides': (8, 16)})
    graph = make_graph(model, normalize=True)
    images = [255 * torch.rand(shape) for shape in ((1, 3, 74, 101), (3, 3, 67, 96))]
    for run in export(graph, 255 * torch.rand(2, 3, 71, 93), tmp_path, [engine]):
        for pixels in images:
            (ours,), theirs = run(pixels), segment(model, pixels)
            assert ours.shape == (pixels.shape[0], *pixels.shape[2:]) and ours.dtype == torch.int64
            assert len(theirs[0].unique()) > 1
            assert measure_difference('segmentor', [ours], theirs) < 1e-3


@pytest.mark.hosts
@torch.no_grad()
def test_binary_segmentors(torch_seed):
    head = {'type': 'FCNHead', 'in_channels': 12, 'in_index': 1}
    model = make_segmentor({**head, 'num_classes': 2, 'out_channels': 1, 'threshold': 0.5})
    pixels = torch.randn(1, 3, 71, 93)
    metas = [{'img_shape': pixels.shape[2:]}]
    model.decode_head.threshold = model.encode_decode(pixels, metas).sigmoid().median().item()
    (ours,) = make_graph(model)(pixels)
    theirs = model.predict(pixels)[0].pred_sem_seg.data
    assert 0 < ours.sum() < ours.numel() and torch.equal(ours, theirs.long())


@pytest.mark.hosts
@torch.no_grad()
def test_exported_pyramids(tmp_path, torch_seed):
    from mmdet.models.necks import FPN

    backbone = make_backbone()
    neck = golden.randomize(FPN([8, 12], 8, 4))  # its last levels take every second pixel
    graph = make_graph(nn.Sequential(backbone, neck))
    about = json.loads(json.dumps(graph.describe()))
    assert about['kind'] == 'pyramid' and about['input'] is None
    assert about['out_strides'] == [8, 16, 32, 64] and about['out_channels'] == [8] * 4
    assert graph.output_names == tuple(f'map{i}' for i in range(4))
    small = make_graph(nn.Sequential(backbone, neck), input_size=(1, 3, 72, 88))
    assert small.describe()['out_strides'] == [8, 16, 32, 64]  # maps of 5 and 3 rows, not of 4.5
    other = torch.randn(1, 3, 150, 210)
    for run in export(graph, torch.randn(2, 3, 135, 142), tmp_path, engines=()):
        assert measure_difference('pyramid', run(other), neck(backbone(other))) < 1e-4


@torch.no_grad()
def test_normalising_and_describing(torch_seed):
    from mmengine.model import ImgDataPreprocessor

    backbone = make_backbone()
    preprocessor = ImgDataPreprocessor(**PIXELS)
    plain = make_graph(backbone, preprocessor=preprocessor)
    whole = make_graph(backbone, normalize=True, preprocessor=preprocessor)
    pixels = 255 * torch.rand(2, 3, 64, 96)
    inputs = preprocessor({'inputs': pixels})['inputs']
    for a, b, c in zip(plain(inputs), whole(pixels), backbone(inputs), strict=True):
        assert torch.equal(a, c) and torch.equal(b, c)
    maps = {'kind': 'backbone', 'out_channels': [8, 12], 'out_strides': [8, 16]}
    assert whole.describe() == {**maps, 'input': {'range': [0, 255], 'channels': 'BGR'}}
    values = {key: PIXELS[key] for key in ('mean', 'std')}
    assert plain.describe() == {**maps, 'input': {'channels': 'RGB', **values}}
    with pytest.raises(ValueError, match='MetaFormer has no mean of pixels: normalize=True needs'):
        make_graph(backbone, normalize=True)
    with pytest.raises(ValueError, match='Conv2d does not give a tuple of maps'):
        make_graph(nn.Conv2d(3, 4, 3))


@pytest.mark.hosts
def test_the_model_itself_stays_as_it_was(torch_seed):
    head = {'type': 'FPNHead', 'in_channels': (8, 12), 'in_index': (0, 1)}
    model = make_segmentor({**head, 'feature_strides': (8, 16)}).train()
    before = copy.deepcopy(model)
    graph = make_graph(model)
    assert str(model) == str(before) and model.training and not graph.training
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)
    )
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert make_graph(make_detector()).describe()['classes'] == list('abcde')


@pytest.mark.hosts
def test_what_cannot_be_exported_is_named():
    from mmdet.registry import MODELS

    def make_own_head():
        model = make_detector()
        kind = type(model.bbox_head)
        model.bbox_head.__class__ = type('OwnHead', (kind,), {'_bbox_post_process': None})
        return model

    advice = '; export its backbone, or nn.Sequential(backbone, neck)'
    fcn = {'type': 'FCNHead', 'in_channels': 12, 'in_index': 1}
    for make, reason in (
        (lambda: make_segmentor(fcn, mode='slide'), 'test_cfg.mode=\'slide\' is not "whole"'),
        (lambda: make_segmentor(fcn, test_cfg={'size': (64, 64)}), 'pads to a fixed size'),
        (lambda: make_detector({'nms': {'type': 'soft_nms'}}), 'is not plain NMS'),
        (lambda: make_detector({'nms_pre': -1}), "no positive values of {'nms_pre': -1"),
        (lambda: make_detector(loss_cls={'type': 'CrossEntropyLoss'}), 'scores are not sigmoids'),
        (lambda: make_detector(bbox_coder={'type': 'TBLRBBoxCoder'}), 'TBLRBBoxCoder is not a'),
        (
            lambda: make_detector(type='ATSSHead', feat_channels=32),
            'ATSSHead multiplies scores by centerness',
        ),
        (make_own_head, 'OwnHead does not predict as BaseDenseHead'),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)) as error:
            make_graph(make())
        assert str(error.value).endswith(advice)
    two_stage = MODELS.build({'type': 'mmdet.TwoStageDetector', 'backbone': BACKBONE})
    with pytest.raises(
        ValueError, match='TwoStageDetector cannot be exported whole: it is neither'
    ):
        make_graph(two_stage)
    with pytest.raises(ValueError, match="make_graph takes a module, not 's12'"):
        make_graph('s12')


@pytest.mark.parametrize(
    'pool',
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d((3, 2), (1, 2), (1, 0)),
        nn.MaxPool2d(3, 1, dilation=2),
        nn.AdaptiveAvgPool2d((3, 5)),
        nn.AdaptiveAvgPool2d(1),
    ],
    ids=str,
)
def test_poolings_equal_torch(pool, torch_seed):
    for size in ((8, 9), (13, 7), (14, 14)):
        x = torch.randn(2, 4, *size)
        with SymbolicSizes():
            ours = pool(x)
        torch.testing.assert_close(ours, pool(x))
    with SymbolicSizes(), pytest.raises(ValueError, match='kernel 1, stride 2 with ceil_mode: no'):
        F.max_pool2d(x, 1, 2, ceil_mode=True)


def test_differences_are_shares_of_rows():
    boxes = torch.tensor([[[0.0, 0, 9, 9], [5, 5, 20, 20], [0, 0, 0, 0]]])
    scores, labels = torch.tensor([[0.9, 0.5, 0.0]]), torch.tensor([[1, 2, -1]])
    rows = boxes, scores, labels
    assert measure_difference('detector', rows, rows) == 0
    assert measure_difference('detector', (boxes + 0.05, scores, labels), rows) == 0
    assert measure_difference('detector', (boxes, scores, labels + 1), rows) == 1
    moved = boxes + torch.tensor([0.0, 0.2, 0.0]).view(1, 3, 1)
    assert measure_difference('detector', (moved, scores, labels), rows) == 0.5
    assert measure_difference('detector', (moved, scores, labels), rows, score_thr=0.6) == 0
    classes = torch.tensor([[[0, 1], [2, 2]]])
    assert measure_difference('segmentor', [classes], [classes.clamp(max=1)]) == 0.5
    assert measure_difference('backbone', [boxes + 2], [boxes]) == pytest.approx(0.1)
