"""Families against their authors: outputs, parameters, multiply-adds."""

import pytest
import torch

from mmpatch import deploy
from mmpatch.backbones import Container, ConvMixer, PoolFormer, VisionTransformer
from mmpatch.checkpoint import load_pretrained
from mmpatch.engine.count import count

import golden
from support import pretrained

REFERENCES = {
    'poolformer_s12': lambda **kw: PoolFormer('s12', **kw),
    'metaformer_ppaa_s12': lambda **kw: PoolFormer('s12-ppaa', **kw),
    'metaformer_pppf_s12': lambda **kw: PoolFormer('s12-pppf', **kw),
    'container_light': lambda **kw: Container('light', **kw),
    'convmixer_768_32': lambda **kw: ConvMixer('768/32', **kw),
}
#: Parameters of the published classifiers without their last norm and their head.
PARAMETERS = {
    (PoolFormer, 's12'): 11_401_152,
    (PoolFormer, 's24'): 20_874_944,
    (PoolFormer, 's36'): 30_348_736,
    (PoolFormer, 'm36'): 55_401_984,
    (PoolFormer, 'm48'): 72_702_912,
    (PoolFormer, 's12-id'): 11_401_152,
    (PoolFormer, 's12-pppa'): 14_038_440 - 514_024,
    (PoolFormer, 's12-ppaa'): 16_535_592 - 514_024,
    (PoolFormer, 's12-pppf'): 11_919_978 - 514_024,
    (PoolFormer, 's12-ppff'): 12_150_474 - 514_024,
    (Container, 'light'): 20_119_619,
    (Container, 'light-paper'): 20_008_235 - 514_024,
    (Container, 'base'): 21_808_826 - 514_024,
    (Container, 'paper'): 22_270_992 + 1_517_120,  # blocks of 12 C^2 + 49 C + 1, patches
    (ConvMixer, '1536/20'): 51_625_960 - 1_537_000,
    (ConvMixer, '768/32'): 21_110_248 - 769_000,
    (ConvMixer, '1024/20'): 24_383_464 - 1_025_000,
    (ConvMixer, '1536/20-k3'): 49_414_120 - 1_537_000,
    (ConvMixer, '1536/20-p14'): 52_303_336 - 1_537_000,
    (ConvMixer, '1024/16'): 19_381_224 - 1_025_000,
    (ConvMixer, '1024/12'): 14_621_672 - 1_025_000,
    (ConvMixer, '768/32-k3-p14'): 20_465_896 - 769_000,
    (ConvMixer, '512/16'): 5_357_544 - 513_000,
    (ConvMixer, '512/12'): 4_165_608 - 513_000,
    (ConvMixer, '256/8'): 594_186 - 2_570,
    (ConvMixer, '256/8-k9-p1'): 706_570 - 2_570,
}
TINY = {
    'PoolFormer': lambda **kw: PoolFormer(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), **kw),
    'PoolFormer with attention': lambda **kw: PoolFormer('s12-ppaa', **HYBRID_POOLFORMER, **kw),
    'PoolFormer with spatial FC': lambda **kw: PoolFormer('s12-ppff', **HYBRID_POOLFORMER, **kw),
    'Container': lambda **kw: Container(depths=(1, 1, 2, 1), dims=(16, 16, 32, 32), **kw),
    'ConvMixer': lambda **kw: ConvMixer('256/8', depths=(1, 1, 1, 1), dims=8, **kw),
    'ConvMixer of patch 7': lambda **kw: ConvMixer('512/12', depths=(1, 1, 1, 1), dims=8, **kw),
    'full Container': lambda **kw: Container('base', depths=(1, 1, 1, 1), **FULL, **kw),
    'ViT': lambda **kw: VisionTransformer('tiny', depths=(1, 1, 1, 1), dims=24, **kw),
    'ViTDet': lambda **kw: VisionTransformer('tiny', depths=(1, 2), dims=24, **VITDET, **kw),
    'hybrid ViT': lambda **kw: VisionTransformer(
        'tiny', depths=(1, 1, 1, 1), dims=24, **HYBRID, **kw
    ),
    'PAM': lambda **kw: VisionTransformer('tiny', token_mixers='pam', **STATIC, **kw),
    'MH-MLP': lambda **kw: VisionTransformer('tiny', token_mixers='mh-mlp', **STATIC, **kw),
}
HYBRID_POOLFORMER = {'depths': (1, 1, 1, 1), 'dims': (8, 16, 32, 32)}
VITDET = {'with_cls_token': False, 'window_size': 7, 'rel_pos': True, 'out_indices': (0, 1)}
STATIC = {'depths': (1, 1, 1, 1), 'dims': 24, 'pretrain_img_size': 64}
HYBRID = {'stem': {'type': 'ResNetStem', 'depths': (1, 1)}, 'stem_indices': (0, 1)}
FULL = {'dims': (4, 8, 8, 8), 'token_mixers': {'type': 'ContextAggregation', 'num_heads': 1}}
#: Multiply-adds at 224 x 224 in G, of timm's table or counted on the authors' classes.
MACS = {
    (PoolFormer, 's12'): 1.82,
    (PoolFormer, 's24'): 3.41,
    (PoolFormer, 's36'): 5.00,
    (PoolFormer, 'm36'): 8.80,
    (PoolFormer, 'm48'): 11.59,
    (Container, 'light'): 3.848,
    (Container, 'light-paper'): 3.128,
    (Container, 'base'): 8.232,
    (Container, 'paper'): 7.622,  # most of it in the attention over 56 x 56 tokens
    (ConvMixer, '1536/20'): 48.68,
    (ConvMixer, '768/32'): 19.55,
    (ConvMixer, '1024/20'): 5.55,
    (VisionTransformer, 'tiny'): 1.26,
    (VisionTransformer, 'small'): 4.61,
    (VisionTransformer, 'base'): 17.58,
}


@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('name', REFERENCES)
def test_equals_the_authors_code(tmp_path, name, wrapper):
    meta, state = golden.load_reference(name)
    torch.save({wrapper: state} if wrapper else state, tmp_path / 'published.pth')
    model = REFERENCES[name](out_norm=False, init_cfg=pretrained(tmp_path / 'published.pth'))
    model.init_weights()
    if wrapper:  # the tensors are the same: one run is enough
        return
    with torch.no_grad():
        outputs = model.eval()(golden.image(meta))
    assert max(golden.measure_errors(name, outputs)) < 1e-5


@pytest.mark.parametrize(
    ('arch', 'size'),
    [
        ('s12', (64, 64)),
        ('s12', (96, 160)),
        *((arch, (75, 122)) for arch in PoolFormer.ARCHS if '-' not in arch),
    ],
)
def test_poolformer_equals_timm(tmp_path, arch, size):
    import timm

    theirs = golden.randomize(timm.create_model(f'poolformer_{arch}'))
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    ours = PoolFormer(arch, out_norm=False, init_cfg=pretrained(tmp_path / 'timm.pth')).eval()
    ours.init_weights()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        y = theirs.stem(x)
        for stage, out in zip(theirs.stages, ours(x), strict=True):
            y = stage(y)
            assert (out - y).norm() / y.norm() < 1e-5


@pytest.mark.parametrize(
    ('arch', 'name'),
    [
        ('768/32', 'convmixer_768_32'),
        ('1024/20', 'convmixer_1024_20_ks9_p14'),
        ('1536/20', 'convmixer_1536_20'),
    ],
)
def test_convmixer_equals_timm(tmp_path, arch, name):
    import timm

    theirs = golden.randomize(timm.create_model(name))
    torch.save({'state_dict': theirs.state_dict()}, tmp_path / 'timm.pth')
    ours = ConvMixer(arch, out_norm=False, init_cfg=pretrained(tmp_path / 'timm.pth')).eval()
    ours.init_weights()
    x = torch.randn(1, 3, 56, 112)
    with torch.no_grad():
        y, quarter = theirs.stem(x), len(theirs.blocks) // 4
        for i, out in enumerate(ours(x)):
            for block in theirs.blocks[i * quarter : (i + 1) * quarter]:
                y = block(y)
            assert (out - y).norm() / y.norm() < 1e-5


@pytest.mark.parametrize(('family', 'arch'), PARAMETERS)
def test_parameters_of_the_authors_networks(family, arch):
    with torch.device('meta'):
        model = family(arch, out_norm=False)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[family, arch]
    assert set(family.ARCHS) == {a for f, a in PARAMETERS if f is family}


@pytest.mark.parametrize(('family', 'arch'), MACS)
def test_multiply_adds(family, arch):
    with torch.device('meta'):
        model = family(arch, out_norm=False)
    macs = sum(counts.macs for counts in count(model, (224, 224)).values())
    if family is ConvMixer:
        # Counters miss convolutions whose padding is a word, so the published figures lack the
        # depthwise ones: 20.68 G are 19.44 G without them, where 19.55 G is published.
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.groups > 1:
                tokens = (224 // model.out_strides[0]) ** 2
                macs -= module.weight.numel() * tokens
    assert macs / 1e9 == pytest.approx(MACS[family, arch], rel=0.01)


@pytest.mark.parametrize('name', TINY)
def test_takes_large_images(name):
    model = TINY[name]().eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 640, 1088))
    for out, stride in zip(outputs, model.out_strides, strict=True):
        assert abs(out.shape[2] - 640 / stride) < 1 and abs(out.shape[3] - 1088 / stride) < 1
        assert out.isfinite().all()


@pytest.mark.parametrize(
    ('family', 'arch', 'other'),
    [(Container, 'heavy', 'light-paper'), (ConvMixer, '768/31', '768/32-k3-p14')],
)
def test_unknown_arch_is_named(family, arch, other):
    with pytest.raises(ValueError, match=f"{family.__name__} has no arch '{arch}'.*{other}"):
        family(arch)


def test_convmixer_variants_are_config_lines():
    model = ConvMixer(
        '256/8', kernel_size=3, patch_size=4, act='ReLU', residual=False, norm_cfg='LN2d'
    )
    block = model.stages[0].blocks[0]
    assert model.out_strides == (4, 4, 4, 4)
    assert block.token_mixer.conv.kernel_size == (3, 3)
    assert isinstance(block.act, torch.nn.ReLU) and isinstance(model.stem.act, torch.nn.ReLU)
    assert not block.residual and 'LayerNorm' in type(block.norm1).__name__


@pytest.mark.parametrize('name', ['PoolFormer', 'ViT', 'Container'])
def test_mlps_start_as_the_authors_do(name, torch_seed):
    """allenai/container initialises linear layers only: its convolutions keep torch's default."""
    fc = TINY[name]().stages[2].blocks[0].mlp.fc1
    if name == 'Container':
        bound = fc.in_channels**-0.5
        assert 0.9 * bound < fc.weight.abs().max() <= bound
        assert 0 < fc.bias.abs().max() <= bound
    else:
        assert fc.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not fc.bias.any()


def test_container_variants_are_config_lines():
    mixer = {'type': 'ContextAggregation', 'num_heads': 8, 'static': 'mlp', 'gate': 'learned'}
    model = Container('base', depths=(1, 1, 1, 1), token_mixers={**mixer, 'grid': 8})
    assert model.stages[3].blocks[0].token_mixer.alpha.requires_grad
    model(torch.randn(1, 3, 64, 64))


def test_poolformer_ablations_are_config_lines():
    tiny = {'depths': (1, 1, 1, 1), 'dims': (8, 16, 24, 32)}
    attention = {'type': 'Attention', 'num_heads': 4}
    variants = [
        {'pool_size': 5},
        {'norm_cfg': 'LN2d'},
        {'norm_cfg': 'BN'},
        {'norm_cfg': None},
        {'act': 'ReLU'},
        {'act': 'SiLU'},
        {'layer_scale': None},
        {'token_mixers': 'Identity'},
        {'token_mixers': ['Pooling', 'Pooling', attention, attention]},
        {'token_mixers': ['Pooling', 'Pooling', 'Pooling', {'type': 'SpatialMLP', 'grid': 7}]},
    ]
    for variant in variants:
        outs = PoolFormer('s12', **tiny, **variant)(torch.randn(2, 3, 64, 64))
        assert [out.shape[1] for out in outs] == [8, 16, 24, 32], variant
        assert all(out.isfinite().all() for out in outs), variant


@pytest.mark.parametrize('arch', [arch for arch in PoolFormer.ARCHS if '-' in arch])
@pytest.mark.parametrize('grid', [1, 2])
def test_files_of_hybrids_load_by_the_authors_names(tmp_path, arch, grid, torch_seed):
    """Position embeddings count as entries of ``network`` there; other grids are resampled."""
    whole = golden.randomize(PoolFormer(arch, **HYBRID_POOLFORMER, out_norm=False))
    state = golden.rename_to_published(whole.state_dict())
    names = [key for key in state if key.endswith('pos_embed')]
    assert names == {'s12-pppa': ['network.6.pos_embed'], 's12-ppaa': ['network.4.pos_embed']}.get(
        arch, []
    )
    for name in names:
        state[name] = torch.nn.functional.interpolate(state[name], scale_factor=grid)
    torch.save(state, tmp_path / 'published.pth')
    model = PoolFormer(arch, **HYBRID_POOLFORMER, out_norm=False).eval()
    report = load_pretrained(model, tmp_path / 'published.pth')
    assert len(report.matched) == len(state) and not report.new
    assert len(report.resampled) == (len(names) if grid == 2 else 0)
    for key, tensor in model.state_dict().items():
        if grid == 1 or 'positions' not in key:
            assert torch.equal(tensor, whole.state_dict()[key])


def test_positions_of_a_stage_are_added_before_its_blocks(torch_seed):
    models = [PoolFormer('s12-ppaa', **HYBRID_POOLFORMER, out_norm=False).eval() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    positions = models[1].stages[2].positions
    seen = []
    models[1].stages[2].blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    models[1].stages[2].downsample.register_forward_hook(lambda *args: seen.append(args[2]))
    for size in ((224, 224), (64, 160)):
        with torch.no_grad():
            models[1](torch.randn(1, 3, *size))
            mapped, entering = seen[-2:]
            torch.testing.assert_close(entering, positions(mapped)[0])
            assert not torch.equal(entering, mapped)


def test_random_mixing_is_frozen_and_averages(torch_seed):
    model = PoolFormer(
        token_mixers={'type': 'RandomMixing', 'grid': 7}, depths=(1, 1, 1, 1), dims=8
    )
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [f'stages.{i}.blocks.0.token_mixer.fc1.weight' for i in range(4)]
    weight = model.stages[0].blocks[0].token_mixer.fc1.weight
    assert weight.min() > 0 and weight.std() > 0
    torch.testing.assert_close(weight.sum(-1), torch.ones(1, 49))
    ones = torch.ones(1, 8, 7, 7)
    torch.testing.assert_close(model.stages[0].blocks[0].token_mixer(ones), ones)


@pytest.mark.parametrize(
    'settings',
    [
        {'mlp_ratios': 0},
        {'block_args': {'residual': False}},
        {'block_args': {'residual': False}, 'mlp_ratios': 0},
        {'block_args': {'drop': 0.5}},
    ],
)
def test_block_without_residual_or_mlp_or_with_dropout(settings, torch_seed):
    """By its formula, in training, evaluation and deployed."""
    small = {'depths': (1, 1), 'dims': 8, 'strides': (4, 2), 'out_indices': (0, 1)}
    model = PoolFormer(**small, layer_scale=0.5, out_norm=False, **settings)
    golden.randomize(model)
    block, x = model.stages[0].blocks[0], torch.randn(2, 8, 6, 5)
    args = settings.get('block_args', {})
    y = block.token_mixer(block.norm1(x))
    expected = y if 'residual' in args else x + block.layer_scale1.scale.view(-1, 1, 1) * y
    if 'mlp_ratios' not in settings:
        y = block.mlp.fc2(block.mlp.act(block.mlp.fc1(block.norm2(expected))))
        scale = 1 if 'residual' in args else block.layer_scale2.scale.view(-1, 1, 1)
        expected = y if 'residual' in args else expected + scale * y
    torch.testing.assert_close(block(x), expected)
    assert 'residual' not in args or not [n for n, _ in model.named_parameters() if 'scale' in n]
    noisy = not torch.equal(block.train()(x), block(x))
    assert noisy == ('drop' in args)
    image = torch.randn(2, 3, 32, 24)
    with torch.no_grad():
        pairs = zip(model.eval()(image), deploy(model)(image), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
