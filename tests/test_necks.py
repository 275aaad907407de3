"""The pyramids of plain ViTs: their formulas, their strides, their errors."""

import pytest
import torch
import torch.nn.functional as F

from mmpatch.backbones import ConvMixer, VisionTransformer
from mmpatch.necks import SimpleFeaturePyramid, TapPyramid

VIT = {'arch': 'tiny', 'depths': (1, 1, 1, 1), 'dims': 24}


def test_levels_of_one_map(torch_seed):
    neck = SimpleFeaturePyramid(16, 8, num_outs=5, in_stride=16)
    outs = neck([torch.randn(2, 16, 6, 10)])
    sizes = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
    assert [tuple(o.shape) for o in outs] == [(2, 8, *size) for size in sizes]
    assert neck.out_strides == (4, 8, 16, 32, 64) and neck.out_channels == (8,) * 5
    sum(out.square().mean() for out in outs).backward()
    assert not [n for n, p in neck.named_parameters() if p.grad is None]


def test_equals_its_formula(torch_seed):
    """As in detectron2: ConvT, LN, GELU, ConvT for 4, ConvT for 2, max-pool for 1/2."""
    neck = SimpleFeaturePyramid(16, 8)
    x = torch.randn(1, 16, 4, 6)

    def norm(module, y):
        weight, bias = module.weight, module.bias
        return F.layer_norm(y.permute(0, 2, 3, 1), weight.shape, weight, bias, 1e-6).permute(
            0, 3, 1, 2
        )

    def last(level, y):
        conv1, norm1, conv3, norm3 = level[-4:]
        y = norm(norm1, F.conv2d(y, conv1.weight))
        return norm(norm3, F.conv2d(y, conv3.weight, padding=1))

    def up(module, y):
        return F.conv_transpose2d(y, module.weight, module.bias, stride=2)

    four, two, one, half = neck.levels
    y = up(four[3], F.gelu(norm(four[1], up(four[0], x))))
    expected = [
        last(four, y),
        last(two, up(two[0], x)),
        last(one, x),
        last(half, F.max_pool2d(x, 2)),
    ]
    assert len(one) == 4 and four[0].weight.shape == (16, 8, 2, 2) and y.shape[1] == 4
    for out, reference in zip(neck([x]), expected, strict=True):
        torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)


def test_reads_channels_and_strides_from_the_backbone():
    backbone = VisionTransformer(**VIT, out_indices=(3,))
    for asked in (backbone, {'type': 'mmpatch.VisionTransformer', **VIT, 'out_indices': (3,)}):
        neck = SimpleFeaturePyramid(backbone=asked, out_channels=8)
        assert neck.in_channels == (24,) and neck.out_strides == (4, 8, 16, 32)
    neck(backbone(torch.randn(1, 3, 33, 50)))


def test_several_taps_become_a_pyramid():
    backbone = VisionTransformer(**VIT)
    neck = SimpleFeaturePyramid(backbone=backbone, out_channels=8)
    outs = neck(backbone(torch.randn(1, 3, 64, 96)))
    assert [tuple(o.shape[2:]) for o in outs] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    sum(out.square().mean() for out in outs).backward()
    parameters = [*backbone.named_parameters(), *neck.named_parameters()]
    tokens = [n for n, p in parameters if p.grad is None]
    assert not tokens


def test_taps_equal_their_formula(torch_seed):
    """As in ViT-Adapter: ConvT, GN, GELU, ConvT for 4, ConvT for 2, nothing, max-pool for 1/2."""
    neck = TapPyramid([32] * 4, in_stride=16)
    taps = [torch.randn(1, 32, 4, 6) for _ in range(4)]

    def up(module, y):
        return F.conv_transpose2d(y, module.weight, module.bias, stride=2)

    first, norm, _, second = neck.levels[0]
    y = F.group_norm(up(first, taps[0]), 32, norm.weight, norm.bias, 1e-5)
    expected = [
        up(second, F.gelu(y)),
        up(neck.levels[1][0], taps[1]),
        taps[2],
        F.max_pool2d(taps[3], 2),
    ]
    for out, reference in zip(neck(taps), expected, strict=True):
        torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)
    assert neck.out_channels == (32,) * 4 and neck.out_strides == (4, 8, 16, 32)
    assert not neck.levels[1][0].bias.any()
    assert neck.levels[1][0].weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.1)


def test_taps_take_channels_and_odd_maps_from_the_backbone(torch_seed):
    backbone = VisionTransformer(**VIT)
    neck = TapPyramid(backbone=backbone, norm_cfg={'type': 'GN', 'num_groups': 4})
    outs = neck(backbone(torch.randn(2, 3, 48, 80)))
    assert [tuple(o.shape[2:]) for o in outs] == [(12, 20), (6, 10), (3, 5), (2, 3)]
    sum(out.square().mean() for out in outs).backward()
    parameters = [*backbone.named_parameters(), *neck.named_parameters()]
    assert not [name for name, p in parameters if p.grad is None]


@pytest.mark.parametrize(
    ('patch', 'scales', 'strides'),
    [
        (7, (2, 1, 0.5, 0.25), (3.5, 7, 14, 28)),
        (14, (4, 2, 1, 0.5), (3.5, 7, 14, 28)),
        (8, (2, 1, 0.5, 0.25), (4, 8, 16, 32)),
        (16, (0.5,), (32,)),
    ],
)
def test_strides_of_convmixer(patch, scales, strides):
    small = {'depths': (1, 1, 1, 1), 'dims': 8, 'out_indices': (3,), 'out_norm': False}
    backbone = ConvMixer('512/12', patch_size=patch, **small).eval()
    neck = SimpleFeaturePyramid(backbone=backbone, out_channels=8, scale_factors=scales)
    assert neck.out_strides == strides
    outs = neck(backbone(torch.randn(1, 3, 224, 448)))
    for out, stride in zip(outs, strides, strict=True):
        assert out.shape[2:] == (224 / stride, 448 / stride)


@pytest.mark.parametrize(
    ('kwargs', 'culprit'),
    [
        ({'scale_factors': (4, 3, 1)}, r'scale_factors=\(4, 3, 1\): 3 is not a power of two'),
        ({'scale_factors': (1, 2)}, r'\(1, 2\) must fall'),
        ({'in_channels': None}, 'needs in_channels, or a backbone'),
        ({'in_channels': [8, 8]}, '2 inputs for 4 scale_factors'),
        ({'num_outs': 3}, 'num_outs=3 is less than 4'),
        (
            {'backbone': {'type': 'mmpatch.VisionTransformer', **VIT, 'out_indices': (3,)}},
            r'in_channels=\(16,\), but the backbone gives \(24,\)',
        ),
    ],
)
def test_wrong_arguments_are_named(kwargs, culprit):
    with pytest.raises(ValueError, match=culprit):
        SimpleFeaturePyramid(**{'in_channels': 16, **kwargs})


@pytest.mark.parametrize('neck', [SimpleFeaturePyramid, TapPyramid])
def test_wrong_number_of_inputs_is_named(neck):
    with pytest.raises(ValueError, match=f'{neck.__name__} was made for 1 inputs, got 2'):
        neck(32)([torch.ones(1, 32, 4, 4)] * 2)
    with pytest.raises(ValueError, match=f'{neck.__name__} needs in_channels, or a backbone'):
        neck()
