"""Mixers: CONTAINER's claim that mixing is an affinity times values, and its special cases."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from mmpatch.backbones import PoolFormer
from mmpatch.mixers import (
    Attention,
    ContextAggregation,
    DepthwiseConv,
    Identity,
    Pooling,
    SpatialMLP,
    Windowed,
    spatial_mlp,
)
from mmpatch.mixers.tokens import to_map, to_tokens
from mmpatch.registry import MODELS

import golden

DIM, SIZE = 12, (5, 7)
BOTH = [
    (d, s, g) for d in (True, False) for s in ('conv', 'mlp', None) for g in ('sigmoid', 'learned')
]
LINEAR = {
    'identity': lambda: Identity(DIM),
    'pooling': lambda: Pooling(DIM),
    'pooling of 5': lambda: Pooling(DIM, 5),
    'depthwise convolution': lambda: DepthwiseConv(DIM),
    'depthwise convolution of 8': lambda: DepthwiseConv(DIM, 8),
    'attention': lambda: Attention(DIM, 3),
    'attention with relative positions': lambda: Attention(DIM, 3, rel_pos_size=SIZE),
    'attention with others': lambda: Attention(DIM, 4, rel_pos_size=9),
    'spatial MLP': lambda: SpatialMLP(DIM, SIZE, 3),
    'spatial MLP of another grid': lambda: SpatialMLP(DIM, (4, 4)),
    **{
        f'context aggregation {d}, {s}, {g}': lambda d=d, s=s, g=g: ContextAggregation(
            DIM, 3, dynamic=d, static=s, gate=g, grid=SIZE
        )
        for d, s, g in BOTH
        if d or s
    },
    'spatial MLP with a class token': lambda: SpatialMLP(DIM, (4, 7), 3, token_rows=1),
    'attention with two tokens': lambda: ContextAggregation(DIM, 3, static=None, token_rows=2),
    'PAM': lambda: ContextAggregation(DIM, 3, grid=(4, 7), **PAM),
    'PAM of another grid': lambda: ContextAggregation(DIM, 3, grid=3, **PAM),
    'MH-MLP': lambda: ContextAggregation(DIM, 3, dynamic=False, grid=(4, 7), **PAM),
}
PAM = {'static': 'mlp', 'gate': None, 'qkv_bias': False, 'token_rows': 1}


def made(make):
    torch.manual_seed(0)
    mixer = make().double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer, torch.randn(2, DIM, *SIZE, dtype=torch.float64)


@pytest.mark.parametrize('name', LINEAR)
def test_mixing_is_an_affinity_times_values(name):
    mixer, x = made(LINEAR[name])
    affinity = mixer.affinity(x)
    count = 35 - 6 * getattr(mixer, 'token_rows', 0)  # such a row of 7 is one token
    assert affinity.shape[0] == 2 and affinity.shape[2:] == (count, count)
    assert affinity.shape[1] == mixer.values(x).shape[1]
    mixed = mixer.project(affinity @ mixer.values(x), x.shape[2:])
    torch.testing.assert_close(mixed, mixer(x))


@pytest.mark.parametrize('name', LINEAR)
def test_gradients(name):
    mixer, x = made(LINEAR[name])
    assert gradcheck(mixer, x[:1, :, :2, :3].clone().requires_grad_())


def aggregation(alpha, beta, static, heads=3):
    mixer, x = made(
        lambda: ContextAggregation(DIM, heads, static=static, gate='learned', grid=SIZE)
    )
    with torch.no_grad():
        mixer.alpha.fill_(alpha)
        mixer.beta.fill_(beta)
    return mixer, x


def linear(conv):
    return conv.weight.flatten(1), conv.bias


def test_alpha_alone_is_self_attention():
    mixer, x = aggregation(1.0, 0.0, 'conv')
    attention = Attention(DIM, 3).double()
    for layer, conv in ((attention.qkv, mixer.qkv), (attention.proj, mixer.proj)):
        layer.weight.data, layer.bias.data = linear(conv)
    torch.testing.assert_close(mixer(x), attention(x))


def test_beta_alone_is_depthwise_convolution():
    mixer, x = aggregation(0.0, 1.0, 'conv')
    value = F.conv2d(x, mixer.qkv.weight[2 * DIM :], mixer.qkv.bias[2 * DIM :])
    torch.testing.assert_close(mixer(x), mixer.proj(mixer.static.conv(value)))


def test_beta_alone_with_one_matrix_is_token_mixing():
    mixer, x = aggregation(0.0, 1.0, 'mlp', heads=1)
    value = F.conv2d(x, mixer.qkv.weight[2 * DIM :], mixer.qkv.bias[2 * DIM :])
    mixed = F.linear(value.flatten(2), mixer.static.fc1.weight[0]).view_as(value)
    torch.testing.assert_close(mixer(x), mixer.proj(mixed))


def test_pam_equals_the_listing_in_the_paper():
    """Output and affinity of the listing, on a class token and a grid of 4 x 4."""
    meta, state = golden.load_reference('container_pam_attention')
    reference = np.load(golden.DATA / 'container_pam_attention.npz')
    mixer = ContextAggregation(64, meta['num_heads'], grid=4, **PAM).eval()
    state['static.fc1.weight'] = state.pop('static_a')
    for name, tensor in mixer.state_dict().items():
        tensor.copy_(state.pop(name).view_as(tensor))
    assert not state
    tokens = np.random.RandomState(meta['seed']).standard_normal(meta['input'])
    x = to_map(torch.from_numpy(tokens.astype(np.float32))[:, None], (5, 4), 1)
    with torch.no_grad():
        output = to_tokens(mixer(x), 1, 1)[:, 0]
        assert np.abs(output.numpy() - reference['output']).max() < 1e-6
        assert np.abs(mixer.affinity(x).numpy() - reference['affinity']).max() < 1e-6


@pytest.mark.parametrize(('name', 'depends'), [('PAM', True), ('MH-MLP', False)])
def test_which_affinity_depends_on_the_input(name, depends):
    mixer, x = made(LINEAR[name])
    assert torch.equal(mixer.affinity(x), mixer.affinity(2 * x + 1)) != depends


def test_pam_adds_a_matrix_to_the_softmax():
    mixer, x = made(LINEAR['PAM'])
    plain, _ = made(lambda: ContextAggregation(DIM, 3, **PAM | {'static': None}))
    plain.qkv = mixer.qkv
    expected = plain.affinity(x) + mixer.static.fc1.weight
    torch.testing.assert_close(mixer.affinity(x), expected)


@pytest.mark.parametrize('name', ['PAM', 'MH-MLP'])
def test_static_matrices_under_vmap(name):
    mixer, x = made(LINEAR[name])
    mapped = torch.func.vmap(lambda one: mixer(one[None])[0])(x)
    torch.testing.assert_close(mapped, mixer(x))


def test_spatial_mlp_equals_timm(torch_seed):
    """The token mixing of ResMLP and of MLP-Mixer, taken from whole models."""
    import timm

    residual = timm.create_model('resmlp_12_224').blocks[0].linear_tokens
    mixer = timm.create_model('mixer_s32_224').blocks[0].mlp_tokens
    one = SpatialMLP(DIM, 14)
    two = SpatialMLP(DIM, 7, hidden=mixer.fc1.out_features)
    pairs = ((one.fc1, residual), (two.fc1, mixer.fc1), (two.fc2, mixer.fc2))
    for ours, theirs in pairs:
        torch.nn.init.normal_(theirs.bias)
        ours.weight.data, ours.bias.data = theirs.weight.data[None], theirs.bias.data[None]
    for ours, theirs, side in ((one, residual, 14), (two, mixer, 7)):
        x = torch.randn(2, DIM, side, side)
        expected = theirs(x.flatten(2)).view_as(x)
        assert (ours(x) - expected).norm() < 1e-5 * expected.norm()


def test_resampled_spatial_mlp_keeps_averages(torch_seed):
    mixer = SpatialMLP(DIM, (4, 4), bias=False)
    torch.nn.init.constant_(mixer.fc1.weight, 1 / 16)
    x = torch.randn(1, DIM, 6, 10)
    torch.testing.assert_close(mixer(x), x.mean((2, 3), keepdim=True).expand_as(x))


def test_a_resampled_matrix_keeps_the_weights_of_class_tokens(torch_seed):
    mixer = SpatialMLP(DIM, (4, 4), bias=False, token_rows=1)
    weight = mixer.fc1.weight.data.fill_(1 / 16)
    weight[0, :, 0] = torch.tensor([3.0, *[2.0] * 16])  # from the class token
    x = torch.randn(2, DIM, 7, 10)
    token, rest = x[:, :, :1, :1], x[:, :, 1:]
    mean = rest.mean((2, 3), keepdim=True)
    out = mixer(x)
    torch.testing.assert_close(out[:, :, :1], (3 * token + mean).expand(-1, -1, -1, 10))
    torch.testing.assert_close(out[:, :, 1:], (2 * token + mean).expand_as(rest))


@pytest.mark.parametrize('name', ['attention', 'PAM', 'MH-MLP', 'context aggregation'])
def test_dropout_of_affinity_and_output(name, torch_seed):
    makers = {
        'attention': lambda **kw: Attention(DIM, 3, **kw),
        'PAM': lambda **kw: ContextAggregation(DIM, 3, grid=(4, 7), **PAM, **kw),
        'MH-MLP': lambda **kw: ContextAggregation(DIM, 3, dynamic=False, grid=(4, 7), **PAM, **kw),
        'context aggregation': lambda **kw: ContextAggregation(DIM, 3, **kw),
    }
    x = torch.randn(1, DIM, *SIZE)
    plain = golden.randomize(makers[name]())
    for rate in ('attn_drop', 'proj_drop'):
        mixer = golden.randomize(makers[name](**{rate: 0.25}))
        assert torch.equal(mixer(x), plain(x))  # in evaluation
        mixer.train()
        assert not torch.equal(mixer(x), plain(x))
        dropped = (mixer(x) == 0).float().mean().item()
        assert abs(dropped - 0.25 * (rate == 'proj_drop')) < 0.1
        mean = sum(mixer(x) for _ in range(1000)) / 1000
        assert (mean - plain(x)).norm() < 0.1 * plain(x).norm()
    if name in ('PAM', 'MH-MLP'):  # of the sum of both affinities
        mixer = golden.randomize(makers[name](attn_drop=0.25)).train()
        torch.manual_seed(1)
        out = mixer(x)
        torch.manual_seed(1)
        mixed = F.dropout(mixer.affinity(x), 0.25) @ mixer.values(x)
        torch.testing.assert_close(out, mixer.project(mixed, x.shape[2:]))


@pytest.mark.parametrize(
    ('how', 'text'), [('resample', 'matrices are resampled'), ('window', 'runs in windows')]
)
def test_spatial_mlp_says_once_how_it_serves_another_grid(monkeypatch, how, text):
    said = []
    monkeypatch.setattr('mmpatch.mixers.spatial_mlp.print_log', lambda line, **_: said.append(line))
    spatial_mlp._log_other_grid.cache_clear()
    for _ in range(2):
        mixer = SpatialMLP(DIM, 4, other_grids=how)
        assert mixer(torch.randn(1, DIM, 5, 9)).shape == (1, DIM, 5, 9)
        mixer(torch.randn(1, DIM, 6, 8))
    assert len(said) == 1 and text in said[0]


def test_what_is_no_affinity_says_so():
    with pytest.raises(ValueError, match='two layers'):
        SpatialMLP(DIM, SIZE, hidden=3).affinity(torch.ones(1, DIM, *SIZE))
    with pytest.raises(ValueError, match='windows'):
        SpatialMLP(DIM, 4, other_grids='window').affinity(torch.ones(1, DIM, *SIZE))


def test_windows_do_not_see_each_other(torch_seed):
    mixer = Windowed(DIM, {'type': 'Attention', 'num_heads': 2}, window_size=3)
    x = torch.randn(2, DIM, *SIZE)
    padded = F.pad(x, (0, 2, 0, 1))
    for top in (0, 3):
        for left in (0, 3, 6):
            window = mixer.mixer(padded[:, :, top : top + 3, left : left + 3])
            seen = mixer(x)[:, :, top : top + 3, left : left + 3]
            torch.testing.assert_close(seen, window[:, :, : seen.shape[2], : seen.shape[3]])


@pytest.mark.parametrize(
    ('make', 'culprit'),
    [
        (lambda: Attention(12, 5), 'num_heads=5 does not divide dim=12'),
        (lambda: SpatialMLP(12, num_heads=5), 'num_heads=5'),
        (lambda: SpatialMLP(12, other_grids='crop'), "other_grids='crop'"),
        (lambda: ContextAggregation(12, 3, static='fft'), "static='fft'"),
        (lambda: ContextAggregation(12, 3, gate='and'), "gate='and'"),
        (lambda: ContextAggregation(12, 3, dynamic=False, static=None), 'needs a dynamic'),
        (lambda: ContextAggregation(12, 5), 'num_heads=5'),
        (lambda: ContextAggregation(12, 3, token_rows=1), "token_rows=1 .*static='conv'"),
        (
            lambda: SpatialMLP(12, token_rows=1, other_grids='window'),
            'token_rows cannot be combined',
        ),
        (lambda: Attention(12, 3, attn_drop=2), 'probability'),
    ],
)
def test_wrong_arguments_are_named(make, culprit):
    with pytest.raises(ValueError, match=culprit):
        make()


def test_every_mixer_works_in_a_pyramid(torch_seed):
    mixers = [
        Identity,
        'Pooling',
        {'type': 'DepthwiseConv', 'kernel_size': 4},
        {'type': 'Attention', 'num_heads': 4},
        {'type': 'SpatialMLP', 'grid': 4},
        {'type': 'ContextAggregation', 'num_heads': 4},
        {'type': 'Windowed', 'mixer': {'type': 'Attention', 'num_heads': 4}, 'window_size': 3},
    ]
    model = PoolFormer(depths=(2, 2, 2, 1), dims=(8, 8, 16, 16), token_mixers=mixers)
    outs = model(torch.randn(2, 3, 70, 96))
    sum(out.square().mean() for out in outs).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_a_mixer_of_ones_own_is_a_class_and_a_name(torch_seed):
    @MODELS.register_module(name='Shift')
    class Shift(torch.nn.Module):
        """Every channel looks one token to the left, by a learned share."""

        def __init__(self, dim):
            super().__init__()
            self.share = torch.nn.Parameter(torch.zeros(dim, 1, 1))

        def forward(self, x):
            return self.share * F.pad(x, (1, 0))[..., :-1]

    try:
        model = PoolFormer(
            depths=(1, 1, 1, 1),
            dims=(8, 8, 16, 16),
            token_mixers=['Shift', 'Shift', 'Pooling', Shift],
        )
    finally:
        MODELS.module_dict.pop('Shift')
    x, wanted = torch.randn(8, 3, 32, 32), torch.randn(8, 16)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(model(x)[3].mean((2, 3)), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.stages[0].blocks[0].token_mixer.share.abs().sum() > 0


def test_windows_take_no_rows_of_tokens():
    mixer = {'type': 'SpatialMLP', 'grid': 4, 'token_rows': 1}
    with pytest.raises(ValueError, match='a mixer in windows has no token_rows'):
        Windowed(8, mixer, 4)
