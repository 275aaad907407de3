import pytest
import torch

from mmpatch.backbones import MetaFormer, PoolFormer
from mmpatch.registry import MODELS

from support import relative_error

TINY = {'depths': (1, 1, 2, 1), 'dims': (8, 16, 24, 32), 'layer_scale': 0.5}


def test_pools_without_counting_the_border():
    from mmpatch.mixers import Pooling

    x = torch.arange(9.0).view(1, 1, 3, 3)
    mixed = Pooling(1)(x)
    assert mixed[0, 0, 0, 0] == (0 + 1 + 3 + 4) / 4 - 0
    assert mixed[0, 0, 1, 1] == 0
    assert torch.equal(Pooling(4, 5)(torch.ones(1, 4, 6, 7)), torch.zeros(1, 4, 6, 7))


@pytest.mark.parametrize('size', [(32, 32), (33, 50), (97, 64)])
def test_outputs_have_the_documented_shapes(size):
    model = PoolFormer(**TINY)
    height, width = ((n + 1) // 4 for n in size)
    for i, out in enumerate(model(torch.randn(2, 3, *size))):
        assert out.shape == (2, TINY['dims'][i], height, width)
        height, width = -(-height // 2), -(-width // 2)
    assert model.out_channels == TINY['dims']
    assert model.out_strides == (4, 8, 16, 32)


def test_patches_are_padded_at_the_bottom_and_the_right(torch_seed):
    from mmpatch.layers import PatchEmbed

    embed, x = PatchEmbed(2, 3, kernel_size=4, stride=4), torch.randn(1, 2, 6, 9)
    expected = embed.conv(torch.nn.functional.pad(x, (0, 3, 0, 2)))
    torch.testing.assert_close(embed(x), expected)
    assert expected.shape == (1, 3, 2, 3)


def test_isotropic_network_is_a_pyramid_of_stride_one():
    model = MetaFormer((1, 1), 16, 'Pooling', strides=(8, 1), out_indices=(0, 1))
    first, second = model(torch.randn(1, 3, 30, 41))
    assert first.shape == second.shape == (1, 16, 4, 6)
    assert model.out_strides == (8, 8)
    assert isinstance(model.stages[1].downsample, torch.nn.Identity)


def test_mixers_broadcast_to_stages_and_blocks():
    names = ['Identity', 'Pooling', 'Identity', 'Pooling']
    model = MetaFormer((1, 2), 8, names[:2], strides=(4, 2), out_indices=(0, 1))
    kinds = [type(b.token_mixer).__name__ for stage in model.stages for b in stage.blocks]
    assert kinds == ['Identity', 'Pooling', 'Pooling']
    model = MetaFormer((1, 3), 8, names, strides=(4, 2), out_indices=(0, 1))
    assert [type(b.token_mixer).__name__ for b in model.stages[1].blocks] == names[1:]


def test_stages_behind_the_last_output_are_not_built():
    model = PoolFormer(**TINY, out_indices=(0, 2))
    assert len(model.stages) == 3
    out = model(torch.randn(1, 3, 64, 64))
    sum(y.sum() for y in out).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_compiling_is_a_setting_of_the_backbone(torch_seed):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    plain = PoolFormer(**TINY)
    compiled = MODELS.build(
        {
            'type': 'mmpatch.PoolFormer',
            **TINY,
            'compile': {'backend': 'aot_eager', 'fullgraph': True},
        }
    )
    compiled.load_state_dict(plain.state_dict())  # strictly: names stay
    x = torch.randn(2, 3, 64, 64)
    weights = [torch.randn_like(y) for y in plain(x)]
    for model in (plain, compiled):
        sum((y * w).sum() for y, w in zip(model(x), weights, strict=True)).backward()
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1
    grads = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (compiled, plain)]
    assert relative_error(*grads) < 1e-5


def test_drop_path_grows_linearly():
    model = PoolFormer(**TINY, drop_path_rate=0.4)
    drops = [getattr(b.drop_path, 'drop_prob', 0.0) for stage in model.stages for b in stage.blocks]
    assert drops == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_layer_depths():
    model = PoolFormer(**TINY)
    expected = {
        'stem.conv.weight': 0,
        'stages.0.blocks.0.norm1.weight': 1,
        'stages.1.downsample.conv.bias': 2,
        'stages.2.blocks.1.mlp.fc1.weight': 4,
        'out_norms.3.weight': 6,
    }
    for name, depth in expected.items():
        assert model.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 7)


@pytest.mark.parametrize(
    ('kwargs', 'culprit'),
    [
        ({'arch': 's13'}, "no arch 's13'.*s12.*m48"),
        ({'out_indices': (0, 4)}, r'out_indices=\(0, 4\).*0\.\.3'),
        ({'out_indices': (-1,)}, 'out_indices'),
        ({'out_indices': (2, 1)}, r'\(2, 1\) must increase'),
        ({'frozen_stages': 5}, 'frozen_stages=5'),
        ({'dims': (8, 16)}, 'dims=.* 2 entries for 4 stages'),
        ({'act': 'Tanh'}, "act='Tanh'.*GELU"),
        ({'pool_size': 2}, 'pool_size must be odd'),
        ({'token_mixers': ['Pooling', 'Identity']}, 'token_mixers has 2 entries'),
    ],
)
def test_wrong_arguments_are_named(kwargs, culprit):
    with pytest.raises(ValueError, match=culprit):
        PoolFormer(**kwargs)


def test_unknown_or_shared_mixers_are_refused():
    with pytest.raises(KeyError, match='Poolling.*Pooling'):
        PoolFormer(token_mixers='Poolling')
    with pytest.raises(TypeError, match='shared'):
        PoolFormer(token_mixers=torch.nn.Identity())
    with pytest.raises(TypeError, match='colour'):
        PoolFormer(token_mixers={'type': 'Pooling', 'colour': 3})


def test_wrong_images_are_named():
    model = PoolFormer(**TINY)
    with pytest.raises(ValueError, match=r'takes \(B, 3, H, W\), got \(1, 4, 64, 64\)'):
        model(torch.randn(1, 4, 64, 64))
    with pytest.raises(ValueError, match=r'2x64 \(H x W\) is smaller than the stride 4'):
        model(torch.randn(1, 3, 2, 64))


def test_positions_of_a_stage_take_no_tokens():
    places = (None, {'grid': 4, 'num_tokens': 1})
    with pytest.raises(ValueError, match='stage_positions take no num_tokens'):
        MetaFormer((1, 1), 8, 'Identity', strides=(4, 2), out_indices=(1,), stage_positions=places)
