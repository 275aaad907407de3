"""Heads of mmdet and mmseg over a pyramid of ours: they take it as they take their own ResNet."""

from copy import deepcopy

import pytest
import torch
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm

from mmpatch.engine import check_model
from mmpatch.engine.build import build_model

from support import make_detector_data, make_segmentor_data, needs_stand_in

pytestmark = pytest.mark.hosts
CHANNELS = (16, 32, 48, 64)
DETECTORS = [
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco',
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco',
    'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco',
    'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco',
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco',
    'htc/htc-without-semantic_r50_fpn_1x_coco',
    'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco',
    'pafpn/faster-rcnn_r50_pafpn_1x_coco',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'atss/atss_r50_fpn_1x_coco',
    'gfl/gfl_r50_fpn_1x_coco',
    'centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco',
    'yolof/yolof_r50-c5_8xb8-1x_coco',
    'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco',
    'fpg/retinanet_r50_fpg_crop640_50e_coco',
    'efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco',
    'detr/detr_r50_8xb2-150e_coco',
    'conditional_detr/conditional-detr_r50_8xb2-50e_coco',
    'dab_detr/dab-detr_r50_8xb2-50e_coco',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    'dino/dino-4scale_r50_8xb2-12e_coco',
    'ddq/ddq-detr-4scale_r50_8xb2-12e_coco',
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
    'solov2/solov2_r50_fpn_1x_coco',
    'rtmdet/rtmdet_tiny_8xb32-300e_coco',
    'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco',
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance',
    'tood/tood_r50_fpn_1x_coco',
    'vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco',
    'reppoints/reppoints-moment_r50_fpn_1x_coco',
    # a compiled deform_conv also takes no maps that are smaller than its kernel
    pytest.param('ddod/ddod_r50_fpn_1x_coco', marks=needs_stand_in),
    'dyhead/atss_r50_fpn_dyhead_1x_coco',
    'queryinst/queryinst_r50_fpn_1x_coco',
    'yolox/yolox_s_8xb8-300e_coco',
]
SEGMENTORS = [
    'upernet/upernet_r50_4xb4-80k_ade20k-512x512',
    'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
    'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512',
    'deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512',
    'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
    'fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512',
    'danet/danet_r50-d8_4xb4-80k_ade20k-512x512',
    'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512',
    'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512',
    'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512',
    'ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512',
    'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512',
    'segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512',
    'setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512',
    'setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512',
]


def build(name, host):
    """A model of a host over a PoolFormer of one block a stage, and whether it learns masks."""
    cfg = get_config(f'{host}::{name}.py')
    model = cfg.model
    neck = model.get('neck') or {}
    first = neck[0] if isinstance(neck, list) else neck
    outs = model.backbone.get('out_indices', (0, 1, 2, 3))
    if max(outs) > 3:  # of the layers of a ViT
        outs = range(4)
    if isinstance(first.get('in_channels'), list):  # as many last maps as the neck takes
        outs = range(4 - len(first.in_channels), 4)
    model.backbone = {
        'type': 'mmpatch.PoolFormer',
        'depths': (1, 1, 1, 1),
        'dims': CHANNELS,
        'out_indices': tuple(outs),
    }
    if 'reppoints' in name:  # a compiled deform_conv takes no channels_last
        model.backbone['memory_format'] = 'contiguous'
    channels = [CHANNELS[i] for i in outs]
    if first:
        first.in_channels = channels if isinstance(first.in_channels, list) else channels[-1]
    else:
        for head in find_heads(model):
            replace_channels(head)
    # Images are not padded to the full size of the recipe.
    model.data_preprocessor.pop('batch_augments', None)
    if host == 'mmseg':
        model.data_preprocessor.size = (140, 140)
    else:
        model.data_preprocessor.update(pad_size_divisor=128, pad_mask=True)
    if model.get('as_two_stage'):  # its queries are places of the maps
        model.num_queries = 50
    if 'num_proposals' in model.get('rpn_head', {}):
        model.rpn_head.num_proposals = model.test_cfg.rcnn.max_per_img = 10
    if 'point-rend' in name:  # fails in mmdet where nothing is found
        model.test_cfg.rcnn.update(score_thr=0, max_per_img=5)
    if 'setr' in name:  # slow: they enlarge the first maps of the pyramid
        model.auxiliary_head = None
    check_model(model, host)
    masks = "'with_mask': True" in str(cfg.train_dataloader)
    built = revert_sync_batchnorm(build_model(cfg))
    built.init_weights()  # some parameters of mmdet's are memory as it was
    if 'queryinst' in name:  # mmdet cannot paste masks if all boxes have left the picture
        for head in built.roi_head.bbox_head:
            head.fc_reg.weight.data.mul_(0.01)
    return built, masks


def find_heads(model):
    """Settings of heads, those inside others among them."""
    for key, value in model.items():
        for part in value if isinstance(value, list) else [value]:
            if 'head' in key and isinstance(part, dict):
                yield part
                yield from find_heads(part)


def replace_channels(head):
    """Let a head that reads the backbone's maps itself read ours."""
    given = head.get('in_channels')
    if isinstance(given, list):
        head.in_channels = [*CHANNELS[-len(given) :]]
    elif 'in_index' in head or head.type == 'SegmenterMaskTransformerHead':
        head.in_channels = CHANNELS[head.get('in_index', -1)]
    if 'c1_in_channels' in head:
        head.c1_in_channels = CHANNELS[0]


def learn_and_predict(model, data):
    """One step, with a gradient in every block of the backbone, and one prediction."""
    MessageHub.get_current_instance().update_info('epoch', 4)  # when TOOD's own assigner starts
    padded = model.train().data_preprocessor(deepcopy(data), True)
    losses, _ = model.parse_losses(model(**padded, mode='loss'))
    losses.backward()
    assert torch.isfinite(losses)
    blocks = [block for stage in model.backbone.stages for block in stage.blocks]
    assert all(p.grad is not None for block in blocks for p in block.parameters())
    with torch.no_grad():
        data = model.eval().data_preprocessor(data, False)
        assert len(model(**data, mode='predict')) == 2


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_of_mmdet(name, torch_seed):
    model, masks = build(name, 'mmdet')
    learn_and_predict(model, make_detector_data(masks))


@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentors_of_mmseg(name, torch_seed):
    model, _ = build(name, 'mmseg')
    learn_and_predict(model, make_segmentor_data())


def test_paa_names_the_package_that_it_needs(torch_seed, monkeypatch):
    """scikit-learn, which mmdet does not install."""
    from mmdet.models.dense_heads import paa_head

    monkeypatch.setattr(paa_head, 'skm', None)
    model, masks = build('paa/paa_r50_fpn_1x_coco', 'mmdet')
    data = make_detector_data(masks)
    with pytest.raises(ImportError, match='sklearn'):
        learn_and_predict(model, deepcopy(data))
    monkeypatch.undo()
    if paa_head.skm is not None:
        learn_and_predict(model, data)


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        # sums the maps of four layers, which have one size only in an isotropic network
        ('setr/setr_vit-l-mla_8xb1-160k_ade20k-512x512', 'The size of tensor a .* must match'),
        # its attention is a rare op, without a counterpart in torchvision
        pytest.param(
            'psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512',
            '^mmcv op psamask_forward needs compiled',
            marks=needs_stand_in,
        ),
    ],
)
def test_segmentors_that_do_not_fit(name, reason, torch_seed):
    model, _ = build(name, 'mmseg')
    with pytest.raises((RuntimeError, NotImplementedError), match=reason):
        learn_and_predict(model, make_segmentor_data())
