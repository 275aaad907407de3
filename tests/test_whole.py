"""Released detectors load whole, by the names that their authors gave the tensors."""

import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmpatch
from mmpatch.checkpoint import load_pretrained, load_whole
from mmpatch.checkpoint.whole import fit_whole
from mmpatch.engine.build import build_model

from support import call_tool

pytestmark = pytest.mark.hosts
VITDET = 'vit/mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py'
VITDET_H = 'vit/mask-rcnn_vit-h-mae_sfp_16xb4-lsj-75e_coco.py'
CASCADE = 'vit/cascade-mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py'
PLAIN = 'vit/mask-rcnn_deit-t_tap-fpn_1x_coco.py'
SEMANTIC = 'vit/fpn_deit-t_tap-fpn_8xb2-80k_ade20k-512x512.py'


def build(name, **changes):
    cfg = Config.fromfile(mmpatch.config_path(name))
    cfg.merge_from_dict({'model': {'backbone': {'init_cfg': None, **changes}}})
    return build_model(cfg)


def with_bias(name, *shape):
    """Shapes of a linear map or convolution."""
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def norm(name, channels):
    return {f'{name}.weight': (channels,), f'{name}.bias': (channels,)}


def normed_conv(name, channels, inputs, size):
    """Shapes of detectron2's convolution with a norm and without a bias."""
    return {f'{name}.weight': (channels, inputs, size, size), **norm(f'{name}.norm', channels)}


def list_vit(prefix, dim, depth, rel_pos=False, scales=False):
    """Names and shapes of a ViT of timm's form, with the position of a class token and without it.

    Windows have 27 relative positions, every fourth of the blocks 127.
    """
    shapes = {'pos_embed': (1, 197, dim), **with_bias('patch_embed.proj', dim, 3, 16, 16)}
    for i in range(depth):
        block = f'blocks.{i}'
        if scales:
            shapes |= {f'{block}.gamma1': (dim,), f'{block}.gamma2': (dim,)}
        shapes |= norm(f'{block}.norm1', dim)
        if rel_pos:
            count = 127 if (i + 1) % (depth // 4) == 0 else 27
            for axis in 'hw':
                shapes[f'{block}.attn.rel_pos_{axis}'] = (count, 80 if dim == 1280 else 64)
        shapes |= with_bias(f'{block}.attn.qkv', 3 * dim, dim)
        shapes |= with_bias(f'{block}.attn.proj', dim, dim) | norm(f'{block}.norm2', dim)
        shapes |= with_bias(f'{block}.mlp.fc1', 4 * dim, dim)
        shapes |= with_bias(f'{block}.mlp.fc2', dim, 4 * dim)
    return {prefix + name: shape for name, shape in shapes.items()}


def list_vitdet(dim, depth, cascade=False):
    """Names and shapes of detectron2's ViTDet, as its modules name them."""
    shapes = list_vit('backbone.net.', dim, depth, rel_pos=True)
    four, two, levels = dim // 2, dim // 4, 'backbone.simfp_'
    up = {f'{levels}2.0.weight': (dim, four, 2, 2), f'{levels}2.0.bias': (four,)}
    up |= norm(f'{levels}2.1', four)
    up |= {f'{levels}2.3.weight': (four, two, 2, 2), f'{levels}2.3.bias': (two,)}
    up |= {f'{levels}3.0.weight': (dim, four, 2, 2), f'{levels}3.0.bias': (four,)}
    shapes |= up
    for octave, channels, layer in ((2, two, 4), (3, four, 1), (4, dim, 0), (5, dim, 1)):
        shapes |= normed_conv(f'{levels}{octave}.{layer}', 256, channels, 1)
        shapes |= normed_conv(f'{levels}{octave}.{layer + 1}', 256, 256, 3)
    rpn = 'proposal_generator.rpn_head'
    for i in range(2):
        shapes |= with_bias(f'{rpn}.conv.conv{i}', 256, 256, 3, 3)
    shapes |= with_bias(f'{rpn}.objectness_logits', 3, 256, 1, 1)
    shapes |= with_bias(f'{rpn}.anchor_deltas', 12, 256, 1, 1)
    for stage in ('.0', '.1', '.2') if cascade else ('',):
        for i in range(4):
            shapes |= normed_conv(f'roi_heads.box_head{stage}.conv{i + 1}', 256, 256, 3)
        shapes |= with_bias(f'roi_heads.box_head{stage}.fc1', 1024, 256 * 49)
        shapes |= with_bias(f'roi_heads.box_predictor{stage}.cls_score', 81, 1024)
        boxes = 4 if cascade else 320
        shapes |= with_bias(f'roi_heads.box_predictor{stage}.bbox_pred', boxes, 1024)
    mask = 'roi_heads.mask_head'
    for i in range(4):
        shapes |= normed_conv(f'{mask}.mask_fcn{i + 1}', 256, 256, 3)
    shapes |= with_bias(f'{mask}.deconv', 256, 256, 2, 2)
    return shapes | with_bias(f'{mask}.predictor', 80, 256, 1, 1)


def list_plain_vit(dim, depth, levels):
    """Names and shapes of ViT-Adapter's plain ViT and its FPN, as mmdet 2 and mmseg 0 name them."""
    shapes = list_vit('backbone.', dim, depth, scales=True)
    for i in range(4):
        shapes |= norm(f'backbone.norm{i + 1}', dim)
        shapes |= with_bias(f'neck.lateral_convs.{i}.conv', 256, dim, 1, 1)
        shapes |= with_bias(f'neck.fpn_convs.{i}.conv', 256, 256, 3, 3)
    for name in ('up1.0', 'up1.3', 'up2'):
        shapes |= with_bias(f'backbone.{name}', dim, dim, 2, 2)
    return shapes | norm('backbone.up1.1', dim)


def list_plain_mask_rcnn(dim, depth):
    shapes = list_plain_vit(dim, depth, 5)
    shapes |= with_bias('rpn_head.rpn_conv', 256, 256, 3, 3)
    shapes |= with_bias('rpn_head.rpn_cls', 3, 256, 1, 1)
    shapes |= with_bias('rpn_head.rpn_reg', 12, 256, 1, 1)
    box, mask = 'roi_head.bbox_head', 'roi_head.mask_head'
    shapes |= with_bias(f'{box}.shared_fcs.0', 1024, 256 * 49)
    shapes |= with_bias(f'{box}.shared_fcs.1', 1024, 1024)
    shapes |= with_bias(f'{box}.fc_cls', 81, 1024) | with_bias(f'{box}.fc_reg', 320, 1024)
    for i in range(4):
        shapes |= with_bias(f'{mask}.convs.{i}.conv', 256, 256, 3, 3)
    shapes |= with_bias(f'{mask}.upsample', 256, 256, 2, 2)
    return shapes | with_bias(f'{mask}.conv_logits', 80, 256, 1, 1)


def list_plain_semantic_fpn(dim, depth):
    shapes = list_plain_vit(dim, depth, 4) | with_bias('decode_head.conv_seg', 150, 128, 1, 1)
    for i, layers in enumerate(((0,), (0,), (0, 2), (0, 2, 4))):
        for layer in layers:
            name = f'decode_head.scale_heads.{i}.{layer}'
            shapes[f'{name}.conv.weight'] = (128, 128 if layer else 256, 3, 3)
            shapes |= norm(f'{name}.bn', 128)
            shapes |= {f'{name}.bn.running_mean': (128,), f'{name}.bn.running_var': (128,)}
            shapes[f'{name}.bn.num_batches_tracked'] = ()
    return shapes


def expand(shapes):
    """Tensors of these shapes that take no memory."""
    ints = {True: torch.zeros((), dtype=torch.int64), False: torch.ones(())}
    return {name: ints['num_batches' in name].expand(shape) for name, shape in shapes.items()}


def fill(shapes):
    """Tensors of these shapes with numbers."""
    return {
        name: torch.tensor(7) if 'num_batches' in name else torch.rand(shape)
        for name, shape in shapes.items()
    }


def write(path, tensors, wrapper):
    """Write a file as it is published: arrays in a pickle, or what torch saves."""
    if path.suffix == '.pkl':
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        content = {wrapper: arrays, '__author__': 'Detectron2', 'iteration': np.int64(7)}
        path.write_bytes(pickle.dumps(content, 4))
    else:
        torch.save({wrapper: tensors, 'meta': {'epoch': 12}}, path)
    return path


@pytest.mark.parametrize(
    ('name', 'shapes', 'wrapper', 'more'),
    [
        (VITDET, list_vitdet(768, 12), 'model', 0),
        (VITDET.replace('vit-b', 'vit-l'), list_vitdet(1024, 24), 'model', 0),
        (VITDET_H, list_vitdet(1280, 32), 'model', 0),
        (CASCADE, list_vitdet(768, 12, cascade=True), 'model', 2 * (4 * 3 + 4)),
        (PLAIN, list_plain_mask_rcnn(192, 12), 'state_dict', 0),
        (PLAIN.replace('-t', '-s'), list_plain_mask_rcnn(384, 12), 'state_dict', 0),
        (PLAIN.replace('-t', '-b'), list_plain_mask_rcnn(768, 12), 'state_dict', 0),
        (SEMANTIC, list_plain_semantic_fpn(192, 12), 'state_dict', 0),
    ],
)
def test_every_name_of_a_released_file_has_its_place(tmp_path, name, shapes, wrapper, more):
    """At full size: all tensors of the file fill all of the model, but for an unused position."""
    path = write(tmp_path / 'file.pth', expand(shapes), wrapper)
    with torch.device('meta'):
        model = build(name)
    tensors, report = fit_whole(model, str(path))
    assert {k: v.shape for k, v in tensors.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert report.dropped == ['positions.cls_pos_embed']
    assert len(tensors) == len(shapes) + more and not report.new


SMALL = {'depths': (1, 1, 1, 1), 'pretrain_img_size': 224}
#: Some names in the files, and where they belong.
PAIRS = {
    VITDET: {
        'backbone.net.blocks.2.attn.rel_pos_w': 'backbone.stages.2.blocks.0.token_mixer.rel_pos.w',
        'backbone.net.blocks.3.mlp.fc2.bias': 'backbone.stages.3.blocks.0.mlp.fc2.bias',
        'backbone.simfp_2.3.weight': 'neck.levels.0.3.weight',
        'backbone.simfp_2.5.norm.bias': 'neck.levels.0.7.bias',
        'backbone.simfp_3.1.weight': 'neck.levels.1.1.weight',
        'backbone.simfp_4.0.norm.weight': 'neck.levels.2.1.weight',
        'backbone.simfp_5.2.weight': 'neck.levels.3.3.weight',
        'proposal_generator.rpn_head.conv.conv1.bias': 'rpn_head.rpn_conv.1.conv.bias',
        'proposal_generator.rpn_head.anchor_deltas.bias': 'rpn_head.rpn_reg.bias',
        'roi_heads.box_head.conv2.norm.weight': 'roi_head.bbox_head.shared_convs.1.ln.weight',
        'roi_heads.box_predictor.cls_score.bias': 'roi_head.bbox_head.fc_cls.bias',
        'roi_heads.mask_head.mask_fcn4.weight': 'roi_head.mask_head.convs.3.conv.weight',
        'roi_heads.mask_head.deconv.weight': 'roi_head.mask_head.upsample.weight',
    },
    CASCADE: {
        'roi_heads.box_head.2.conv1.weight': 'roi_head.bbox_head.2.shared_convs.0.conv.weight',
        'roi_heads.box_predictor.1.bbox_pred.bias': 'roi_head.bbox_head.1.fc_reg.bias',
        'roi_heads.mask_head.predictor.weight': 'roi_head.mask_head.2.conv_logits.weight',
    },
    PLAIN: {
        'backbone.norm3.weight': 'backbone.out_norms.2.weight',
        'backbone.blocks.1.gamma2': 'backbone.stages.1.blocks.0.layer_scale2.scale',
        'backbone.up1.3.bias': 'neck.0.levels.0.3.bias',
        'backbone.up2.weight': 'neck.0.levels.1.0.weight',
        'neck.lateral_convs.1.conv.bias': 'neck.1.lateral_convs.1.conv.bias',
        'roi_head.bbox_head.fc_reg.weight': 'roi_head.bbox_head.fc_reg.weight',
    },
    SEMANTIC: {
        'decode_head.scale_heads.2.2.bn.running_var': 'decode_head.scale_heads.2.2.bn.running_var',
        'backbone.up1.1.weight': 'neck.0.levels.0.1.weight',
    },
}
TWINS = {
    VITDET: ('file.pkl', list_vitdet(768, 4)),
    CASCADE: ('file.pkl', list_vitdet(768, 4, cascade=True)),
    PLAIN: ('file.pth', list_plain_mask_rcnn(192, 4)),
    SEMANTIC: ('file.pth', list_plain_semantic_fpn(192, 4)),
}


@pytest.mark.parametrize('name', [VITDET, PLAIN, SEMANTIC])
def test_numbers_land_where_they_belong(tmp_path, name, torch_seed):
    file, shapes = TWINS[name]
    tensors = fill(shapes)
    path = write(tmp_path / file, tensors, 'model' if file.endswith('pkl') else 'state_dict')
    model = build(name, **SMALL)
    load_whole(model, path)
    state = model.state_dict()
    for theirs, ours in PAIRS[name].items():
        assert torch.equal(state[ours], tensors[theirs]), theirs
    positions = tensors[f'{"backbone.net" if name == VITDET else "backbone"}.pos_embed'][:, 1:]
    assert torch.equal(state['backbone.positions.pos_embed'].flatten(2).mT, positions)


def test_stages_of_a_cascade_share_the_mask_head_of_the_file(tmp_path, torch_seed):
    shapes = TWINS[CASCADE][1]
    tensors = expand(shapes) | fill({k: v for k, v in shapes.items() if k in PAIRS[CASCADE]})
    path = write(tmp_path / 'file.pth', tensors, 'model')
    with torch.device('meta'):
        model = build(CASCADE, **SMALL)
    found, _ = fit_whole(model, str(path))
    for theirs, ours in PAIRS[CASCADE].items():
        assert torch.equal(found[ours], tensors[theirs]), theirs
    logits = [found[f'roi_head.mask_head.{i}.conv_logits.weight'] for i in range(3)]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


@pytest.mark.parametrize('name', [VITDET, PLAIN, SEMANTIC])
@pytest.mark.parametrize(
    ('change', 'culprit'),
    [
        (
            lambda s, k: {n: t for n, t in s.items() if n != k},
            'does not fit this .*tensors .*lacks: {ours}',
        ),
        (
            lambda s, k: s | {f'{k}2': s[k]},
            'does not fit this .*(no rule explains|no tensor for): ({theirs}|{ours})2',
        ),
        (
            lambda s, k: s | {k: torch.ones(2, 3, 5)},
            'does not fit this .*wrong shapes: {ours}: .2, 3, 5. in the file',
        ),
        (
            lambda s, k: s | {k: s[k].bool()},
            r'(has tensors that cannot be weights: {key}|'
            r'does not fit this .*instead of weights: {ours}) \(torch.bool',
        ),
        (lambda s, k: s | {k: s[k] * torch.nan}, 'does not fit this .*not finite in: {ours}'),
    ],
)
def test_culprits_are_named(tmp_path, name, change, culprit):
    """A missing, a surplus, a misshapen tensor, one of another type, and one that is no number."""
    tensors = expand(TWINS[name][1])
    with torch.device('meta'):
        model = build(name, **SMALL)
    for theirs, ours in PAIRS[name].items():
        path = write(tmp_path / 'file.pth', change(tensors, theirs), 'model')
        ours_or_theirs = {'ours': ours, 'theirs': theirs.replace('backbone.net.', 'backbone.')}
        where = culprit.format(key=theirs, **ours_or_theirs)
        with pytest.raises(ValueError, match=rf'file\.pth .*{where}'):
            fit_whole(model, str(path))


def test_models_of_the_hosts_load_by_their_own_names(tmp_path, torch_seed):
    """Also one without a backbone of ours."""
    for name in (
        'poolformer/retinanet_poolformer-s12_fpn_1x_coco.py',
        'baselines/retinanet_r18_fpn_1x_coco.py',
    ):
        changes = {'depths': (1, 1, 1, 1)} if 'poolformer' in name else {}
        models = [build(name, **changes) for _ in range(2)]
        torch.save({'state_dict': models[0].state_dict()}, tmp_path / 'file.pth')
        load_whole(models[1], tmp_path / 'file.pth')
        for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
            assert torch.equal(a, b)
        broken = {k: v for k, v in models[0].state_dict().items() if 'retina_cls.bias' not in k}
        torch.save(broken, tmp_path / 'file.pth')
        with pytest.raises(ValueError, match=r'file lacks: bbox_head\.retina_cls\.bias'):
            load_whole(models[1], tmp_path / 'file.pth')


def test_a_classifier_is_no_detector(tmp_path):
    torch.save({'model': expand(list_vit('', 192, 4))}, tmp_path / 'file.pth')
    with torch.device('meta'):
        model = build(PLAIN, **SMALL)
    with pytest.raises(ValueError, match=r'file\.pth is no detector or segmentor: .*pos_embed'):
        fit_whole(model, str(tmp_path / 'file.pth'))


def test_backbones_of_released_detectors_load_alone(tmp_path, torch_seed):
    """Without a word on where they are in the file."""
    tensors = fill(list_vit('backbone.net.', 192, 4, rel_pos=True))
    path = write(tmp_path / 'file.pkl', tensors | {'roi_heads.x': torch.ones(1)}, 'model')
    vit = {'arch': 'tiny', 'depths': (1, 1, 1, 1), 'with_cls_token': False, 'out_norm': False}
    windows = {'window_size': 14, 'rel_pos': True, 'img_size': 1024}
    model = mmpatch.backbones.VisionTransformer(**vit, **windows, global_blocks=(0, 1, 2, 3))
    report = load_pretrained(model, path)
    assert not report.new and 'roi_heads.x' in report.dropped
    bias = tensors['backbone.net.blocks.3.attn.qkv.bias']
    assert torch.equal(model.stages[3].blocks[0].token_mixer.qkv.bias, bias)


def test_the_tool_converts_whole_models(tmp_path, monkeypatch, capsys, torch_seed):
    tensors = fill(TWINS[SEMANTIC][1])
    src, dst = write(tmp_path / 'src.pth', tensors, 'state_dict'), tmp_path / 'dst.pth'
    tool, config = 'tools/convert_checkpoint.py', mmpatch.config_path(SEMANTIC)
    options = ['model.backbone.depths=(1,1,1,1)']
    call_tool(monkeypatch, tool, src, dst, '--config', config, '--cfg-options', *options)
    assert 'tensors loaded' in capsys.readouterr().out
    state = torch.load(dst)['state_dict']
    build(SEMANTIC, **SMALL).load_state_dict(state)
    assert torch.equal(state['neck.0.levels.1.0.bias'], tensors['backbone.up2.bias'])
    write(src, {k: v for k, v in tensors.items() if k != 'backbone.up2.bias'}, 'state_dict')
    with pytest.raises(SystemExit, match=r'error: .*lacks: neck\.0\.levels\.1\.0\.bias'):
        call_tool(monkeypatch, tool, src, dst, '--config', config, '--cfg-options', *options)
