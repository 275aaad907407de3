"""Layer-wise learning rates, against tables computed independently."""

import re

import pytest
import torch
from torch import nn

from mmpatch.backbones import Container, ConvMixer, PoolFormer, VisionTransformer
from mmpatch.engine import LayerDecayOptimWrapperConstructor

RATE, LR, DECAY = 0.7, 1e-3, 0.1
FAMILIES = {
    'PoolFormer': lambda: PoolFormer(depths=(1, 2, 1, 2), dims=(8, 8, 8, 8)),
    'Container': lambda: Container(depths=(1, 2, 1, 2), dims=(16, 16, 16, 16)),
    'ConvMixer': lambda: ConvMixer('256/8', depths=(1, 2, 1, 2), dims=8),
    'ViT': lambda: VisionTransformer('tiny', depths=(1, 2, 1, 2), dims=24),
    'hybrid ViT': lambda: VisionTransformer(
        'tiny', depths=(1, 2, 1, 2), dims=24, stem={'type': 'ResNetStem', 'depths': (1, 1)}
    ),
}
FIRST_OF_STAGE = (0, 1, 3, 4)  # for the depths above


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Conv2d(8, 8, 1)


def groups(model, type_='OptimWrapper', **paramwise):
    constructor = LayerDecayOptimWrapperConstructor(
        {'type': type_, 'optimizer': {'type': 'AdamW', 'lr': LR, 'weight_decay': DECAY}},
        {'decay_rate': RATE, **paramwise},
    )
    optimizer = constructor(model).optimizer
    inner = getattr(model, 'module', model)
    names = {id(p): n for n, p in inner.named_parameters()}
    return {names[id(g['params'][0])]: g for g in optimizer.param_groups}


def expected_rate(name):
    """From the name alone: six blocks, so depths 0 to 7."""
    if match := re.match(r'backbone\.stages\.(\d)\.blocks\.(\d)\.', name):
        depth = FIRST_OF_STAGE[int(match[1])] + int(match[2]) + 1
    elif match := re.match(r'backbone\.stages\.(\d)\.downsample', name):
        depth = FIRST_OF_STAGE[int(match[1])] + 1
    else:
        depth = 0 if re.match(r'backbone\.(stem|positions)\.', name) else 7
    return LR * RATE ** (7 - depth)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('wrapped', [False, True])
def test_every_parameter_of_every_family(family, wrapped):
    model = Detector(FAMILIES[family]())
    found = groups(nn.DataParallel(model) if wrapped else model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, group in found.items():
        assert group['lr'] == pytest.approx(expected_rate(name), rel=1e-12), name
        assert group['weight_decay'] == DECAY


def reference_rate(name, rate=0.7, layers=12):
    """``get_vit_lr_decay_rate`` of detectron2, in the words of its paper's code."""
    layer = layers + 1
    if name.startswith('backbone'):
        if '.pos_embed' in name or '.patch_embed' in name:
            layer = 0
        elif '.blocks.' in name:
            layer = int(name[name.find('.blocks.') :].split('.')[2]) + 1
    return rate ** (layers + 1 - layer)


def test_rates_of_vit_base_equal_the_reference():
    with torch.device('meta'):
        model = Detector(VisionTransformer('base', with_cls_token=False, out_norm=False))
    for name, group in groups(model).items():
        theirs = name.replace('stem.conv', 'patch_embed.proj').replace('positions.', '')
        if match := re.match(r'backbone\.stages\.(\d)\.blocks\.(\d)(.*)', name):
            theirs = f'backbone.net.blocks.{3 * int(match[1]) + int(match[2])}{match[3]}'
        assert group['lr'] == pytest.approx(LR * reference_rate(theirs), rel=1e-12), name


def test_no_decay_where_asked():
    model = Detector(PoolFormer(depths=(1, 1, 1, 1), dims=(8,) * 4, layer_scale=0.1))
    for name, group in groups(model, flat_decay_mult=0.0).items():
        vector = dict(model.named_parameters())[name].ndim == 1
        assert group['weight_decay'] == (0 if vector else DECAY), name
    model = Detector(VisionTransformer('tiny', depths=(1, 1), dims=24, out_indices=(1,)))
    keys = {key: {'decay_mult': 0.0} for key in ('pos_embed', 'cls_token')}
    found = groups(model, norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=keys)
    for name, group in found.items():
        off = 'norm' in name or name.endswith('bias') or 'pos_embed' in name or 'cls' in name
        assert group['weight_decay'] == (0 if off else DECAY), name
    assert found['backbone.positions.pos_embed']['lr'] == pytest.approx(LR * RATE**3)


def test_rates_of_custom_keys_are_multiplied():
    model = Detector(FAMILIES['PoolFormer']())
    found = groups(model, custom_keys={'backbone': {'lr_mult': 0.1}})
    for name, group in found.items():
        times = 0.1 if name.startswith('backbone') else 1
        assert group['lr'] == pytest.approx(times * expected_rate(name))


def test_shared_and_frozen_parameters():
    model = Detector(PoolFormer(depths=(1, 2, 1, 2), dims=(8,) * 4, frozen_stages=1))
    model.again = model.neck
    found = groups(model)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(found) == learning and not [n for n in found if n.startswith('backbone.stem')]
    assert found['backbone.stages.3.blocks.0.norm1.weight']['lr'] == pytest.approx(LR * RATE**2)


def test_mixed_precision_keeps_the_rates():
    model = Detector(FAMILIES['ConvMixer']())
    for name, group in groups(model, 'mmpatch.BFloat16OptimWrapper').items():
        assert group['lr'] == pytest.approx(expected_rate(name)), name


@pytest.mark.parametrize('rate', [None, 0, 1.5])
def test_wrong_rates_are_named(rate):
    with pytest.raises(ValueError, match=rf'decay_rate={rate}: give a number in \(0, 1\]'):
        LayerDecayOptimWrapperConstructor(
            {'optimizer': {'type': 'SGD', 'lr': 1}},
            {'decay_rate': rate} if rate is not None else {},
        )


def test_a_model_without_depths_is_named():
    with pytest.raises(ValueError, match='Linear has no backbone of mmpatch'):
        groups(nn.Linear(2, 2))
