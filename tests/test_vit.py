"""ViT, DeiT and the hybrids against timm, and ViTDet's form of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmpatch import checkpoint
from mmpatch.backbones import VisionTransformer

import golden
from support import relative_error

SMALL = {'depths': (1, 1, 1, 1), 'dims': 192, 'out_norm': False}
#: arch and arguments -> model of timm with the same network
TIMM = {
    'tiny': ('vit_tiny_patch16_224', {}),
    'small': ('vit_small_patch16_224', {}),
    'small of patch 32': ('vit_small_patch32_224', {'patch_size': 32}),
    'base': ('vit_base_patch16_224', {}),
    'base of patch 8': ('vit_base_patch8_224', {'patch_size': 8}),
    'distilled': ('deit_tiny_distilled_patch16_224', {'arch': 'tiny', 'distilled': True}),
    'tiny-r-s16-p8': ('vit_tiny_r_s16_p8_224', {}),
    'small-r26-s32': ('vit_small_r26_s32_224', {}),
    'base-r50-s16': ('vit_base_r50_s16_224', {}),
}
#: Parameters of timm's classifiers, without the last norm and the head of 1000 classes.
PARAMETERS = {
    'tiny': 5_717_416 - 193_384,
    'small': 22_050_664 - 385_768,
    'base': 86_567_656 - 770_536,
    'large': 304_326_632 - 1_027_048,
    'huge': 632_045_800 - 1_283_560,
}


@pytest.mark.parametrize('name', TIMM)
def test_equals_timm(tmp_path, name):
    import timm

    timm_name, kwargs = TIMM[name]
    theirs = golden.randomize(timm.create_model(timm_name, dynamic_img_size=True))
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    arch = kwargs.get('arch', name.split()[0])
    settings = {key: value for key, value in kwargs.items() if key != 'arch'}
    ours = VisionTransformer(arch, **settings, out_norm=False).eval()
    checkpoint.load_pretrained(ours, tmp_path / 'timm.pth')
    count = len(theirs.blocks)
    taps = [count // 4 - 1, count // 2 - 1, 3 * count // 4 - 1, count - 1]
    for size in ((224, 224), (64, 160)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            references = theirs.forward_intermediates(x, taps, norm=False, intermediates_only=True)
            for out, reference in zip(ours(x), references, strict=True):
                assert relative_error(out, reference) < 1e-5


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameters(arch):
    with torch.device('meta'):
        model = VisionTransformer(arch, out_norm=False)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize(
    ('arch', 'timm_name'),
    [
        ('tiny-r-s16-p8', 'vit_tiny_r_s16_p8_224'),
        ('small-r26-s32', 'vit_small_r26_s32_224'),
        ('base-r26-s32', 'vit_base_r26_s32_224'),
        ('base-r50-s16', 'vit_base_r50_s16_224'),
        ('large-r50-s32', 'vit_large_r50_s32_224'),
    ],
)
def test_parameters_of_hybrids(arch, timm_name):
    import timm

    with torch.device('meta'):
        ours = VisionTransformer(arch, out_norm=False)
    theirs = timm.create_model(timm_name, num_classes=0)  # timm before 1.0.22 needs memory for it
    expected = sum(p.numel() for n, p in theirs.named_parameters() if not n.startswith('norm.'))
    assert sum(p.numel() for p in ours.parameters()) == expected


def write_npz(path, timm_model, prefix='', big_vision=False):
    """A model of timm as the authors' JAX code, or big_vision, saves it."""
    state = {key: value.numpy() for key, value in timm_model.state_dict().items()}
    heads = timm_model.blocks[0].attn.num_heads
    out = {'cls': state['cls_token']}
    positions = 'pos_embedding' if big_vision else 'Transformer/posembed_input/pos_embedding'
    out[positions] = state['pos_embed']
    attention = f'MultiHeadDotProductAttention_{0 if big_vision else 1}'
    norm2, mlp = ('LayerNorm_1', 'MlpBlock_0') if big_vision else ('LayerNorm_2', 'MlpBlock_3')

    def conv(name, source):
        out[f'{name}/kernel'] = state[f'{source}.weight'].transpose(2, 3, 1, 0)

    def linear(name, source):
        out[f'{name}/kernel'] = state[f'{source}.weight'].T
        out[f'{name}/bias'] = state[f'{source}.bias']

    def norm(name, source, shape=(-1,)):
        out[f'{name}/scale'] = state[f'{source}.weight'].reshape(shape)
        out[f'{name}/bias'] = state[f'{source}.bias'].reshape(shape)

    conv('embedding', 'patch_embed.proj')
    out['embedding/bias'] = state['patch_embed.proj.bias']
    norm('Transformer/encoder_norm', 'norm')
    linear('head', 'head')
    for i in range(len(timm_model.blocks)):
        ours, theirs = f'Transformer/encoderblock_{i}', f'blocks.{i}'
        norm(f'{ours}/LayerNorm_0', f'{theirs}.norm1')
        norm(f'{ours}/{norm2}', f'{theirs}.norm2')
        linear(f'{ours}/{mlp}/Dense_0', f'{theirs}.mlp.fc1')
        linear(f'{ours}/{mlp}/Dense_1', f'{theirs}.mlp.fc2')
        weights = np.split(state[f'{theirs}.attn.qkv.weight'], 3)
        biases = np.split(state[f'{theirs}.attn.qkv.bias'], 3)
        for part, weight, bias in zip(('query', 'key', 'value'), weights, biases, strict=True):
            out[f'{ours}/{attention}/{part}/kernel'] = weight.T.reshape(len(weight), heads, -1)
            out[f'{ours}/{attention}/{part}/bias'] = bias.reshape(heads, -1)
        weight = state[f'{theirs}.attn.proj.weight']
        out[f'{ours}/{attention}/out/kernel'] = weight.T.reshape(heads, -1, len(weight))
        out[f'{ours}/{attention}/out/bias'] = state[f'{theirs}.attn.proj.bias']
    if 'patch_embed.backbone.stem.conv.weight' in state:
        conv('conv_root', 'patch_embed.backbone.stem.conv')
        norm('gn_root', 'patch_embed.backbone.stem.norm', (1, 1, 1, -1))
        for i, stage in enumerate(timm_model.patch_embed.backbone.stages):
            for j, block in enumerate(stage.blocks):
                ours = f'block{i + 1}/unit{j + 1}'
                theirs = f'patch_embed.backbone.stages.{i}.blocks.{j}'
                for n in (1, 2, 3):
                    conv(f'{ours}/conv{n}', f'{theirs}.conv{n}')
                    norm(f'{ours}/gn{n}', f'{theirs}.norm{n}', (1, 1, 1, -1))
                if block.downsample is not None:
                    conv(f'{ours}/conv_proj', f'{theirs}.downsample.conv')
                    norm(f'{ours}/gn_proj', f'{theirs}.downsample.norm', (1, 1, 1, -1))
    np.savez(path, **{prefix + key: value for key, value in out.items()})


@pytest.mark.parametrize(
    ('arch', 'timm_name', 'written'),
    [
        ('tiny', 'vit_tiny_patch16_224', {}),
        ('tiny', 'vit_tiny_patch16_224', {'prefix': 'opt/target/'}),
        ('tiny', 'vit_tiny_patch16_224', {'prefix': 'params/', 'big_vision': True}),
        ('small-r26-s32', 'vit_small_r26_s32_224', {}),
    ],
)
def test_npz_loads_as_timm_loads_it(tmp_path, arch, timm_name, written):
    import timm

    theirs = golden.randomize(timm.create_model(timm_name))
    write_npz(tmp_path / 'vit.npz', theirs, **written)
    again = timm.create_model(timm_name)
    again.load_pretrained(str(tmp_path / 'vit.npz'))
    torch.save(again.state_dict(), tmp_path / 'timm.pth')
    from_npz, from_timm = (VisionTransformer(arch, out_norm=False) for _ in range(2))
    report = checkpoint.load_pretrained(from_npz, tmp_path / 'vit.npz')
    checkpoint.load_pretrained(from_timm, tmp_path / 'timm.pth')
    assert len(report.matched) == len(from_npz.state_dict())
    for name, tensor in from_timm.state_dict().items():
        assert torch.equal(tensor, from_npz.state_dict()[name]), name


def test_npz_with_stacked_blocks_and_with_strange_arrays(tmp_path):
    import timm

    theirs = golden.randomize(timm.create_model('vit_tiny_patch16_224'))
    write_npz(tmp_path / 'plain.npz', theirs, big_vision=True)
    plain = dict(np.load(tmp_path / 'plain.npz'))
    stacked = {k: v for k, v in plain.items() if 'encoderblock_' not in k}
    for key in [k for k in plain if 'encoderblock_0/' in k]:
        rows = [plain[key.replace('_0/', f'_{i}/', 1)] for i in range(12)]
        stacked[f'params/{key.replace("_0/", "/", 1)}'] = np.stack(rows)
    stacked = {k if k.startswith('params') else f'params/{k}': v for k, v in stacked.items()}
    np.savez(tmp_path / 'stacked.npz', **stacked)
    one, two = (VisionTransformer('tiny', out_norm=False) for _ in range(2))
    checkpoint.load_pretrained(one, tmp_path / 'plain.npz')
    checkpoint.load_pretrained(two, tmp_path / 'stacked.npz')
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    np.savez(tmp_path / 'strange.npz', **plain, **{'MAPHead_0/probe': np.ones(3)})
    with pytest.raises(ValueError, match='no rule explains: MAPHead_0/probe'):
        checkpoint.load_pretrained(one, tmp_path / 'strange.npz')


def test_positions_are_resampled_by_grid_and_not_by_count(torch_seed):
    model = VisionTransformer('tiny', **SMALL, pretrain_img_size=64, antialias=False)
    x = torch.zeros(1, 192, 2, 8)
    mapped, _ = model.positions(x)  # 16 tokens, as many as are stored, in another grid
    expected = F.interpolate(model.positions.pos_embed, (2, 8), mode='bicubic', align_corners=False)
    torch.testing.assert_close(mapped, expected)
    assert not torch.allclose(mapped.flatten(2), model.positions.pos_embed.flatten(2))


def test_class_tokens_take_part_but_are_no_output(torch_seed):
    model = VisionTransformer('tiny', **SMALL).eval()
    x = torch.randn(1, 3, 40, 90)
    before = model(x)
    assert before[3].shape == (1, 192, 3, 6)
    torch.nn.init.normal_(model.positions.cls_token, std=3)
    assert not torch.allclose(before[3], model(x)[3])


VITDET = {'with_cls_token': False, 'window_size': 3, 'rel_pos': True, 'img_size': 160}


def test_windows_and_global_blocks():
    model = VisionTransformer('tiny', depths=(3, 3), dims=192, out_indices=(1,), **VITDET)
    kinds = [type(b.token_mixer).__name__ for s in model.stages for b in s.blocks]
    assert kinds == ['Windowed', 'Windowed', 'Attention'] * 2
    windowed, everywhere = model.stages[0].blocks[0].token_mixer, model.stages[0].blocks[2]
    assert windowed.mixer.rel_pos.h.shape == (5, 64)
    assert everywhere.token_mixer.rel_pos.h.shape == (19, 64)
    model = VisionTransformer('tiny', **SMALL, **VITDET, global_blocks=())
    assert all(type(s.blocks[0].token_mixer).__name__ == 'Windowed' for s in model.stages)


def test_windowed_attention_equals_its_formula(torch_seed):
    """ViTDet's block: zero-padded windows, logits plus decomposed positions (MViTv2, eq. 4)."""
    model = VisionTransformer('tiny', **SMALL, **VITDET, global_blocks=())
    mixer = model.stages[0].blocks[0].token_mixer
    for parameter in (mixer.mixer.rel_pos.h, mixer.mixer.rel_pos.w):
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 192, 4, 5)
    padded = F.pad(x, (0, 1, 0, 2))[0].permute(1, 2, 0)
    expected = torch.zeros(6, 6, 192)
    inner = mixer.mixer
    for top in (0, 3):
        for left in (0, 3):
            tokens = padded[top : top + 3, left : left + 3].reshape(9, 192)
            q, k, v = inner.qkv(tokens).view(9, 3, 3, 64).permute(1, 2, 0, 3)
            logits = q @ k.transpose(1, 2) / 8
            for i in range(9):
                for j in range(9):
                    rows = inner.rel_pos.h[i // 3 - j // 3 + 2]
                    columns = inner.rel_pos.w[i % 3 - j % 3 + 2]
                    logits[:, i, j] += q[:, i] @ (rows + columns)
            mixed = (logits.softmax(-1) @ v).transpose(0, 1).reshape(9, 192)
            expected[top : top + 3, left : left + 3] = inner.proj(mixed).view(3, 3, 192)
    torch.testing.assert_close(mixer(x)[0].permute(1, 2, 0), expected[:4, :5], atol=1e-5, rtol=1e-4)


def test_published_weights_fit_vitdet(tmp_path):
    """Positions stay at their grid; relative positions are new; windows take the same tensors."""
    plain = VisionTransformer('tiny', **SMALL)
    torch.save(plain.state_dict(), tmp_path / 'own.pth')
    model = VisionTransformer('tiny', **SMALL, **VITDET)
    report = checkpoint.load_pretrained(model, tmp_path / 'own.pth')
    assert not report.resampled and len(report.new) == 8
    assert all('rel_pos' in name for name in report.new)
    weight = plain.stages[0].blocks[0].token_mixer.qkv.weight
    assert torch.equal(model.stages[0].blocks[0].token_mixer.qkv.weight, weight)


def test_stages_of_a_hybrid_are_levels_of_a_pyramid(torch_seed):
    kwargs = {'depths': (1, 1, 1, 1), 'stem_indices': (0, 1), 'out_indices': (3,)}
    model = VisionTransformer('base-r50-s16', **kwargs)
    assert model.out_channels == (256, 512, 768) and model.out_strides == (4, 8, 16)
    outs = model(torch.randn(1, 3, 70, 100))
    assert [tuple(o.shape[1:]) for o in outs] == [(256, 18, 25), (512, 9, 13), (768, 5, 7)]
    assert len(model.out_norms) == 1
    model = VisionTransformer('base-r50-s16', **kwargs, frozen_stages=0)
    learning = {n.split('.')[0] for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {'stages', 'out_norms'}


def test_layer_depths():
    model = VisionTransformer('tiny')
    for name, depth in {
        'stem.conv.weight': 0,
        'positions.pos_embed': 0,
        'positions.cls_token': 0,
        'stages.0.blocks.0.norm1.weight': 1,
        'stages.3.blocks.2.mlp.fc2.bias': 12,
        'out_norms.3.weight': 13,
    }.items():
        assert model.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 14)


@pytest.mark.parametrize(
    ('kwargs', 'culprit'),
    [
        ({'arch': 'giant'}, "no arch 'giant'.*huge.*base-r50-s16"),
        (
            {'window_size': 7, 'global_blocks': ()},
            'class tokens have no position.*Windowed.*with_cls_token=False',
        ),
        ({'rel_pos': True}, 'class tokens have no position.*Attention'),
        ({'token_mixers': 'Pooling'}, 'class tokens have no position.*Pooling'),
        ({'distilled': True, 'with_cls_token': False}, 'distilled=True needs'),
        ({'global_blocks': (4,)}, r'global_blocks=\(4,\).*0\.\.3'),
        ({'stem_indices': (0,)}, r'stem_indices=\(0,\).*0 levels'),
        ({'arch': 'base-r50-s16', 'patch_size': 24}, 'stride=24 is not a multiple.*16'),
    ],
)
def test_wrong_arguments_are_named(kwargs, culprit):
    kwargs = {'arch': 'tiny', 'depths': (1, 1, 1, 1), **kwargs}
    with torch.device('meta'), pytest.raises(ValueError, match=culprit):
        VisionTransformer(**kwargs)
