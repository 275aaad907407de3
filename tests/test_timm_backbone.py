"""TimmBackbone: twelve kinds of networks, equal to timm's, loaded strictly, frozen, exported."""

from math import ceil

import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmpatch
from mmpatch.backbones import TimmBackbone
from mmpatch.backbones.timm_backbone import find_url, load_timm
from mmpatch.engine import LayerDecayOptimWrapperConstructor

import golden
from support import pretrained, relative_error

PLAIN = {'depth': 3, 'embed_dim': 48, 'num_heads': 3}
#: name in timm, arguments that make it small, outputs, their channels, their strides
KINDS = {
    'ResNet': (
        'resnet18',
        {'layers': (1, 1, 1, 1), 'channels': (16, 32, 48, 64)},
        (1, 2, 3, 4),
        (16, 32, 48, 64),
        (4, 8, 16, 32),
    ),
    'ConvNeXt': (
        'convnext_atto',
        {'depths': (1, 1, 1, 1), 'dims': (16, 32, 48, 64)},
        (0, 1, 2, 3),
        (16, 32, 48, 64),
        (4, 8, 16, 32),
    ),
    'Swin': (
        'swin_tiny_patch4_window7_224',
        {'embed_dim': 24, 'depths': (2, 1, 2, 1)},
        (0, 1, 2, 3),
        (24, 48, 96, 192),
        (4, 8, 16, 32),
    ),
    'EfficientNet': ('efficientnet_b0', {}, (1, 2, 3, 4), (24, 40, 112, 320), (4, 8, 16, 32)),
    'PVTv2': ('pvt_v2_b0', {}, (0, 1, 2, 3), (32, 64, 160, 256), (4, 8, 16, 32)),
    'ViT': ('vit_tiny_patch16_224', PLAIN, (0, 2), (48, 48), (16, 16)),
    'DINOv2': ('vit_small_patch14_reg4_dinov2', PLAIN, (0, 2), (48, 48), (14, 14)),
    'DINOv3': ('vit_small_patch16_dinov3', PLAIN, (0, 2), (48, 48), (16, 16)),
    'EVA02': ('eva02_tiny_patch14_224', PLAIN, (1, 2), (48, 48), (14, 14)),
    'MobileNetV4': ('mobilenetv4_conv_small', {}, (1, 2, 3, 4), (32, 64, 96, 960), (4, 8, 16, 32)),
    'RegNet': ('regnety_002', {}, (1, 2, 3, 4), (24, 56, 152, 368), (4, 8, 16, 32)),
    'SAM': (
        'samvit_base_patch16',
        {**PLAIN, 'global_attn_indexes': (2,), 'img_size': 128},
        (2,),
        (48,),
        (16,),
    ),
}
KINDS = {kind: row for kind, row in KINDS.items() if timm.is_model(row[0])}  # older timm lacks some
#: What makes timm's own take images of any size, and what their sides must be multiples of.
DYNAMIC = {'dynamic_img_size': True}
ANY_SIZE = {
    'Swin': ({'strict_img_size': False}, 4),
    'ViT': (DYNAMIC, 16),
    'DINOv2': (DYNAMIC, 14),
    'DINOv3': (DYNAMIC, 16),
    'EVA02': (DYNAMIC, 14),
    'SAM': ({}, 16),
}
SIZE = (97, 130)


def build(kind, **kwargs):
    name, settings, out_indices, *_ = KINDS[kind]
    return TimmBackbone(name, out_indices, **settings, **kwargs)


def make_whole(kind, **kwargs):
    """timm's classifier, with random weights, biases and statistics."""
    torch.manual_seed(1)
    name, settings, *_ = KINDS[kind]
    model = timm.create_model(name, **settings, **ANY_SIZE.get(kind, ({}, 1))[0], **kwargs)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.1 * torch.rand_like(tensor))
    return model.eval()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def saved(kind, tmp_path):
    torch.save(make_whole(kind).state_dict(), tmp_path / 'whole.pth')
    return tmp_path / 'whole.pth'


def test_maps_have_the_channels_and_strides_that_are_told(kind):
    *_, channels, strides = KINDS[kind]
    model = build(kind).eval()
    assert (model.out_channels, model.out_strides) == (channels, strides)
    with torch.no_grad():
        maps = model(torch.randn(2, 3, *SIZE))
    for y, c, stride in zip(maps, channels, strides, strict=True):
        assert y.shape[:2] == (2, c)
        for got, side in zip(y.shape[2:], SIZE, strict=True):
            # convolutions may round down, patches are completed
            assert got == ceil(side / stride) or (kind == 'ConvNeXt' and got == side // stride)


def test_features_equal_timms_own(kind, saved):
    """Both with the weights of a classifier's file; timm's get an image that is padded already."""
    name, settings, out_indices, *_ = KINDS[kind]
    model = build(kind, init_cfg=pretrained(saved))
    model.init_weights()
    any_size, multiple = ANY_SIZE.get(kind, ({}, 1))
    theirs = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={'file': str(saved), 'custom_load': False},
        features_only=True,
        out_indices=out_indices,
        **settings,
        **any_size,
    )
    x = torch.randn(2, 3, *SIZE)
    padded = F.pad(x, (0, -SIZE[1] % multiple, 0, -SIZE[0] % multiple))
    with torch.no_grad():
        found, expected = model.eval()(x), theirs.eval()(padded)
    for y, other in zip(found, expected, strict=True):
        assert y.std() > 1e-3
        assert relative_error(y, other.permute(0, 3, 1, 2) if kind == 'Swin' else other) < 1e-6


def test_a_step_with_frozen_parts(kind, torch_seed):
    """Nothing that is frozen moves, everything else has a gradient, also with checkpointing."""
    model = build(kind, frozen_stages=1, norm_eval=True, with_cp=True).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    sum(y.square().mean() for y in model(torch.randn(2, 3, *SIZE))).backward()
    optimizer.step()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    stem = [name for name in frozen if model.get_layer_depth(name)[0] == 0]
    assert stem and learning and len(frozen) > len(stem)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved and moved <= learning  # with norm_eval, no statistics
    assert not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))


def test_batch_norms_of_frozen_stages_keep_their_statistics():
    model = build('ResNet', frozen_stages=2).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(2, 3, 64, 64))
    moved = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    assert moved and all(
        name.startswith(('net.model.layer3.', 'net.model.layer4.')) for name in moved
    )
    with pytest.raises(ValueError, match=r'^resnet18: frozen_stages=5 is not in -1\.\.4$'):
        build('ResNet', frozen_stages=5)


def test_checkpointing_changes_no_gradient(kind):
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(2)
        model = build(kind, with_cp=with_cp, norm_eval=True).train()
        x = torch.randn(1, 3, 64, 64)
        torch.manual_seed(3)  # of dropout
        sum(y.square().mean() for y in model(x)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_learning_rates_decay_by_timms_groups(kind):
    model, rate = build(kind), 0.7
    whole = make_whole(kind, num_classes=3)
    names = {id(p): name for name, p in whole.named_parameters()}
    theirs = {
        names[id(p)]: group['lr_scale']
        for group in param_groups_layer_decay(whole, layer_decay=rate)
        for p in group['params']
    }
    detector = nn.ModuleDict({'backbone': model, 'neck': nn.Conv2d(1, 1, 1)})
    constructor = LayerDecayOptimWrapperConstructor(
        {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1.0}}, {'decay_rate': rate}
    )
    own = {id(p): name for name, p in detector.named_parameters()}
    rates = {
        own[id(p)]: group['lr']
        for group in constructor(detector).optimizer.param_groups
        for p in group['params']
    }
    assert rates.pop('neck.weight') == rates.pop('neck.bias') == 1
    scales = {name.removeprefix('backbone.net.model.'): scale for name, scale in rates.items()}
    last = max(scales.values())
    assert last == pytest.approx(rate)  # the last layer is one below the heads
    top = max(theirs[name] for name in scales)
    for name, scale in scales.items():
        assert scale / last == pytest.approx(theirs[name] / top), name


def test_a_wrong_file_is_refused_by_name(kind, saved, tmp_path):
    tensors = torch.load(saved)
    model = build(kind)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weight = max(
        (name for name, p in model.net.model.named_parameters() if p.ndim > 1),
        key=lambda name: tensors[name].numel(),
    )
    changes = {
        'lacks': {name: tensor for name, tensor in tensors.items() if name != weight},
        'no tensor for': {**tensors, 'surplus.weight': torch.zeros(3)},
        'wrong shapes': {**tensors, weight: torch.zeros(7, *tensors[weight].shape[1:])},
        'not finite': {**tensors, weight: torch.full_like(tensors[weight], torch.nan)},
        'integer': {**tensors, weight: tensors[weight].long()},
    }
    for what, content in changes.items():
        torch.save(content, tmp_path / 'wrong.pth')
        culprit = 'surplus.weight' if what == 'no tensor for' else weight
        model.init_cfg = pretrained(tmp_path / 'wrong.pth')
        with pytest.raises(
            ValueError,
            match=rf'wrong\.pth (does not fit.*{what}|has tensors that cannot).*{culprit}',
        ):
            model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_report_names_what_is_dropped(saved, kind, caplog):
    model = build(kind, init_cfg=pretrained(saved))
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    model.init_weights()
    logger.removeHandler(caplog.handler)
    text = next(record.getMessage() for record in caplog.records if 'tensors loaded' in record.msg)
    count = len(model.state_dict())
    assert f'whole.pth (timm {KINDS[kind][0]} layout): {count} tensors loaded' in text
    whole = set(torch.load(saved))
    dropped = whole - set(model.net.model.state_dict())
    heads = ('head', 'classifier', 'fc', 'norm', 'blocks', 'conv_head', 'bn2', 'neck', 'fc_norm')
    assert all(name.startswith(heads) for name in dropped), dropped
    assert bool(dropped) == ('dropped: none' not in text)


def test_another_network_of_the_same_kind_is_refused(tmp_path):
    torch.save(timm.create_model('resnet34').state_dict(), tmp_path / 'other.pth')
    model = TimmBackbone('resnet18', (1, 2, 3, 4), init_cfg=pretrained(tmp_path / 'other.pth'))
    with pytest.raises(ValueError, match=r'other\.pth does not fit this TimmBackbone \(resnet18\)'):
        model.init_weights()


def test_a_file_of_dinov2s_authors_is_converted_and_resampled(tmp_path, caplog):
    """Their names of registers, a token that only training needs, a grid for other images."""
    whole = make_whole('DINOv2')
    theirs = {k.replace('reg_token', 'register_tokens'): v for k, v in whole.state_dict().items()}
    # their table of positions has one for the class token
    theirs['pos_embed'] = torch.cat([torch.zeros(1, 1, 48), theirs['pos_embed']], 1)
    theirs['mask_token'] = torch.zeros(1, 48)
    torch.save(theirs, tmp_path / 'dinov2.pth')
    model = build(
        'DINOv2', patch_size=16, img_size=224, init_cfg=pretrained(tmp_path / 'dinov2.pth')
    )
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    model.init_weights()
    logger.removeHandler(caplog.handler)
    assert model.out_strides == (16, 16)
    assert torch.equal(model.net.model.reg_token, whole.reg_token)
    text = caplog.text
    assert 'patch_embed.proj.weight (48, 3, 14, 14) -> (48, 3, 16, 16)' in text
    assert 'pos_embed (1, 1370, 48) -> (1, 196, 48)' in text and 'mask_token' in text


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (('resnet19', (1,)), "has no network 'resnet19' .*; near: resnet"),
        (('resnet18', (1, 9)), r'resnet18: out_indices=\(1, 9\) must name features of 0\.\.4'),
        (('resnet18', (2, 1)), 'must increase'),
        (('resnet18', ()), 'resnet18: out_indices is empty'),
        (('resnet18.nope', (1,)), r'resnet18\.nope: Invalid pretrained tag'),
        (('hf-hub:timm/resnet18', (1,)), 'names have no hf-hub: or timm/ in front'),
        (('hardcorenas_a', (1,)), 'hardcorenas_a cannot be cut at features in timm'),
    ],
)
def test_wrong_arguments_are_named(arguments, error):
    with pytest.raises(ValueError, match=error):
        TimmBackbone(*arguments)


def test_what_timm_lacks_matters_only_where_it_is_used():
    with pytest.raises(ValueError, match='vgg11: timm cannot recompute its activations'):
        TimmBackbone('vgg11', (1,), with_cp=True)
    with torch.device('meta'):  # it has no coarse groups, and nothing is frozen
        assert TimmBackbone('rdnet_tiny', (1,)).out_channels == (440,)


def test_a_trained_detector_is_a_source_of_weights(tmp_path):
    trained = golden.randomize(build('ResNet'))
    state = {f'backbone.{name}': tensor for name, tensor in trained.state_dict().items()}
    torch.save({'state_dict': {**state, 'neck.weight': torch.ones(2)}}, tmp_path / 'epoch_1.pth')
    model = build('ResNet')
    report = load_timm(model, tmp_path / 'epoch_1.pth')
    assert report.dropped == ['neck.weight']
    assert all(torch.equal(model.state_dict()[k], v) for k, v in trained.state_dict().items())


def test_networks_without_features_are_named(monkeypatch):
    monkeypatch.delattr(timm.models.resnet.ResNet, 'prune_intermediate_layers')
    with pytest.raises(ValueError, match='resnet18 has no features in timm'):
        build('ResNet')


def test_weights_come_from_init_cfg_alone():
    with pytest.raises(ValueError, match=r'takes no pretrained; use init_cfg.*timm://'):
        TimmBackbone('resnet18', (1,), pretrained=True)
    with pytest.raises(ValueError, match=r'takes no in_chans; use in_channels$'):
        TimmBackbone('resnet18', (1,), in_chans=1)
    with pytest.raises(ValueError, match=r'takes \(B, 3, H, W\), got \(1, 1, 64, 64\)'):
        build('ResNet')(torch.randn(1, 1, 64, 64))


def test_addresses_are_those_of_timm():
    url = find_url('timm://vit_small_patch14_reg4_dinov2.lvd142m')
    start = 'https://huggingface.co/timm/vit_small_patch14_reg4_dinov2.lvd142m'
    assert url == f'{start}/resolve/main/model.safetensors'
    for name in ('none', 'resnet18.none'):
        with pytest.raises(ValueError, match=rf'timm://{name}'):
            find_url(f'timm://{name}')


@pytest.mark.parametrize(
    ('kind', 'file', 'dynamic'),
    [
        ('ResNet', 'a.onnx', ('batch', 'height', 'width')),
        ('ResNet', 'a.xml', ('batch', 'height', 'width')),
        ('DINOv3', 'a.onnx', ('batch',)),
        ('DINOv3', 'a.xml', ('batch',)),
    ],
)
def test_one_pyramid_and_one_isotropic_network_are_exported(tmp_path, kind, file, dynamic):
    engine = pytest.importorskip({'onnx': 'onnxruntime', 'xml': 'openvino'}[file.split('.')[1]])
    assert engine
    if file.endswith('.onnx') and torch.__version__.startswith('2.6.'):
        dynamic = ()  # its exporter cannot decompose operators of dynamic sizes
    model = build(kind).eval()
    about = mmpatch.export(model, tmp_path / file, input_size=(2, 3, 96, 128), dynamic=dynamic)
    assert about['out_strides'] == list(KINDS[kind][4]) and about['error'] < 1e-4
