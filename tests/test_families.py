"""Families against their authors: outputs, parameters, sizes, gradients."""

import re

import numpy as np
import pytest
import torch

from mmpatch.backbones import Container, ConvMixer, PoolFormer

import golden

REFERENCES = {
    'poolformer_s12': lambda **kw: PoolFormer('s12', **kw),
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
    (Container, 'light'): 20_119_619,
    (Container, 'light-paper'): 20_008_235 - 514_024,
    (Container, 'base'): 21_808_826 - 514_024,
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
}
TINY = {
    'PoolFormer': lambda **kw: PoolFormer(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), **kw),
    'Container': lambda **kw: Container(depths=(1, 1, 2, 1), dims=(16, 16, 32, 32), **kw),
    'ConvMixer': lambda **kw: ConvMixer('256/8', depths=(1, 1, 1, 1), dims=8, **kw),
    'ConvMixer of patch 7': lambda **kw: ConvMixer('512/12', depths=(1, 1, 1, 1), dims=8, **kw),
}


def pretrained(path):
    return {'type': 'Pretrained', 'checkpoint': str(path)}


@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('name', REFERENCES)
def test_equals_the_authors_code(tmp_path, name, wrapper):
    meta, state = golden.published(name)
    torch.save({wrapper: state} if wrapper else state, tmp_path / 'published.pth')
    model = REFERENCES[name](out_norm=False, init_cfg=pretrained(tmp_path / 'published.pth'))
    model.init_weights()
    if wrapper:  # the tensors are the same: one run is enough
        return
    with torch.no_grad():
        outputs = model.eval()(golden.image(meta))
    assert max(golden.errors(name, outputs)) < 1e-5


def randomised(model):
    """Every parameter and statistic random, so that none is right by its initial value."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(np.array(golden.value(name, tuple(tensor.shape)))))
    return model.eval()


@pytest.mark.parametrize(
    ('arch', 'size'),
    [('s12', (64, 64)), ('s12', (96, 160)), *((arch, (75, 122)) for arch in PoolFormer.ARCHS)],
)
def test_poolformer_equals_timm(tmp_path, arch, size):
    import timm

    theirs = randomised(timm.create_model(f'poolformer_{arch}'))
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

    theirs = randomised(timm.create_model(name))
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


def test_layouts_that_differ_in_names_alone(tmp_path):
    """Hugging Face's PoolFormer and mmpretrain's ConvMixer, written from our own tensors."""
    pool = TINY['PoolFormer'](out_norm=False, layer_scale=0.5)
    to_hugging_face = (
        (r'stem\.conv', 'poolformer.encoder.patch_embeddings.0.projection'),
        (r'stages\.(\d)\.downsample\.conv', r'poolformer.encoder.patch_embeddings.\1.projection'),
        (r'stages\.(\d)\.blocks\.(\d)', r'poolformer.encoder.block.\1.\2'),
        (r'norm1', 'before_norm'),
        (r'norm2', 'after_norm'),
        (r'mlp\.fc', 'output.conv'),
        (r'layer_scale(\d)\.scale', r'layer_scale_\1'),
    )
    conv = TINY['ConvMixer'](out_norm=False)
    to_mmpretrain = (
        (r'^stem\.conv', 'backbone.stem.0'),
        (r'^stem\.norm', 'backbone.stem.2'),
        (r'^stages\.(\d)\.blocks\.0', r'backbone.stages.\1'),
        (r'token_mixer\.conv', '0.fn.0'),
        (r'norm1', '0.fn.2'),
        (r'(\d)\.mlp', r'\1.1'),
        (r'norm2', '3'),
    )
    for model, table in ((pool, to_hugging_face), (conv, to_mmpretrain)):
        state = {'head.fc.weight' if model is conv else 'classifier.weight': torch.ones(10, 8)}
        for key, tensor in randomised(model).state_dict().items():
            for ours, theirs in table:
                key = re.sub(ours, theirs, key)
            state[key] = tensor
        torch.save({'state_dict': state}, tmp_path / 'file.pth')
        kind = 'PoolFormer' if model is pool else 'ConvMixer'
        extra = {'layer_scale': 0.1} if model is pool else {}
        again = TINY[kind](out_norm=False, init_cfg=pretrained(tmp_path / 'file.pth'), **extra)
        again.init_weights()
        for key, tensor in again.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key]), key


@pytest.mark.parametrize(('family', 'arch'), PARAMETERS)
def test_parameters_of_the_authors_networks(family, arch):
    with torch.device('meta'):
        model = family(arch, out_norm=False)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[family, arch]
    assert set(family.ARCHS) == {a for f, a in PARAMETERS if f is family}


@pytest.mark.parametrize('name', TINY)
@pytest.mark.parametrize(('batch', 'size'), [(1, (32, 32)), (3, (45, 61)), (1, (224, 96))])
def test_takes_any_size(name, batch, size):
    model = TINY[name]().eval()
    with torch.no_grad():
        outputs = model(torch.randn(batch, 3, *size))
    for out, channels, stride in zip(outputs, model.out_channels, model.out_strides, strict=True):
        assert out.shape[:2] == (batch, channels)
        for pixels, tokens in zip(size, out.shape[2:], strict=True):
            assert abs(tokens - pixels / stride) <= 1
        assert out.isfinite().all()


@pytest.mark.parametrize('name', TINY)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_every_parameter_learns(name, dtype, torch_seed):
    model = TINY[name](drop_path_rate=0.1)
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        outputs = model(torch.randn(4, 3, 64, 64))
    sum(out.float().square().mean() for out in outputs).backward()
    wrong = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert not wrong


@pytest.mark.parametrize('name', TINY)
def test_checkpointing_changes_neither_outputs_nor_gradients(name, torch_seed):
    plain, saving = TINY[name](), TINY[name](with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    outputs = []
    for model in (plain, saving):
        outputs.append(torch.cat([y.flatten() for y in model(x)]))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


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


def test_container_variants_are_config_lines():
    mixer = {'type': 'ContextAggregation', 'num_heads': 8, 'static': 'mlp', 'gate': 'learned'}
    model = Container('base', depths=(1, 1, 1, 1), token_mixers={**mixer, 'grid': 8})
    assert model.stages[3].blocks[0].token_mixer.alpha.requires_grad
    model(torch.randn(1, 3, 64, 64))
