"""ViT, DeiT and the hybrids against timm, and ViTDet's form of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmpatch import checkpoint, deploy
from mmpatch.backbones import VisionTransformer
from mmpatch.checkpoint.load import find_arch
from mmpatch.layers import PositionEmbed

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
    'small-pam': 22_050_664 - 385_768 + 12 * 6 * 197**2,
    'small-mh-mlp': 22_050_664 - 385_768 + 12 * 6 * 197**2 - 12 * 2 * (384**2 + 384),
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


def test_positions_of_a_single_column(torch_seed):
    positions = PositionEmbed(24, 6).pos_embed
    turned = PositionEmbed(24, 6).resample(positions.mT.contiguous(), (1, 4)).mT
    torch.testing.assert_close(PositionEmbed(24, 6).resample(positions, (4, 1)), turned)


@pytest.mark.parametrize('form', ['pam', 'mh-mlp'])
def test_class_tokens_are_within_static_matrices(form, torch_seed):
    """Behind the grid as large as that of the pre-training, on another, and as the output."""
    kwargs = {'token_mixers': form, 'pretrain_img_size': 64, 'pooled': 'token'}
    model = golden.randomize(VisionTransformer('tiny', **SMALL, **kwargs))
    for size in ((64, 64), (40, 90)):
        x = torch.randn(1, 3, *size)
        before = model(x)
        assert before[4].shape == (1, 192, 1, 1)
        model.positions.cls_token.data.neg_()
        assert not torch.allclose(before[3], model(x)[3])
        model.positions.cls_token.data.neg_()
        other = model(torch.randn_like(x))
        assert not torch.allclose(before[4], other[4])


def test_static_matrices_see_the_grid_and_not_the_count(torch_seed):
    model = VisionTransformer('tiny', **SMALL, token_mixers='mh-mlp', pretrain_img_size=64)
    affinity = []
    mixer = model.stages[0].blocks[0].token_mixer
    mixer.register_forward_pre_hook(lambda _, args: affinity.append(mixer.affinity(args[0])[0]))
    for size in ((64, 64), (32, 128), (128, 32)):
        model(torch.randn(1, 3, *size))
    stored, wide, high = affinity
    torch.testing.assert_close(stored, mixer.static.fc1.weight)
    assert wide.shape == high.shape == stored.shape and not torch.allclose(wide, high)
    # as if rows and columns changed places
    grid = torch.arange(16).view(4, 4)
    order = torch.cat([torch.zeros(1).long(), 1 + grid.T.flatten()])
    mixer.static.fc1.weight.data = stored.data[:, order][:, :, order]
    model(torch.randn(1, 3, 128, 32))
    order = torch.cat([torch.zeros(1).long(), 1 + torch.arange(16).view(8, 2).T.flatten()])
    torch.testing.assert_close(affinity[3][:, order][:, :, order], wide)


def test_the_start_of_pam_is_that_of_deit(torch_seed):
    mixer = VisionTransformer('tiny', **SMALL, token_mixers='pam').stages[0].blocks[0].token_mixer
    for weight in (mixer.static.fc1.weight, mixer.qkv.weight, mixer.proj.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not mixer.qkv.bias.any() and not mixer.proj.bias.any()
    assert mixer.static.fc1.weight.shape == (3, 197, 197)


@pytest.mark.parametrize('arch', ['small', 'small-pam', 'small-mh-mlp'])
def test_own_files_tell_the_forms_apart(arch):
    state = VisionTransformer(arch, out_norm=False).state_dict()
    found = find_arch(VisionTransformer, state, checkpoint.METAFORMER_LAYOUT)
    assert found['arch'] == arch and found['pretrain_img_size'] == (224, 224)


@pytest.mark.parametrize('size', [(64, 64), (50, 90)])
@pytest.mark.parametrize('pooled', ['token', 'average'])
def test_pooled_output(pooled, size, torch_seed):
    """Equal to timm's features before its head."""
    import timm

    theirs = golden.randomize(timm.create_model('vit_tiny_patch16_224', dynamic_img_size=True))
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith(('head.', 'norm.'))}
    model = VisionTransformer('tiny', pooled=pooled).eval()
    assert len(model.out_channels) == len(model.out_strides) == 4
    model.load_state_dict(state, strict=False)
    model.out_norms['3'].load_state_dict(theirs.norm.state_dict())
    x = torch.randn(2, 3, 16 * (size[0] // 16), 16 * (size[1] // 16))
    with torch.no_grad():
        features = theirs.forward_features(x)
        expected = features[:, 0] if pooled == 'token' else features[:, 1:].mean(1)
        for network in (model, deploy(model)):
            *maps, out = network(x)
            assert len(maps) == 4 and out.shape == (2, 192, 1, 1)
            assert relative_error(out.flatten(1), expected) < 1e-5


def test_pooled_output_without_norm_is_the_raw_token(torch_seed):
    model = VisionTransformer('tiny', **SMALL, distilled=True, pooled='token').eval()
    assert not model.out_norms and model(torch.randn(1, 3, 32, 48))[4].shape == (1, 192, 1, 1)


def make_waves(dim, height, width):
    """MAE's fixed positions, place by place."""
    out = torch.zeros(1, dim, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            for i in range(dim // 4):
                rate = 1 / 10000 ** (i / (dim / 4))
                values = [np.sin(x * rate), np.cos(x * rate), np.sin(y * rate), np.cos(y * rate)]
                for part, value in enumerate(values):
                    out[0, part * dim // 4 + i, y, x] = value
    return out.float()


def test_kinds_of_positions(torch_seed):
    zeros = torch.zeros(1, 24, 3, 5)
    kinds = {k: PositionEmbed(24, (3, 5), 1, kind=k) for k in ('learned', '1d', '2d', 'sincos')}
    names = ['pos_embed', 'cls_token', 'cls_pos_embed']
    for kind in ('learned', '1d'):
        assert list(kinds[kind].state_dict()) == names
        assert torch.equal(kinds[kind](zeros)[0], kinds[kind].pos_embed)
    mapped = kinds['2d'](zeros)[0]
    assert list(kinds['2d'].state_dict()) == ['pos_embed_x', 'pos_embed_y', *names[1:]]
    for column, row in ((0, 0), (4, 0), (0, 2), (3, 1)):
        halves = kinds['2d'].pos_embed_x[0, :, 0, column], kinds['2d'].pos_embed_y[0, :, 0, row]
        assert torch.equal(mapped[0, :, row, column], torch.cat(halves))
    mapped, token = kinds['sincos'](zeros)
    torch.testing.assert_close(mapped, make_waves(24, 3, 5))
    assert list(kinds['sincos'].state_dict()) == ['cls_token']
    assert torch.equal(token, kinds['sincos'].cls_token)
    nothing = PositionEmbed(24, (3, 5), 1, kind='none')
    assert torch.equal(nothing(zeros)[0], zeros) and list(nothing.state_dict()) == ['cls_token']
    assert not list(PositionEmbed(24, (3, 5), kind='none').parameters())


@pytest.mark.parametrize('kind', ['learned', '2d', 'sincos', 'none'])
@pytest.mark.parametrize('interpolation', ['bicubic', 'linear'])
def test_kinds_of_positions_in_a_network(kind, interpolation, torch_seed):
    kwargs = {'pos_kind': kind, 'interpolation': interpolation, 'pretrain_img_size': (64, 96)}
    model = VisionTransformer('tiny', **{**SMALL, 'dims': 24}, **kwargs)
    outs = model(torch.randn(2, 3, 50, 90))
    sum(out.square().mean() for out in outs).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    dynamic = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    model.eval()
    with torch.no_grad():
        exported = torch.export.export(model, (torch.randn(2, 3, 80, 160),), dynamic_shapes=dynamic)
        x = torch.randn(3, 3, 144, 48)
        for a, b in zip(exported.module()(x), model(x), strict=True):
            assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize(('kind', 'knows'), [('none', False), ('learned', True), ('sincos', True)])
def test_only_positions_tell_places_apart(kind, knows, torch_seed):
    model = VisionTransformer('tiny', **SMALL, pos_kind=kind).eval()
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        moved = model(x.roll(16, 3))[3].roll(-1, 3)
        assert torch.allclose(moved, model(x)[3], atol=1e-5) != knows


def test_relative_positions_alone(torch_seed):
    model = VisionTransformer('tiny', **SMALL, pos_kind='none', rel_pos=True, with_cls_token=False)
    assert not list(model.positions.parameters())
    for block in (stage.blocks[0] for stage in model.stages):
        torch.nn.init.normal_(block.token_mixer.rel_pos.w)
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert not torch.allclose(model(x.roll(16, 3))[3].roll(-1, 3), model(x)[3], atol=1e-3)


@pytest.mark.parametrize('size', [(7, 9), (3, 2), (24, 24), (1, 6)])
def test_linear_interpolation_is_that_of_googles_code(size, tmp_path, torch_seed):
    """``scipy.ndimage.zoom`` of order 1, on every input and on loading."""
    ndimage = pytest.importorskip('scipy.ndimage')
    small = SMALL | {'interpolation': 'linear'}
    model = VisionTransformer('tiny', **small, pretrain_img_size=(64, 80)).eval()
    positions = model.positions.pos_embed.detach()
    zoom = (1, 1, size[0] / 4, size[1] / 5)
    expected = torch.from_numpy(ndimage.zoom(positions.numpy(), zoom, order=1))
    torch.testing.assert_close(model.positions(torch.zeros(1, 192, *size))[0], expected)
    torch.save(model.state_dict(), tmp_path / 'own.pth')
    larger = VisionTransformer('tiny', **small, pretrain_img_size=[16 * side for side in size])
    checkpoint.load_pretrained(larger, tmp_path / 'own.pth')
    torch.testing.assert_close(larger.positions.pos_embed.data, expected)


def test_files_and_kinds_of_positions(tmp_path, torch_seed):
    learned = VisionTransformer('tiny', **SMALL)
    torch.save(learned.state_dict(), tmp_path / 'learned.pth')
    model = VisionTransformer('tiny', **SMALL, pos_kind='none')
    report = checkpoint.load_pretrained(model, tmp_path / 'learned.pth')
    assert report.dropped == ['positions.pos_embed', 'positions.cls_pos_embed']
    assert torch.equal(model.positions.cls_token, learned.positions.cls_token)
    factorised = VisionTransformer('tiny', **SMALL, pos_kind='2d')
    with pytest.raises(ValueError, match='lacks: positions.pos_embed_x, positions.pos_embed_y'):
        checkpoint.load_pretrained(factorised, tmp_path / 'learned.pth')
    torch.save(factorised.state_dict(), tmp_path / '2d.pth')
    with pytest.raises(ValueError, match='lacks: positions.pos_embed$'):
        checkpoint.load_pretrained(learned, tmp_path / '2d.pth')
    wide = VisionTransformer('tiny', **SMALL, pos_kind='2d', pretrain_img_size=(160, 320))
    assert len(checkpoint.load_pretrained(wide, tmp_path / '2d.pth').resampled) == 2
    full = factorised.positions(torch.zeros(1, 192, 10, 20))[0]
    torch.testing.assert_close(wide.positions(torch.zeros(1, 192, 10, 20))[0], full)


@pytest.mark.parametrize('form', ['attention', 'pam'])
def test_dropout(form, torch_seed):
    forms = {} if form == 'attention' else {'token_mixers': form}
    rates = {'drop_rate': 0.1, 'attn_drop_rate': 0.2}
    small = {**SMALL, 'dims': 24, **forms}
    plain, saving, model = (
        golden.randomize(VisionTransformer('tiny', **small, **kw))
        for kw in ({}, {**rates, 'with_cp': True}, rates)
    )
    x = torch.randn(2, 3, 48, 64)
    for a, b in zip(model(x), plain(x), strict=True):
        assert torch.equal(a, b)
    block = model.stages[0].blocks[0]
    assert [block.token_mixer.attn_drop.p, block.token_mixer.proj_drop.p] == [0.2, 0.1]
    assert block.mlp.drop.p == model.positions.drop.p == 0.1
    grads = []
    for network in (model.train(), saving.train()):
        torch.manual_seed(1)
        out = network(x)[3]
        assert not torch.allclose(out, plain(x)[3])
        out.square().mean().backward()
        grads.append([parameter.grad for parameter in network.parameters()])
    for a, b in zip(*grads, strict=True):  # recomputed with the same dropout
        torch.testing.assert_close(a, b)


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


def test_scales_of_one_need_none_in_the_file(tmp_path, torch_seed):
    """ViT-Adapter trains DeiT with scales on the residual branches, which start at 1."""
    whole = golden.randomize(VisionTransformer('tiny', **SMALL)).eval()
    torch.save(whole.state_dict(), tmp_path / 'file.pth')
    model = VisionTransformer('tiny', **SMALL, layer_scale=1.0).eval()
    report = checkpoint.load_pretrained(model, tmp_path / 'file.pth')
    assert len(report.new) == 8 and all('layer_scale' in name for name in report.new)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x)[3], whole(x)[3])
    small = VisionTransformer('tiny', **SMALL, layer_scale=0.1)
    with pytest.raises(ValueError, match=r'file lacks: stages\.0\.blocks\.0\.layer_scale1\.scale'):
        checkpoint.load_pretrained(small, tmp_path / 'file.pth')
    state = model.state_dict()
    del state['stages.2.blocks.0.layer_scale1.scale']  # some, but not all
    torch.save(state, tmp_path / 'file.pth')
    with pytest.raises(ValueError, match=r'file lacks: stages\.2\.blocks\.0\.layer_scale1\.scale'):
        checkpoint.load_pretrained(model, tmp_path / 'file.pth')


@pytest.mark.parametrize('count', [196, 197])
def test_the_position_of_a_class_token_that_was_left_out(tmp_path, count, torch_seed):
    """ViTDet and ViT-Adapter keep it in their files."""
    import timm

    state = timm.create_model('vit_tiny_patch16_224', depth=4).state_dict()
    state = {k: v for k, v in state.items() if not k.startswith(('norm', 'head', 'cls'))}
    state['pos_embed'] = state['pos_embed'][:, 197 - count :]
    torch.save(state, tmp_path / 'file.pth')
    model = VisionTransformer('tiny', **SMALL, with_cls_token=False)
    report = checkpoint.load_pretrained(model, tmp_path / 'file.pth')
    assert report.dropped == (['positions.cls_pos_embed'] if count == 197 else [])
    assert torch.equal(model.positions.pos_embed.flatten(2).mT, state['pos_embed'][:, -196:])
    with pytest.raises(ValueError, match=r'file lacks: positions\.cls_token'):
        checkpoint.load_pretrained(VisionTransformer('tiny', **SMALL), tmp_path / 'file.pth')


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


MATRICES = {'type': 'ContextAggregation', 'num_heads': 3, 'static': 'mlp', 'token_rows': 1}


@pytest.mark.parametrize(
    ('kwargs', 'culprit'),
    [
        ({'pretrain_img_size': 8}, 'images of 8x8 have no patch of 16'),
        ({'pooled': 'token', 'positions': None}, 'needs a class token in positions'),
        ({'arch': 'giant'}, "no arch 'giant'.*huge.*base-r50-s16"),
        (
            {'window_size': 7, 'global_blocks': ()},
            'class tokens have no position.*Windowed.*with_cls_token=False',
        ),
        ({'rel_pos': True}, 'class tokens have no position.*Attention'),
        ({'token_mixers': 'Pooling'}, 'class tokens have no position.*Pooling'),
        ({'distilled': True, 'with_cls_token': False}, 'distilled=True needs'),
        ({'pooled': 'max'}, "pooled='max'.*'average'"),
        ({'pooled': 'token', 'with_cls_token': False}, "pooled='token', with_cls_token=False"),
        ({'pos_kind': '3d'}, "kind='3d'.*'sincos'"),
        ({'interpolation': 'nearest'}, "interpolation='nearest'.*'linear'"),
        ({'pos_kind': 'sincos', 'dims': 30}, '4 does not divide dim=30'),
        ({'token_mixers': 'pam', 'window_size': 7}, 'pam takes no windows'),
        (
            {'token_mixers': ['Attention', *[MATRICES] * 4], 'depths': (2, 1, 1, 1)},
            'class tokens have no position.*Attention needs.*all mixers of a stage token_rows=1',
        ),
        ({'token_mixers': MATRICES, 'distilled': True}, 'ContextAggregation needs.*token_rows=2'),
        ({'token_mixers': MATRICES, 'with_cls_token': False}, 'needs.*token_rows=0'),
        ({'global_blocks': (4,)}, r'global_blocks=\(4,\).*0\.\.3'),
        ({'stem_indices': (0,)}, r'stem_indices=\(0,\).*0 levels'),
        ({'arch': 'base-r50-s16', 'patch_size': 24}, 'stride=24 is not a multiple.*16'),
    ],
)
def test_wrong_arguments_are_named(kwargs, culprit):
    kwargs = {'arch': 'tiny', 'depths': (1, 1, 1, 1), **kwargs}
    with torch.device('meta'), pytest.raises(ValueError, match=culprit):
        VisionTransformer(**kwargs)


def test_learned_positions_are_no_sines(tmp_path, torch_seed):
    """What a file has must not be dropped for others, unless they are asked to be left out."""
    tiny = {'depths': (1, 1, 1, 1), 'dims': 24, 'pretrain_img_size': 64, 'out_norm': False}
    learned = VisionTransformer('tiny', **tiny)
    torch.save(learned.state_dict(), tmp_path / 'learned.pth')
    fixed = VisionTransformer('tiny', pos_kind='sincos', **tiny)
    with pytest.raises(ValueError, match=r'pos_embed is not the sines and cosines .*pos_kind'):
        checkpoint.load_pretrained(fixed, tmp_path / 'learned.pth')
    learned.positions.pos_embed.data.copy_(fixed.positions.waves)
    torch.save(learned.state_dict(), tmp_path / 'sines.pth')
    report = checkpoint.load_pretrained(fixed, tmp_path / 'sines.pth')
    assert 'positions.pos_embed' in report.dropped


def test_rate_of_dropout_joins_other_settings_of_blocks():
    tiny = {'depths': (1, 1, 1, 1), 'dims': 24}
    model = VisionTransformer('tiny', drop_rate=0.1, block_args={'residual': False}, **tiny)
    block = model.stages[0].blocks[0]
    assert block.mlp.drop.p == 0.1 and not block.layer_scale1.residual
