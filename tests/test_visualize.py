"""What tools/visualize.py draws: the numbers, not the pictures."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmpatch.backbones import Container, ConvMixer, MetaFormer, PoolFormer, VisionTransformer
from mmpatch.mixers import Attention, ContextAggregation, DepthwiseConv, Pooling, Windowed

from support import ROOT, call_tool

sys.path.insert(0, str(ROOT / 'tools'))
from visualization import affinity, cam, erf, features, subject, weights

TOOL = 'tools/visualize.py'
TINY = {'depths': (1, 1, 2, 1), 'dims': (16, 16, 32, 32)}
ISOTROPIC = {'depths': (2,), 'out_indices': (0,)}
NETWORKS = {
    'PoolFormer': lambda: PoolFormer('s12', **TINY),
    'PoolFormer with attention': lambda: PoolFormer('s12-ppaa', **TINY),
    'PoolFormer with spatial FC': lambda: PoolFormer('s12-ppff', **TINY),
    'Container': lambda: Container('light', **TINY),
    'ConvMixer': lambda: ConvMixer('256/8', depths=(1, 1, 1, 1), dims=8, patch_size=8),
    'ViT': lambda: VisionTransformer('tiny', depths=(1, 1, 1, 1)),
    'PAM': lambda: VisionTransformer('small-pam', depths=(1, 1), out_indices=(0, 1)),
    'ViTDet': lambda: VisionTransformer(
        'tiny',
        depths=(2, 2),
        window_size=3,
        rel_pos=True,
        with_cls_token=False,
        out_indices=(1,),
    ),
}


@pytest.fixture(autouse=True)
def without_gradients(torch_seed):
    with torch.no_grad():
        yield


@pytest.mark.parametrize('name', NETWORKS)
def test_rows_are_those_of_the_affinity_and_say_what_a_mixer_puts_out(name):
    """The row of a token, times the values, is what the mixer collects for it."""
    model = NETWORKS[name]().eval()
    blocks = affinity.find_blocks(model, torch.randn(1, 3, 64, 96))
    assert [block.name.split()[1] for block in blocks] == [f'{i + 1}:' for i in range(len(blocks))]
    for block in blocks:
        token = affinity.find_token(block, (0.6, 0.4))
        row = list(block.get_rows(token).values())[-1]
        assert row.shape[1] == block.ahead + block.grid[0] * block.grid[1]
        if isinstance(block.mixer, Windowed):
            continue
        mixer, x = block.mixer, block.x
        assert torch.allclose(row, mixer.affinity(x)[0, :, token], atol=1e-5), block.name
        matrix = block.get_matrix()
        assert torch.allclose(matrix.sum(1), torch.ones(len(matrix)), atol=1e-4)


def test_pooling_is_its_neighbourhood_minus_the_centre():
    x = torch.randn(1, 4, 5, 6)
    row = affinity.get_rows(Pooling(4), x, 2 * 6 + 3)['affinity'].view(5, 6)
    expected = torch.zeros(5, 6)
    expected[1:4, 2:5] = 1 / 9
    expected[2, 3] -= 1
    assert torch.allclose(row, expected, atol=1e-6)
    corner = affinity.get_rows(Pooling(4), x, 0)['affinity'].view(5, 6)
    assert corner[0, 0] == pytest.approx(1 / 4 - 1) and corner[:2, :2].sum() == pytest.approx(0)


def test_rows_of_attention_sum_to_one():
    row = affinity.get_rows(Attention(8, 2), torch.randn(1, 8, 3, 4), 5)['affinity']
    assert row.shape == (2, 12) and torch.allclose(row.sum(1), torch.ones(2))


def test_container_shows_both_parts_and_their_sum():
    mixer, x = ContextAggregation(8, 2).eval(), torch.randn(1, 8, 6, 7)
    mixer.gate.fill_(0.7)
    dynamic, static, both = affinity.get_rows(mixer, x, 10).values()
    alpha, beta = mixer.gate_weights()
    assert torch.allclose(dynamic.sum(1), alpha.expand(8))
    plain = DepthwiseConv(8, 5)
    plain.conv.load_state_dict(mixer.static.conv.state_dict())
    assert torch.allclose(static, beta * plain.affinity(x)[0, :, 10], atol=1e-6)
    assert torch.allclose(both, mixer.affinity(x)[0, :, 10], atol=1e-6)


def test_windows_end_where_they_should():
    mixer = Windowed(8, {'type': 'Attention', 'num_heads': 2}, window_size=3)
    row = affinity.get_rows(mixer, torch.randn(1, 8, 5, 7), 1 * 7 + 4)['affinity'].view(2, 5, 7)
    assert (row[:, :3, 3:6] > 0).all() and torch.allclose(row.sum((1, 2)), torch.ones(2))
    assert row.count_nonzero() == 2 * 9
    edge = affinity.get_rows(mixer, torch.randn(1, 8, 5, 7), 4 * 7 + 6)['affinity'].view(2, 5, 7)
    assert edge.count_nonzero() == 2 * 2 and (edge[:, 3:, 6:] > 0).all()  # the rest is padding


def test_rollout_in_windows_stays_in_them_and_sums_to_the_share_inside():
    model = VisionTransformer(
        'tiny', **ISOTROPIC, window_size=3, global_blocks=[], with_cls_token=False
    ).eval()
    blocks = affinity.find_blocks(model, torch.randn(1, 3, 96, 96))
    weights_of_token = affinity.roll_out(blocks, blocks[-1], 0).view(6, 6)
    assert weights_of_token[:3, :3].sum() == pytest.approx(1, abs=1e-4)


def test_rollout_of_pooling_is_pooling_twice():
    model = PoolFormer('s12', **TINY, layer_scale=None).eval()
    blocks = affinity.find_blocks(model, torch.randn(1, 3, 128, 128))
    last = blocks[3]  # of the third stage, which has two
    found = affinity.roll_out(blocks, last, affinity.find_token(last, (0.5, 0.5))).view(last.grid)
    pool = Pooling(1)
    expected = torch.zeros(1, 1, *last.grid)
    expected[0, 0, 4, 4] = 1
    for _ in range(2):
        expected = expected + pool(expected)
    inner = found[2:7, 2:7]
    assert torch.allclose(inner, expected[0, 0, 2:7, 2:7], atol=1e-3)


def test_attention_of_timm_is_that_of_ours():
    from mmpatch.backbones import TimmBackbone

    theirs = TimmBackbone('vit_tiny_patch16_224', (0, 1)).eval()
    blocks = affinity.find_blocks(theirs, torch.randn(1, 3, 64, 96))
    assert [(b.grid, b.ahead) for b in blocks] == [((4, 6), 1)] * 2
    row = blocks[1].get_rows(affinity.find_token(blocks[1], None))['affinity']
    assert row.shape == (3, 25) and torch.allclose(row.sum(1), torch.ones(3), atol=1e-5)


def test_networks_without_affinity_get_one_line():
    from mmpatch.backbones import TimmBackbone

    with pytest.raises(SystemExit, match='error: TimmBackbone has no mixers'):
        affinity.find_blocks(TimmBackbone('resnet18', (0, 1)), torch.randn(1, 3, 64, 64))


def test_receptive_fields_grow_with_depth():
    x = torch.randn(2, 3, 128, 128)
    plain = MetaFormer(**TINY, token_mixers='Identity', layer_scale=1.0, out_norm=False)
    pooled = MetaFormer(**TINY, token_mixers='Pooling', layer_scale=1.0, out_norm=False)
    with torch.enable_grad():
        sides = [
            [erf.find_reach(field, erf.find_centre(field)) for field in erf.measure(model, x)]
            for model in (plain.eval(), pooled.eval())
        ]
    for own in sides:
        assert own == sorted(set(own))
    assert all(a < b for a, b in zip(*sides, strict=True))


def test_receptive_field_of_a_patch_embedding_is_its_patch():
    model = ConvMixer(
        '256/8', depths=(1,), dims=8, strides=(8,), kernel_size=1, out_indices=(0,)
    ).eval()
    with torch.enable_grad():
        (field,) = erf.measure(model, torch.randn(1, 3, 40, 40))
    assert (field[16:24, 16:24] > 0).all() and np.count_nonzero(field) == 64
    assert erf.find_centre(np.ones((5, 7))) == pytest.approx((2, 3))


def test_components_are_ordered_and_explain_a_map():
    x = torch.randn(2, 1, 1) * torch.arange(12.0).view(1, 3, 4)
    components, shares = features.project(x)
    assert components.shape == (3, 4, 3) and shares[0] == pytest.approx(1, abs=1e-5)
    channels = torch.zeros(5, 3, 4)
    channels[3], channels[1] = x[0] / x[0].std(), 0.1 * x[0] / x[0].std()
    assert features.pick_channels(channels, 2) == [3, 1]
    colours = features.to_colours(components)
    assert colours.min() >= 0 and colours.max() <= 1


def test_grad_cam_is_the_weighted_sum():
    maps, gradients = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    found = cam.weigh(maps, gradients)
    expected = sum(g.mean() * m for g, m in zip(gradients, maps, strict=True)).clamp(min=0)
    assert torch.allclose(found, expected)


def test_distance_of_mixing():
    model = PoolFormer('s12', depths=(1,), dims=8, strides=(4,), out_indices=(0,)).eval()
    (block,) = affinity.find_blocks(model, torch.randn(1, 3, 32, 32))
    block.get_rows = lambda token: {'affinity': torch.eye(64)[(token + 1) % 64][None]}
    assert weights.measure_distances(block, (4.0, 4.0)).item() > 4
    block.get_rows = lambda token: {'affinity': torch.eye(64)[token][None]}
    assert weights.measure_distances(block, (4.0, 4.0)).item() == 0


def test_positions_are_most_similar_to_themselves():
    similar, rows, columns = weights.compare_positions(torch.randn(8, 6, 7), 3)
    assert similar.shape == (len(rows), len(columns), 6, 7)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            assert similar[i, j, row, column] == pytest.approx(1, abs=1e-5)
    model = VisionTransformer('tiny', **ISOTROPIC)
    assert weights.find_positions(model).shape == (192, 14, 14)
    assert weights.find_filters(model, 3).shape == (192, 3, 16, 16)
    kernels = weights.find_kernels(Container('light', **TINY))
    assert len(kernels) == 8 and all(kernel.ndim == 3 for kernel in kernels.values())


def test_pictures_become_inputs_by_the_networks_own_statistics(tmp_path):
    Image.new('RGB', (80, 40), (255, 0, 0)).save(tmp_path / 'red.png')
    photo = subject.read_photo(str(tmp_path / 'red.png'), 64)
    assert photo.shape == (64, 128, 3) and (photo == (255, 0, 0)).all()
    found = subject.load_subject('poolformer-s12')
    x = found.prepare(photo)[0, :, 0, 0]
    assert torch.allclose(x, torch.tensor([2.2489, -2.0357, -1.8044]), atol=1e-3)
    assert found.weights == 'random weights'
    assert subject.load_subject('timm://vit_tiny_patch16_224').mean[0] == pytest.approx(127.5)


def pictures(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ('view', 'made', 'options'),
    [
        ('features', ['features_poolformer-s12-ppaa.png'], ()),
        ('affinity', ['affinity_poolformer-s12-ppaa.png'], ('--rollout', '--heads', 2)),
        ('erf', ['erf_poolformer-s12-ppaa.png'], ('--noise', 1)),
        ('weights', ['distance', 'filters', 'positions'], ()),
    ],
)
def test_views_are_drawn(monkeypatch, tmp_path, view, made, options):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    out = ('--out', tmp_path, '--size', 64)
    with torch.enable_grad():
        call_tool(monkeypatch, TOOL, view, 'poolformer-s12-ppaa', *out, *options)
    if view == 'weights':
        made = [f'weights-{part}_poolformer-s12-ppaa.png' for part in made]
    assert pictures(tmp_path) == made
    if view == 'features':  # of another photograph, which does not replace the first
        Image.new('RGB', (80, 40), (255, 0, 0)).save(tmp_path / 'my dog.jpg')
        call_tool(monkeypatch, TOOL, view, 'poolformer-s12-ppaa', tmp_path / 'my dog.jpg', *out)
        made = [*made, 'features_poolformer-s12-ppaa_my-dog.png']
        assert pictures(tmp_path) == [*made, 'my dog.jpg']
    for name in made:
        assert Image.open(tmp_path / name).convert('L').getextrema()[0] < 100


@pytest.mark.hosts
@pytest.mark.parametrize(
    ('config', 'label'),
    [
        ('demo/retinanet_poolformer-nano_fpn_toy-coco.py', None),
        ('demo/fpn_poolformer-nano_toy-ade20k.py', 'animal'),
    ],
)
def test_cam_of_a_detector_and_a_segmentor(config, label):
    found = subject.load_subject(config, change=cam.let_all_through)
    x = found.prepare(subject.read_photo(None, 64))
    number = cam.find_class(label, cam.find_classes(found.cfg)) if label else None
    assert number in (None, 126)
    maps, _, where, shown = cam.explain(found.model, x, number)
    assert maps and any(m.any() for m in maps) and all((m >= 0).all() for m in maps)
    assert where.ndim == (1 if label is None else 2) and (number is None or shown == number)
    with pytest.raises(SystemExit, match="error: no class 'unicorn'"):
        cam.find_class('unicorn', cam.find_classes(found.cfg))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('affinity', 'poolformer-s13'), 'nearest: .*poolformer-s12'),
        (('affinity', 'poolformer-s12', 'none.jpg'), 'none.jpg is no picture'),
        (('affinity', 'poolformer-s12', '--class-token'), 'sees no class token'),
        (('affinity', 'poolformer-s12', '--blocks', '99'), 'there are blocks 1 to 12'),
        (('cam', 'poolformer-s12', '--class', 'dog'), 'is a backbone without classes'),
        (('erf', 'poolformer-s12', '--out', '/proc/none'), "'/proc/none'"),
    ],
)
def test_mistakes_get_one_line(monkeypatch, tmp_path, arguments, message):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        call_tool(monkeypatch, TOOL, arguments[0], '--out', tmp_path, '--size', 64, *arguments[1:])
