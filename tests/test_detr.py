"""The family of DETR: mmdet's own models without compiled ops, and SMCA."""

import pickle
import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope

import mmpatch
from mmpatch.compat import stand_in
from mmpatch.heads import ModulatedDecoder, SpatialPrior

import golden

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


def test_prior_equals_the_formula_of_its_authors():
    """Two heads, a map of 3 x 4 cells, one query with its centre at x = 2, y = 1."""
    prior = SpatialPrior(dim=4, num_heads=2, smooth=8.0)
    with torch.no_grad():
        prior.offset.weight.zero_()
        prior.offset.bias.copy_(torch.tensor([1.0, -1.0, 0.0, 0.5]))  # x, y of each head
        prior.scale.bias.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0]))
        found = prior(torch.randn(1, 1, 4), torch.tensor([[[2.0, 1.0]]]), (3, 4))
    # head 1, centre (3, 0): (3 - x)^2 + 4 (0 - y)^2; head 2, centre (2, 1.5):
    # 0.25 (2 - x)^2 + (1.5 - y)^2; both over -8
    eighths = [
        [[9, 4, 1, 0], [13, 8, 5, 4], [25, 20, 17, 16]],
        [[3.25, 2.5, 2.25, 2.5], [1.25, 0.5, 0.25, 0.5], [1.25, 0.5, 0.25, 0.5]],
    ]
    torch.testing.assert_close(found, -torch.tensor(eighths).view(1, 2, 1, 12) / 8)


def make_decoders(layers=2, dim=8, heads=2):
    """mmdet's decoder of DETR, and one with priors over the same layers."""
    from mmdet.models.layers import DetrTransformerDecoder

    attention = {'embed_dims': dim, 'num_heads': heads}
    cfg = {'self_attn_cfg': attention, 'cross_attn_cfg': attention}
    cfg['ffn_cfg'] = {'embed_dims': dim, 'feedforward_channels': 16}
    plain = DetrTransformerDecoder(layers, deepcopy(cfg))
    return golden.randomize(plain), ModulatedDecoder(plain, smooth=8.0, stride=32).eval()


def make_inputs(size=(3, 4), dim=8, queries=5):
    """Inputs of a decoder for two images, the second one padded by a column."""
    mask = torch.zeros(2, *size, dtype=torch.bool)
    mask[1, :, -1] = True
    tokens = size[0] * size[1]
    shapes = [(2, queries, dim)] * 2 + [(2, tokens, dim)] * 2
    names = ('query', 'query_pos', 'memory', 'memory_pos')
    inputs = {name: torch.randn(shape) for name, shape in zip(names, shapes, strict=True)}
    pixels = torch.tensor([[128.0, 96.0], [96.0, 96.0]])
    return {**inputs, 'memory_mask': mask.flatten(1), 'size': size, 'image_sizes': pixels}


@pytest.mark.parametrize('padded', [True, False])
def test_without_a_prior_the_decoder_is_that_of_detr(torch_seed, padded):
    plain, modulated = make_decoders()
    inputs = make_inputs()
    if not padded:
        inputs['memory_mask'] = None
    expected = plain(
        inputs['query'],
        key=inputs['memory'],
        value=inputs['memory'],
        query_pos=inputs['query_pos'],
        key_pos=inputs['memory_pos'],
        key_padding_mask=inputs['memory_mask'],
    )
    states, _ = modulated(**inputs)
    assert (states - expected).abs().max() > 0.01  # the prior matters
    for prior in modulated.priors:
        torch.nn.init.zeros_(prior.scale.bias)
    states, _ = modulated(**inputs)
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)


def test_each_head_looks_where_its_prior_is(torch_seed):
    """A narrow prior leaves one place to each image, head and query: its value goes through."""
    _, decoder = make_decoders(layers=1)
    inputs, prior, layer = make_inputs(), decoder.priors[0], decoder.layers[0]
    torch.nn.init.zeros_(decoder.reference[-1].weight)  # centres in the middle of the images
    torch.nn.init.zeros_(decoder.reference[-1].bias)
    torch.nn.init.zeros_(prior.offset.weight)
    prior.offset.bias.data = torch.tensor([0.0, 0.5, -1.0, -0.5])
    torch.nn.init.constant_(prior.scale.bias, 100.0)
    seen = []
    layer.cross_attn.attn.register_forward_hook(lambda *args: seen.append(args[2][0]))
    inputs['image_sizes'][1, 0] = 64.0  # so that the middles are at x, y = (2, 1.5) and (1, 1.5)
    states, references = decoder(**inputs)
    assert torch.equal(references, torch.full((2, 5, 2), 0.5)) and states.isfinite().all()
    attention = layer.cross_attn.attn
    values = torch.nn.functional.linear(
        inputs['memory'], attention.in_proj_weight[16:], attention.in_proj_bias[16:]
    )
    places = torch.tensor([[2 * 4 + 2, 1 * 4 + 1], [2 * 4 + 1, 1 * 4 + 0]])  # image, head
    for image in range(2):
        heads = [values[image, places[image, h], 4 * h : 4 * h + 4] for h in range(2)]
        expected = attention.out_proj(torch.cat(heads)).expand(5, -1)
        torch.testing.assert_close(seen[0][:, image], expected, rtol=1e-4, atol=1e-5)


def test_smca_is_detr_with_priors(torch_seed):
    """Parameters, initial values, and boxes that start from the centres."""
    name = 'smca-detr_poolformer-s12_8xb2-50e_coco.py'
    cfg = Config.fromfile(mmpatch.config_path(f'poolformer/{name}')).model
    cfg.backbone.depths = (1, 1, 1, 1)
    model = build(cfg).eval()
    dim, heads, layers = 256, 8, 6
    priors = 2 * dim + 2 * (dim + 1) * 2 * heads
    reference = 2 * (dim + 1) * dim + (dim + 1) * 2  # the authors' MLP(256, 256, 2, 3)
    decoder = model.decoder
    assert sum(p.numel() for p in decoder.priors.parameters()) == layers * priors
    assert sum(p.numel() for p in decoder.reference.parameters()) == reference
    for prior in decoder.priors:
        assert not prior.scale.weight.any() and prior.scale.bias.eq(1).all()
        assert prior.offset.weight.any()
    torch.nn.init.zeros_(model.bbox_head.fc_reg.weight)
    torch.nn.init.zeros_(model.bbox_head.fc_reg.bias)
    data = model.data_preprocessor(make_data(), False)
    with torch.no_grad():
        features = model.extract_feat(data['inputs'])
        outputs = model.forward_transformer(features, data['data_samples'])
        _, boxes = model.bbox_head(**outputs)
    torch.testing.assert_close(boxes[-1][..., :2], outputs['references'])
    assert outputs['references'].std() > 0
    copy = pickle.loads(pickle.dumps(model))
    assert type(copy) is type(model) and copy.state_dict().keys() == model.state_dict().keys()


def test_layers_of_smca_run_as_in_the_source(torch_seed):
    """Step by step: priors from states and positions, centres from the first layer's norm."""
    _, decoder = make_decoders()
    for prior in decoder.priors:
        golden.randomize(prior)
    inputs = make_inputs() | {'memory_mask': None}
    states, references = decoder(**inputs)
    query, position, rows = inputs['query'], inputs['query_pos'], inputs['size'][0]
    first = decoder.priors[0].norm(query + position)
    expected = decoder.reference(first).sigmoid()
    torch.testing.assert_close(references, expected)
    centre = expected * inputs['image_sizes'][:, None] / 32
    for i, (layer, prior) in enumerate(zip(decoder.layers, decoder.priors, strict=True)):
        normed = prior.norm(query + position)
        offset, scale = prior.offset(normed), prior.scale(normed)
        logits = torch.empty(2, 2, 5, 12)  # image, head, query, cell
        for head in range(2):
            x, y = (centre[..., j] + offset[..., 2 * head + j] for j in range(2))
            a, b = (scale[..., 2 * head + j] for j in range(2))
            for cell in range(12):
                distance = (a * (x - cell % 4)) ** 2 + (b * (y - cell // 4)) ** 2
                logits[:, head, :, cell] = -distance / 8
        assert rows == 3
        query = layer(
            query,
            key=inputs['memory'],
            value=inputs['memory'],
            query_pos=position,
            key_pos=inputs['memory_pos'],
            cross_attn_mask=logits.flatten(0, 1),
        )
        torch.testing.assert_close(states[i], decoder.post_norm(query), rtol=1e-4, atol=1e-5)


def test_settings_of_smca_reach_its_decoder(torch_seed):
    """Image sizes as width and height without padding, ``smooth``, and the map's own stride."""
    name = 'smca-detr_poolformer-s12_8xb2-50e_coco.py'
    cfg = Config.fromfile(mmpatch.config_path(f'poolformer/{name}')).model
    cfg.backbone.update(depths=(1, 1, 1, 1), out_indices=(2,))
    cfg.neck.in_channels = [320]
    cfg.update(stride=16, smooth=4)
    model = build(cfg).eval()
    assert {prior.smooth for prior in model.decoder.priors} == {4}
    data = model.data_preprocessor(make_data(), False)
    maps = model.extract_feat(data['inputs'])
    _, inputs = model.pre_transformer(maps, data['data_samples'])
    shapes = [sample.img_shape for sample in data['data_samples']]
    assert shapes[0] != shapes[1] and any(height != width for height, width in shapes)
    assert inputs['image_sizes'].tolist() == [[width, height] for height, width in shapes]
    assert inputs['size'] == tuple(maps[-1].shape[2:]) and model.decoder.stride == 16
    model.stride = 32
    with pytest.raises(ValueError, match=r'^model\.stride=32, but images of .* set model\.stride'):
        model.pre_transformer(maps, data['data_samples'])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_priors_keep_full_precision_in_half_models(torch_seed, dtype):
    _, decoder = make_decoders()
    inputs = make_inputs()
    expected, _ = decoder(**inputs)
    with torch.autocast('cpu', dtype):
        mixed, _ = decoder(**inputs)
    assert mixed.isfinite().all()
    torch.testing.assert_close(mixed.float(), expected, rtol=0.1, atol=0.1)
