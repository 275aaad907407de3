"""Deployed models equal the plain ones, whatever their statistics, sizes and hosts."""

import copy

import pytest
import torch
from test_families import TINY

from mmpatch import deploy
from mmpatch.backbones import Container, ConvMixer, MetaFormer, PoolFormer, VisionTransformer

import golden
from support import relative_error

TILED = {
    'PoolFormer of many tokens': lambda: PoolFormer(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    'PoolFormer of layer norms': lambda: PoolFormer(
        depths=(1, 1, 1, 1),
        dims=(8, 16, 24, 32),
        norm_cfg='LN2d',
        act='SiLU',
        token_mixers=['Pooling', {'type': 'Attention', 'num_heads': 2}, 'Identity', 'Pooling'],
    ),
    'Container without statics': lambda: Container(
        depths=(1, 1, 1, 1),
        dims=(8, 16, 24, 32),
        token_mixers={'type': 'ContextAggregation', 'num_heads': 2, 'static': None},
    ),
    'Container of free weights': lambda: Container(
        depths=(1, 1, 1, 1),
        dims=(8, 16, 24, 32),
        token_mixers={'type': 'ContextAggregation', 'num_heads': 2, 'gate': 'learned'},
    ),
    'ConvMixer without residual': lambda: ConvMixer(
        '256/8', depths=(1, 1, 1, 1), dims=8, residual=False, act='ReLU'
    ),
    'ViT with layer scale': lambda: VisionTransformer(
        'tiny', depths=(1, 1, 1, 1), dims=24, layer_scale=0.1, qkv_bias=False
    ),
}
MODELS = {**TINY, **TILED}


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('size', [(37, 53), (250, 333)])
def test_equals_the_plain_form(name, size, torch_seed):
    model = golden.randomised(MODELS[name]())
    deployed = deploy(model)
    x = torch.randn(2, 3, *size)
    kept = x.clone()
    with torch.no_grad():
        plain = model(x)
        for out, reference in zip(deployed(x), plain, strict=True):
            assert relative_error(out, reference) < 1e-5
        for out, reference in zip(deployed(x), plain, strict=True):  # nothing was overwritten
            assert relative_error(out, reference) < 1e-5
    assert torch.equal(x, kept)


@pytest.mark.parametrize('name', MODELS)
def test_half_precision_and_gradients_of_the_input(name, torch_seed):
    model = golden.randomised(MODELS[name]())
    deployed = deploy(model)
    x = torch.randn(1, 3, 64, 96, requires_grad=True)
    plain = model(x)
    for out, reference in zip(deployed(x), plain, strict=True):  # outside no_grad
        assert relative_error(out, reference) < 1e-5
    with torch.no_grad():
        outs = deployed.bfloat16()(x.bfloat16())
        plain = copy.deepcopy(model).bfloat16()(x.bfloat16())
        exact = model(x)
    for out, other, reference in zip(outs, plain, exact, strict=True):
        # as near to float32 as the plain form in the same precision
        assert relative_error(out, reference) < 1.5 * relative_error(other, reference) + 1e-2


@pytest.mark.parametrize('name', MODELS)
def test_captures_whole(name):
    deployed = deploy(golden.randomised(MODELS[name]()))
    x = torch.randn(1, 3, 64, 96)
    torch.compiler.reset()
    with torch.no_grad():
        plain = deployed(x)
        compiled = torch.compile(deployed, fullgraph=True, backend='aot_eager')(x)
        exported = torch.export.export(deployed, (x,)).module()(x)
    for a, b, c in zip(plain, compiled, exported, strict=True):
        assert relative_error(b, a) < 1e-5 and relative_error(c, a) < 1e-5


def test_every_block_of_the_families_is_rewritten():
    for name, make in TINY.items():
        deployed = deploy(golden.randomised(make()))
        parts = {type(part).__name__ for stage in deployed.stages for part in stage.blocks}
        mixers = {'FusedPooling', 'FusedAttention', 'FusedAggregation', 'FusedConvMixerBlock'}
        assert parts & mixers and parts <= {*mixers, 'Conv2d', 'FusedMlp'}, name


def test_deploying_twice_is_deploying_once():
    once = deploy(golden.randomised(TINY['PoolFormer']()))
    twice = deploy(once)
    assert twice is not once
    for a, b in zip(once.state_dict().items(), twice.state_dict().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


def test_the_model_itself_stays_as_it_was():
    model = golden.randomised(TINY['ViTDet']())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    deploy(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_what_cannot_be_deployed_is_named():
    with pytest.raises(ValueError, match='PoolFormer is in training mode; call eval'):
        deploy(TINY['PoolFormer']().train())
    with pytest.raises(ValueError, match='Linear holds no backbone of mmpatch'):
        deploy(torch.nn.Linear(1, 1).eval())


def test_blocks_that_no_rewrite_knows_stay(torch_seed):
    mixers = [{'type': 'SpatialMLP', 'grid': 8}, 'Pooling']
    model = MetaFormer((1, 1), 8, mixers, strides=(4, 2), norm_cfg=None, out_indices=(0, 1)).eval()
    deployed = deploy(model)
    x = torch.randn(1, 3, 32, 32)
    for a, b in zip(deployed(x), model(x), strict=True):
        torch.testing.assert_close(a, b)
    assert type(deployed.stages[0].blocks[0]).__name__ == 'MetaFormerBlock'


def test_an_approximate_activation_stays(torch_seed):
    model = golden.randomised(TINY['PoolFormer']())
    model.stages[0].blocks[0].mlp.act = torch.nn.GELU(approximate='tanh')
    deployed, x = deploy(model), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(deployed(x), model(x), strict=True):
            assert relative_error(a, b) < 1e-5
    assert type(deployed.stages[0].blocks[0]).__name__ == 'MetaFormerBlock'


def test_context_aggregation_of_one_affinity_alone(torch_seed):
    model = golden.randomised(TILED['Container of free weights']())
    for stage, (alpha, beta) in zip(model.stages, ((0, 1), (1, 0), (0, 0), (-2, 3)), strict=True):
        stage.blocks[0].token_mixer.alpha.data.fill_(alpha)
        stage.blocks[0].token_mixer.beta.data.fill_(beta)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(deploy(model)(x), model(x), strict=True):
            assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize('change', [{'pos_embed': 'Pooling'}, {'norm_cfg': 'GN'}])
def test_attention_in_blocks_that_no_rewrite_knows(change, torch_seed):
    norm = {'norm_cfg': 'LN2d', 'layer_scale': 0.3} | change
    attention = {'type': 'Attention', 'num_heads': 2}
    model = MetaFormer((1, 1), 64, attention, strides=(8, 1), out_indices=(0, 1), **norm)
    golden.randomised(model)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(deploy(model)(x), model(x), strict=True):
            assert relative_error(a, b) < 1e-5


@pytest.mark.hosts
def test_inside_a_detector(torch_seed):
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.registry import MODELS as HOST_MODELS

    import mmpatch

    register_all_modules()
    name = 'demo/retinanet_poolformer-nano_fpn_toy-coco.py'
    model = HOST_MODELS.build(Config.fromfile(mmpatch.config_path(name)).model).eval()
    golden.randomised(model.backbone)
    deployed = deploy(model)
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        for a, b in zip(deployed.extract_feat(x), model.extract_feat(x), strict=True):
            assert relative_error(a, b) < 1e-5
