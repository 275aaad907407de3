"""Deployed models equal the plain ones, whatever their statistics, sizes and hosts."""

import copy
from functools import partial

import pytest
import torch
from test_families import TINY

from mmpatch import deploy
from mmpatch.backbones import Container, ConvMixer, MetaFormer, PoolFormer, VisionTransformer
from mmpatch.blocks import ConvMixerBlock, MetaFormerBlock
from mmpatch.deployment.fold import PooledResidual
from mmpatch.layers import GroupNorm1, LayerNorm2d, LayerScale
from mmpatch.mixers import Attention, Pooling, SpatialMLP, Windowed

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
#: Forms that test_conformance.py does not have.
FURTHER = {**TILED, 'MH-MLP': TINY['MH-MLP']}
#: Two stages of networks whose export takes long.
SLOW = ('full Container', 'PAM', 'MH-MLP')
EXPORTED = TINY | {name: partial(TINY[name], out_indices=(0, 1)) for name in SLOW}


@pytest.mark.parametrize('name', FURTHER)
@pytest.mark.parametrize('size', [(37, 53), (250, 333)])
def test_equals_the_plain_form(name, size, torch_seed):
    model = golden.randomize(MODELS[name]())
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


@pytest.mark.parametrize('name', FURTHER)
def test_half_precision_and_gradients_of_the_input(name, torch_seed):
    model = golden.randomize(MODELS[name]())
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
    deployed = deploy(golden.randomize({**EXPORTED, **TILED}[name]()))
    x = torch.randn(1, 3, 64, 96)
    torch.compiler.reset()
    with torch.no_grad():
        plain = deployed(x)
        compiled = torch.compile(deployed, fullgraph=True, backend='aot_eager')(x)
        exported = torch.export.export(deployed, (x,)).module()(x)
    for a, b, c in zip(plain, compiled, exported, strict=True):
        assert relative_error(b, a) < 1e-5 and relative_error(c, a) < 1e-5


@pytest.mark.parametrize('name', MODELS)
def test_every_block_is_folded(name, monkeypatch):
    said = []
    monkeypatch.setattr('mmpatch.deployment.fold.print_log', lambda line, **_: said.append(line))
    model = golden.randomize(MODELS[name]())
    deployed = deploy(model)
    count = sum(model.depths[: len(model.stages)])
    assert said == [f'mmpatch.deploy: {count} of {count} blocks folded']
    left = {type(m) for m in deployed.stages.modules()}
    assert not left & {MetaFormerBlock, ConvMixerBlock, LayerScale}
    if name == 'PoolFormer':
        assert Pooling not in left
        assert sum(type(m) is PooledResidual for m in deployed.modules()) == count
    if name in ('ViT', 'ViTDet', 'PoolFormer', 'hybrid ViT'):
        blocks = [m for stage in deployed.stages for m in stage.blocks.modules()]
        norms = [m for m in blocks if type(m) in (GroupNorm1, LayerNorm2d)]
        windowed = [m for m in blocks if isinstance(m, Windowed)]  # whose norms stay whole
        assert sum(m.weight is not None for m in norms) == len(windowed)


@pytest.mark.parametrize('name', FURTHER)
def test_under_autocast_on_meta_and_without_samples(name, torch_seed):
    model = golden.randomize(MODELS[name]())
    deployed, x = deploy(model), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            ours, plain = deployed(x), model(x)
        for a, b, c in zip(ours, plain, exact, strict=True):
            assert relative_error(a, c) < 1.5 * relative_error(b, c) + 1e-2
        assert [y.shape[0] for y in deployed(x[:0])] == [0] * len(exact)
    shapes = [y.shape for y in deploy(model.to('meta'))(x.to('meta'))]
    assert shapes == [y.shape for y in exact]


@pytest.mark.parametrize(
    'name',
    [
        'PoolFormer',
        'PoolFormer with attention',
        'PoolFormer with spatial FC',
        'full Container',
        'ConvMixer of patch 7',
        'ViT',
        'PAM',
        'MH-MLP',
    ],
)
@pytest.mark.parametrize('make', [lambda model: model, deploy], ids=['plain', 'deployed'])
def test_exported_and_traced_graphs_take_other_sizes(name, make, torch_seed):
    """Batch, height and width; ``Dim.DYNAMIC`` raises where one of them is frozen."""
    model = golden.randomize(EXPORTED[name]())
    stride = 56 if name == 'ConvMixer of patch 7' else 32
    x, other = (torch.randn(b, 3, h * stride, w * stride) for b, h, w in ((2, 3, 4), (3, 5, 3)))
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    network = make(model)
    with torch.no_grad():
        exported = torch.export.export(network, (x,), dynamic_shapes=(dynamic,)).module()
        # What is resampled takes its size from the example in a trace.
        resampled = name in ('ViT', 'PAM', 'MH-MLP') or ' with ' in name
        traced = None if resampled else torch.jit.trace(network, x, check_trace=False)
        for graph in (exported, traced or exported):
            for a, b in zip(graph(other), model(other), strict=True):
                assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize('name', ['PoolFormer', 'full Container'])
def test_onnx_of_deployed_models_takes_other_sizes(name, tmp_path, torch_seed):
    onnxruntime = pytest.importorskip('onnxruntime')
    model = golden.randomize(EXPORTED[name](out_indices=(0,)))
    x, other = torch.randn(2, 3, 64, 96), torch.randn(3, 3, 96, 64)
    shapes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    if torch.__version__.startswith('2.6.'):
        # Its exporter cannot decompose elementwise operators of dynamic sizes.
        shapes, other = None, x
    program = torch.onnx.export(deploy(model), (x,), dynamic_shapes=shapes, dynamo=True)
    program.save(tmp_path / 'model.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    outs = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    with torch.no_grad():
        for a, b in zip(outs, model(other), strict=True):
            assert relative_error(torch.from_numpy(a), b) < 1e-5


def test_deploying_twice_is_deploying_once():
    once = deploy(golden.randomize(TINY['PoolFormer']()))
    twice = deploy(once)
    assert twice is not once
    for a, b in zip(once.state_dict().items(), twice.state_dict().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


def test_the_model_itself_stays_as_it_was():
    model = golden.randomize(TINY['ViTDet']())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    deploy(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_what_cannot_be_deployed_is_named():
    with pytest.raises(ValueError, match='PoolFormer is in training mode; call eval'):
        deploy(TINY['PoolFormer']().train())
    with pytest.raises(TypeError, match="deploy takes a module, not 's12'"):
        deploy('s12')
    with pytest.raises(ValueError, match='Linear holds no backbone of mmpatch'):
        deploy(torch.nn.Linear(1, 1).eval())


def test_blocks_that_no_rewrite_knows_stay(torch_seed):
    mixers = [{'type': 'SpatialMLP', 'grid': 8}, 'Pooling']
    model = MetaFormer((1, 1), 8, mixers, strides=(4, 2), norm_cfg='BN', out_indices=(0, 1))
    deployed = deploy(golden.randomize(model))
    x = torch.randn(1, 3, 32, 32)
    for a, b in zip(deployed(x), model(x), strict=True):
        torch.testing.assert_close(a, b)
    assert SpatialMLP in {type(layer) for layer in deployed.stages[0].blocks[0]}


def test_subclasses_stay_as_they_are(torch_seed):
    class Doubled(MetaFormerBlock):
        def forward(self, x):
            return 2 * super().forward(x)

    kwargs = {'strides': (4,), 'out_indices': (0,)}
    model = golden.randomize(MetaFormer((2,), 8, 'Pooling', block=Doubled, **kwargs))
    x = torch.randn(1, 3, 32, 32)
    deployed = deploy(model)
    torch.testing.assert_close(deployed(x), model(x))
    assert {type(block) for block in deployed.stages[0].blocks} == {Doubled}


class ClippedNorm(torch.nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).clamp(-0.1, 0.1)


class HalvedPool(torch.nn.AvgPool2d):
    def forward(self, x):
        return 0.5 * super().forward(x)


def clip_norm(block):
    block.norm1 = ClippedNorm(24)


def halve_pool(block):
    if isinstance(block.token_mixer, Pooling):
        block.token_mixer.pool = HalvedPool(3, 1, 1, count_include_pad=False)


def count_padding(block):
    if isinstance(block.token_mixer, Pooling):
        block.token_mixer.pool.count_include_pad = True


def patch_projection(block):
    if isinstance(block.token_mixer, Attention):
        project = block.token_mixer.project
        block.token_mixer.project = lambda mixed, size: 3 * project(mixed, size)


def drop_bias(block):
    block.norm1.register_parameter('bias', None)


def dilate_position(block):
    block.pos_embed.conv.dilation = (2, 2)


CHANGES = [
    clip_norm,
    halve_pool,
    count_padding,
    patch_projection,
    drop_bias,
    dilate_position,
]


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('mixer', ['Pooling', {'type': 'Attention', 'num_heads': 2}])
def test_parts_that_differ_are_kept(change, mixer, torch_seed):
    kwargs = {'strides': (4,), 'out_indices': (0,), 'layer_scale': 0.5, 'out_norm': False}
    kwargs['pos_embed'] = {'type': 'DepthwiseConv', 'kernel_size': 4}
    model = golden.randomize(MetaFormer((1,), 24, mixer, **kwargs))
    change(model.stages[0].blocks[0])
    model = golden.randomize(model)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(deploy(model)(x)[0], model(x)[0]) < 1e-5


def test_half_weights_are_folded_in_float32(torch_seed):
    model = golden.randomize(TINY['ConvMixer']())
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1e-3)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        exact = model.double()(x.double())[0]
        half = model.bfloat16()
        plain, ours = half(x.bfloat16())[0], deploy(half)(x.bfloat16())[0]
    assert relative_error(ours, exact) < 1.5 * relative_error(plain, exact) + 1e-2
    mixed = golden.randomize(TINY['ViT']()).bfloat16()
    for module in mixed.modules():
        if isinstance(module, LayerNorm2d):
            module.float()
    outs = deploy(mixed)(torch.randn(1, 3, 32, 32).bfloat16())  # blocks of two dtypes stay
    assert all(y.isfinite().all() for y in outs)


def test_an_approximate_activation_stays(torch_seed):
    model = golden.randomize(TINY['PoolFormer']())
    model.stages[0].blocks[0].mlp.act = torch.nn.GELU(approximate='tanh')
    deployed, x = deploy(model), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(deployed(x), model(x), strict=True):
            assert relative_error(a, b) < 1e-5


def test_context_aggregation_of_one_affinity_alone(torch_seed):
    model = golden.randomize(TILED['Container of free weights']())
    for stage, (alpha, beta) in zip(model.stages, ((0, 1), (1, 0), (0, 0), (-2, 3)), strict=True):
        stage.blocks[0].token_mixer.alpha.data.fill_(alpha)
        stage.blocks[0].token_mixer.beta.data.fill_(beta)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(deploy(model)(x), model(x), strict=True):
            assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize(
    'change', [{'pos_embed': 'Pooling'}, {'norm_cfg': 'GN'}, {'norm_cfg': None}]
)
def test_attention_in_blocks_that_no_rewrite_knows(change, torch_seed):
    norm = {'norm_cfg': 'LN2d', 'layer_scale': 0.3} | change
    attention = {'type': 'Attention', 'num_heads': 2}
    model = MetaFormer((1, 1), 64, attention, strides=(8, 1), out_indices=(0, 1), **norm)
    golden.randomize(model)
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
    golden.randomize(model.backbone)
    deployed = deploy(model)
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        for a, b in zip(deployed.extract_feat(x), model.extract_feat(x), strict=True):
            assert relative_error(a, b) < 1e-5
