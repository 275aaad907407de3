"""The family of DETR: mmdet's own models without compiled ops."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope

from mmpatch.compat import stand_in

pytestmark = pytest.mark.hosts
FEW = {'num_queries': 20, 'encoder': {'num_layers': 2}, 'decoder': {'num_layers': 2}}
#: Configs of mmdet, what makes them small, and how often one pass attends by sampling.
OWN = {
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': (FEW, 4),
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py': (FEW, 4),
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': (
        {
            'panoptic_head': {
                'num_queries': 20,
                'pixel_decoder': {'encoder': {'num_layers': 2}},
                'transformer_decoder': {'num_layers': 2},
            },
            'train_cfg': {'num_points': 500},
            'data_preprocessor': {'batch_augments': None},
        },
        2,
    ),
}


def build(model):
    from mmdet.utils import register_all_modules

    register_all_modules(False)
    init_default_scope('mmdet')
    model.backbone.init_cfg = None
    model = ROOT_MODELS.build(model)
    model.init_weights()
    return model


def make_data(**kwargs):
    from mmdet.testing import demo_mm_inputs

    shapes = [(3, 97, 130), (3, 64, 90)]
    return demo_mm_inputs(2, shapes, num_items=[3, 1], num_classes=80, **kwargs)


def train_and_predict(model, data):
    """Loss of the first iteration, then predictions with the weights that it gives."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    model.train()
    padded = model.data_preprocessor(deepcopy(data), True)
    loss, _ = model.parse_losses(model(**padded, mode='loss'))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4)
    loss.backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        samples = model(**model.data_preprocessor(deepcopy(data), False), mode='predict')
    return loss.detach(), [sample.pred_instances for sample in samples]


@pytest.mark.parametrize('name', OWN)
def test_mmdets_own_configs_need_no_compiled_ops(monkeypatch, torch_seed, name):
    """As on CUDA, where attention goes through the compiled op; compared with mmcv's CPU path."""
    from mmcv.ops import multi_scale_deform_attn as module

    monkeypatch.setattr(module, 'ext_module', stand_in)
    small, calls = OWN[name]
    cfg = get_config(name)
    cfg.merge_from_dict({'model': small})
    model = build(cfg.model)
    data = make_data(with_mask='mask2former' in name)
    expected_loss, expected = train_and_predict(deepcopy(model), data)
    seen = []

    def attend(value, shapes, locations, weights):
        seen.append(shapes)
        sizes = shapes.prod(1)
        starts = sizes.cumsum(0) - sizes
        function = module.MultiScaleDeformableAttnFunction
        return function.apply(value, shapes, starts, locations, weights, 64)

    monkeypatch.setattr(module, 'multi_scale_deformable_attn_pytorch', attend)
    loss, found = train_and_predict(model, data)
    assert len(seen) == 2 * calls and all(len(shapes) > 1 for shapes in seen)
    assert torch.isfinite(loss)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-4)
    for a, b in zip(found, expected, strict=True):
        assert len(a.scores) and a.bboxes.isfinite().all()
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-3, atol=1e-4)
