"""Weight files: every published layout loads, every wrong file says what is wrong with it."""

import re
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmpatch import checkpoint
from mmpatch.backbones import Container, ConvMixer, MetaFormer, PoolFormer, VisionTransformer
from mmpatch.compat.safe_load import cached_name
from mmpatch.registry import MODELS

import golden
from support import FileServer, call_tool, pretrained, try_tool

TINY = {'depths': (1, 1, 2, 1), 'dims': (8, 16, 24, 32), 'layer_scale': 0.5}
VIT = {'depths': (1, 1, 1, 1), 'dims': 192, 'out_norm': False}


def loaded(path, make=PoolFormer, **kwargs):
    model = make(**({**TINY, **kwargs} if make is PoolFormer else kwargs))
    model.init_cfg = pretrained(path)
    model.init_weights()
    return model


@pytest.fixture
def published(tmp_path):
    """A writer of files in the authors' layout that fit the tiny network."""
    tiny = PoolFormer(**TINY, out_norm=False).state_dict()
    state = {'norm.weight': torch.ones(32), 'head.weight': torch.ones(1000, 32)}
    for key, tensor in golden.rename_to_published(tiny).items():
        state[key] = torch.randn_like(tensor)

    def write(change=lambda state: state, name='file.pth'):
        torch.save(change(dict(state)), tmp_path / name)
        return tmp_path / name

    return write


def vit_file(path, wrap=lambda state: state, **extra):
    """A ViT of four blocks in timm's layout, random."""
    model = VisionTransformer('tiny', **VIT, **extra)
    names = (
        (r'^stem', 'patch_embed'),
        (r'^patch_embed\.conv', 'patch_embed.proj'),
        (r'^stages\.(\d)\.blocks\.0', r'blocks.\1'),
        (r'token_mixer', 'attn'),
    )
    state = {'norm.weight': torch.ones(192), 'head.bias': torch.ones(1000)}
    for key, tensor in model.state_dict().items():
        for ours, theirs in names:
            key = re.sub(ours, theirs, key)
        if '.fc' in key and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        state[key] = torch.randn_like(tensor)
    maps = state.pop('positions.pos_embed').flatten(2)
    token_maps, tokens = state.pop('positions.cls_pos_embed'), state.pop('positions.cls_token')
    state['pos_embed'] = torch.cat([token_maps.flatten(2), maps], 2).transpose(1, 2)
    rows = tokens[0, :, 0].T[:, None, None]
    state |= dict(zip(('cls_token', 'dist_token'), rows, strict=False))
    torch.save(wrap(state), path)
    return state


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model', 'model_ema'])
def test_wrappers_and_prefixes(published, prefix, wrapper):
    def change(state):
        state = {prefix + key: tensor for key, tensor in state.items()}
        return {wrapper: state, 'epoch': 3} if wrapper else state

    path = published(change)
    model = loaded(path)
    stored = torch.load(path)
    stored = (stored[wrapper] if wrapper else stored)[f'{prefix}network.3.proj.weight']
    assert torch.equal(model.stages[2].downsample.conv.weight, stored)


def test_prefix_of_ones_own(published):
    path = published(lambda s: {f'encoder.{k}': v for k, v in s.items()} | {'x': torch.ones(1)})
    model = PoolFormer(**TINY, init_cfg=pretrained(path, prefix='encoder.'))
    model.init_weights()
    assert torch.equal(model.stem.conv.bias, torch.load(path)['encoder.patch_embed.proj.bias'])


def test_a_prefix_that_no_key_has_is_named(published):
    model = PoolFormer(**TINY, init_cfg=pretrained(published(), prefix='encoder.'))
    with pytest.raises(
        ValueError, match="no key that starts with 'encoder.'; its keys are such as norm"
    ):
        model.init_weights()


def test_a_prefix_goes_before_the_usual_one(published):
    other = {f'backbone.{k}': v + 1 for k, v in torch.load(published()).items()}
    path = published(lambda s: {f'image.{k}': v for k, v in s.items()} | other)
    model = PoolFormer(**TINY, init_cfg=pretrained(path, prefix='image.'))
    model.init_weights()
    assert torch.equal(model.stem.conv.bias, torch.load(path)['image.patch_embed.proj.bias'])


def test_report(published):
    report = checkpoint.load_pretrained(PoolFormer(**TINY), published())
    assert (report.layout, len(report.matched)) == ('sail-sg/poolformer', 58)
    assert report.dropped == ['norm.weight', 'head.weight'] and not report.resampled
    assert report.new == [f'out_norms.{i}.{p}' for i in range(4) for p in ('weight', 'bias')]


def test_safetensors(tmp_path, published):
    state = torch.load(published())
    save_file(
        {key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / 'f.safetensors'
    )
    model = loaded(tmp_path / 'f.safetensors')
    assert torch.equal(model.stem.conv.bias, state['patch_embed.proj.bias'])


def test_leaves_out_stages_that_are_not_built(published):
    assert len(loaded(published(), out_indices=(0, 1)).stages) == 2


def test_own_state_dict_comes_back(tmp_path, published):
    model = loaded(published())
    torch.save(model.state_dict(), tmp_path / 'own.pth')
    again = loaded(tmp_path / 'own.pth')
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_output_norms_of_a_dense_model_and_the_norm_of_a_classifier(published):
    """mmpretrain calls the classifier's norm ``norm6``, as dense models call their last one."""

    def with_norms(*numbers):
        channels = dict(zip((0, 2, 4, 6), TINY['dims'], strict=True))
        extra = {
            f'norm{i}.{p}': torch.full((channels[i],), 3.0)
            for i in numbers
            for p in ('weight', 'bias')
        }
        return loaded(published(lambda s: s | extra)).out_norms

    assert with_norms(0, 2, 4, 6)['3'].weight[0] == 3 and with_norms(6)['3'].weight[0] == 1


def test_layouts_that_differ_in_names_alone(tmp_path):
    """Hugging Face's PoolFormer and mmpretrain's ConvMixer and ViT, written from our tensors."""
    hugging_face = (
        (r'stem\.conv', 'poolformer.encoder.patch_embeddings.0.projection'),
        (r'stages\.(\d)\.downsample\.conv', r'poolformer.encoder.patch_embeddings.\1.projection'),
        (r'stages\.(\d)\.blocks\.(\d)', r'poolformer.encoder.block.\1.\2'),
        (r'norm1', 'before_norm'),
        (r'norm2', 'after_norm'),
        (r'mlp\.fc', 'output.conv'),
        (r'layer_scale(\d)\.scale', r'layer_scale_\1'),
    )
    mmpretrain_convmixer = (
        (r'^stem\.conv', 'backbone.stem.0'),
        (r'^stem\.norm', 'backbone.stem.2'),
        (r'^stages\.(\d)\.blocks\.0', r'backbone.stages.\1'),
        (r'token_mixer\.conv', '0.fn.0'),
        (r'norm1', '0.fn.2'),
        (r'(\d)\.mlp', r'\1.1'),
        (r'norm2', '3'),
    )
    mmpretrain_vit = (
        (r'^stem\.conv', 'backbone.patch_embed.projection'),
        (r'^stages\.(\d)\.blocks\.0', r'backbone.layers.\1'),
        (r'token_mixer', 'attn'),
        (r'norm', 'ln'),
        (r'mlp\.fc1', 'ffn.layers.0.0'),
        (r'mlp\.fc2', 'ffn.layers.1'),
        (r'^positions', 'backbone.positions'),
    )
    conv = {'arch': '256/8', 'depths': (1, 1, 1, 1), 'dims': 8, 'out_norm': False}
    for family, kwargs, table in (
        (PoolFormer, {**TINY, 'out_norm': False}, hugging_face),
        (ConvMixer, conv, mmpretrain_convmixer),
        (VisionTransformer, {'arch': 'tiny', **VIT}, mmpretrain_vit),
    ):
        model = family(**kwargs)
        state = {'head.fc.weight': torch.ones(1)} if family is not PoolFormer else {}
        for key, tensor in golden.randomize(model).state_dict().items():
            for ours, theirs in table:
                key = re.sub(ours, theirs, key)
            state[key] = tensor
        torch.save({'state_dict': state}, tmp_path / 'file.pth')
        again = family(**kwargs, init_cfg=pretrained(tmp_path / 'file.pth'))
        again.init_weights()
        for key, tensor in again.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key]), key


class TestResampling:
    def load(self, tmp_path, **kwargs):
        self.state = vit_file(tmp_path / 'vit.pth')
        self.model = VisionTransformer('tiny', **VIT, **kwargs)
        return checkpoint.load_pretrained(self.model, tmp_path / 'vit.pth')

    def test_positions(self, tmp_path):
        report = self.load(tmp_path, pretrain_img_size=(160, 320))
        assert report.resampled == ['positions.pos_embed (1, 192, 14, 14) -> (1, 192, 10, 20)']
        assert self.model.positions.pos_embed.shape[2:] == (10, 20)

    def test_patch_kernels(self, tmp_path):
        """A kernel of another size gives the same tokens for pictures resized alike."""
        report = self.load(tmp_path, patch_size=32, pretrain_img_size=448)
        assert report.resampled == ['stem.conv.weight (192, 3, 16, 16) -> (192, 3, 32, 32)']
        kernel = self.state['patch_embed.proj.weight']
        image = torch.randn(1, 3, 16, 16)
        large = torch.nn.functional.interpolate(image, (32, 32), mode='bicubic', antialias=True)
        small_tokens = torch.nn.functional.conv2d(image, kernel)
        large_tokens = torch.nn.functional.conv2d(large, self.model.stem.conv.weight)
        assert (small_tokens - large_tokens).norm() < 1e-3 * small_tokens.norm()

    @pytest.mark.parametrize('patch', [8, 14])
    def test_convmixer_patches(self, tmp_path, patch):
        small = {'depths': (1, 1, 1, 1), 'dims': 8, 'out_norm': False}
        torch.save(ConvMixer('512/12', **small).state_dict(), tmp_path / 'p7.pth')
        model = ConvMixer('512/12', **small, patch_size=patch)
        report = checkpoint.load_pretrained(model, tmp_path / 'p7.pth')
        assert [line.split()[0] for line in report.resampled] == ['stem.conv.weight']

    def test_relative_positions(self, tmp_path):
        kwargs = {**VIT, 'with_cls_token': False, 'rel_pos': True, 'window_size': 7, 'dims': 192}
        torch.save(VisionTransformer('tiny', **kwargs).state_dict(), tmp_path / 'own.pth')
        other = VisionTransformer('tiny', **kwargs, img_size=320)
        report = checkpoint.load_pretrained(other, tmp_path / 'own.pth')
        assert len(report.resampled) == 8 and all(
            '(27, 64) -> (39, 64)' in r for r in report.resampled
        )

    def test_only_patch_embeddings_are_resampled(self, published):
        with pytest.raises(ValueError, match='wrong shapes: stem.conv.weight'):
            loaded(published(), stem={'kernel_size': 8, 'padding': 2})


@pytest.mark.hosts
@pytest.mark.parametrize('size', [(64, 64), (32, 128)])
def test_mmseg_segmentors_load_with_their_own_names(tmp_path, size, torch_seed):
    """A real VisionTransformer of mmseg, whose patch embedding has no bias."""
    from mmseg.models.backbones import VisionTransformer as Theirs

    norm = {'type': 'LN', 'eps': 1e-6}
    shape = {'embed_dims': 24, 'num_layers': 4, 'num_heads': 3, 'out_indices': (3,)}
    theirs = Theirs(size, 16, **shape, norm_cfg=norm)
    theirs.eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {f'backbone.{key}': tensor for key, tensor in theirs.state_dict().items()}
    torch.save({'state_dict': state | {'decode_head.x': torch.ones(1)}}, tmp_path / 'mmseg.pth')
    small = {**VIT, 'arch': 'tiny', 'dims': 24, 'out_indices': (3,), 'pretrain_img_size': size}
    ours = VisionTransformer(**small).eval()
    checkpoint.load_pretrained(ours, tmp_path / 'mmseg.pth')
    whole = torch.nn.ModuleDict({'backbone': VisionTransformer(**small)})
    whole.eval().load_state_dict(state)  # as a host loads a whole segmentor
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs(x)[0]
        for model in (ours, whole['backbone']):
            assert (model(x)[0] - expected).norm() < 1e-5 * expected.norm()


def test_whole_models_resample_positions_too(tmp_path):
    state = vit_file(tmp_path / 'vit.pth')
    model = VisionTransformer('tiny', **VIT, pretrain_img_size=320)
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith(('norm.', 'head.'))})
    assert model.positions.pos_embed.shape[2:] == (20, 20)
    assert model.positions.pos_embed.std() > 0.5  # not as it was initialised
    state['pos_embed'] = state['pos_embed'][:, :-2]
    with pytest.raises(ValueError, match='194 places, which form no square; say which'):
        model.load_state_dict(state)


class TestClassTokens:
    def test_are_dropped_on_request(self, tmp_path):
        vit_file(tmp_path / 'vit.pth')
        model = VisionTransformer('tiny', **VIT, with_cls_token=False)
        report = checkpoint.load_pretrained(model, tmp_path / 'vit.pth')
        assert {'positions.cls_token', 'positions.cls_pos_embed'} <= set(report.dropped)

    def test_distilled_files_need_a_distilled_model(self, tmp_path):
        state = vit_file(tmp_path / 'vit.pth', distilled=True)
        with pytest.raises(ValueError, match=r'cls_token: \(1, 192, 1, 2\) in the file'):
            checkpoint.load_pretrained(VisionTransformer('tiny', **VIT), tmp_path / 'vit.pth')
        model = VisionTransformer('tiny', **VIT, distilled=True)
        checkpoint.load_pretrained(model, tmp_path / 'vit.pth')
        assert torch.equal(model.positions.cls_token[0, :, 0, 1], state['dist_token'][0, 0])

    def test_a_file_without_fits_no_model_with_one(self, tmp_path):
        state = vit_file(tmp_path / 'vit.pth')
        state['pos_embed'] = state['pos_embed'][:, 1:]
        del state['cls_token']
        torch.save(state, tmp_path / 'vit.pth')
        with pytest.raises(ValueError, match='lacks: positions.cls_token'):
            checkpoint.load_pretrained(VisionTransformer('tiny', **VIT), tmp_path / 'vit.pth')

    def test_mae_pretraining_leaves_its_decoder(self, tmp_path):
        extra = {'mask_token': torch.ones(1), 'decoder_blocks.0.attn.qkv.weight': torch.ones(2)}
        vit_file(tmp_path / 'vit.pth', wrap=lambda s: {'model': s | extra})
        model = VisionTransformer('tiny', **VIT)
        assert set(extra) <= set(checkpoint.load_pretrained(model, tmp_path / 'vit.pth').dropped)


class TestInputChannels:
    def test_adapt_on_request_only(self, published):
        path = published()
        with pytest.raises(ValueError, match='stem.conv.weight.*adapt_input=True'):
            loaded(path, in_channels=4)

    def test_grey_pictures_give_the_same_maps_through_one_channel(self, published):
        path = published()
        init_cfg = pretrained(path, adapt_input=True)
        model = PoolFormer(**TINY, in_channels=1, init_cfg=init_cfg).eval()
        model.init_weights()
        grey = torch.randn(1, 1, 64, 64)
        colour = loaded(path).eval()(grey.expand(-1, 3, -1, -1))
        for a, b in zip(colour, model(grey), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def test_a_fourth_channel_repeats_the_first(self, published):
        path = published()
        model = PoolFormer(**TINY, in_channels=4, init_cfg=pretrained(path, adapt_input=True))
        model.init_weights()
        kernel = torch.load(path)['patch_embed.proj.weight']
        expected = torch.cat([kernel, kernel[:, :1]], 1) * 0.75
        torch.testing.assert_close(model.stem.conv.weight, expected)


class TestWrongFiles:
    """Each way in which a file can be wrong has its own error, and the model stays as it was."""

    CHANGES: ClassVar = {
        'empty': (lambda s: {}, 'holds no tensors'),
        'no state dict': (lambda s: [1, 2], 'holds no tensors'),
        'of another network': (
            lambda s: {'conv1.weight': torch.ones(3)},
            'unknown layout.*conv1.weight',
        ),
        'with a strange key': (
            lambda s: {**s, 'network.9.extra': torch.ones(1)},
            'no rule explains: network.9.extra',
        ),
        'with a tensor too many': (
            lambda s: {**s, 'network.0.7.norm1.bias': torch.ones(8)},
            'has no tensor for: network.0.7.norm1.bias',
        ),
        'with a tensor too few': (
            lambda s: {k: v for k, v in s.items() if k != 'network.1.proj.bias'},
            'file lacks: stages.1.downsample.conv.bias',
        ),
        'with a wrong shape': (
            lambda s: {**s, 'patch_embed.proj.bias': torch.ones(9)},
            r'wrong shapes: stem.conv.bias: \(9,\) in the file, \(8,\) in the model',
        ),
        'with NaN': (
            lambda s: {**s, 'network.3.proj.bias': torch.full((24,), float('nan'))},
            'not finite in: stages.2.downsample.conv.bias',
        ),
        'half renamed': (
            lambda s: {k.replace('network.4', 'stages.2.blocks'): v for k, v in s.items()},
            'no rule explains: stages.2.blocks.0',
        ),
    }

    @pytest.mark.parametrize('name', CHANGES)
    def test_is_named(self, published, name):
        change, culprit = self.CHANGES[name]
        path = published(change)
        model = PoolFormer(**TINY)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=culprit) as error:
            checkpoint.load_pretrained(model, path)
        assert str(path) in str(error.value)
        assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())

    @pytest.mark.parametrize(
        ('reference', 'make', 'culprit'),
        [
            ('poolformer_s12', ConvMixer, 'holds a PoolFormer.*the model is a ConvMixer'),
            ('convmixer_768_32', Container, 'holds a ConvMixer.*the model is a Container'),
            ('container_light', VisionTransformer, 'holds a Container.*is a VisionTransformer'),
            ('poolformer_s12', lambda: PoolFormer('s24'), "PoolFormer, but arch='s12'.*lacks"),
            ('convmixer_768_32', lambda: ConvMixer('1024/20'), "but arch='768/32'"),
        ],
    )
    def test_other_family_or_size(self, tmp_path, reference, make, culprit):
        torch.save(golden.load_reference(reference)[1], tmp_path / 'file.pth')
        with torch.device('meta'):
            model = make()
        with pytest.raises(ValueError, match=culprit):
            checkpoint.load_pretrained(model, tmp_path / 'file.pth')

    def test_has_two_tensors_for_one_place(self, tmp_path):
        state = golden.load_reference('container_light')[1]
        state['blocks1.0.conv.weight'] = state['blocks1.0.attn.weight'] + 1
        torch.save(state, tmp_path / 'file.pth')
        with torch.device('meta'):
            model = Container()
        with pytest.raises(ValueError, match='has no tensor for: blocks1.0.conv.weight'):
            checkpoint.load_pretrained(model, tmp_path / 'file.pth')

    @pytest.mark.parametrize('suffix', ['pth', 'npz', 'safetensors'])
    def test_is_cut_off(self, tmp_path, published, suffix):
        path = tmp_path / f'damaged.{suffix}'
        state = torch.load(published())
        if suffix == 'npz':
            np.savez(path, **{k: v.numpy() for k, v in state.items()})
        elif suffix == 'safetensors':
            save_file(state, path)
        else:
            torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(RuntimeError, match=rf'damaged.{suffix} is damaged'):
            checkpoint.load_pretrained(PoolFormer(**TINY), path)

    TENSORS: ClassVar = {
        'sparse': (lambda t: t.to_sparse(), 'torch.sparse_coo'),
        'quantised': (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), 'torch.qint8'),
        'float8': (lambda t: t.to(torch.float8_e4m3fn), 'torch.float8_e4m3fn'),
        'meta': (lambda t: t.to('meta'), 'meta device'),
        'int8': (lambda t: t.to(torch.int8), 'torch.int8'),
        'int64': (lambda t: t.long(), 'torch.int64'),
        'bool': (lambda t: t > 0, 'torch.bool'),
        'huge': (lambda t: t[:1, :1, :1, :1].expand(1, 96, 60000, 60000), 'expanded view'),
    }

    @pytest.mark.parametrize('kind', TENSORS)
    def test_holds_tensors_that_are_no_weights(self, published, kind):
        change, culprit = self.TENSORS[kind]
        key = 'network.1.proj.weight'
        path = published(lambda s: s | {key: change(s[key])})
        with pytest.raises(ValueError, match=rf'file.pth.*(network|stages)\S+ .*{culprit}'):
            loaded(path)

    def test_positions_of_absurd_size_are_refused_before_they_are_resampled(self, tmp_path):
        state = vit_file(tmp_path / 'vit.pth')
        row = state['pos_embed'][:, :1]
        torch.save(state | {'pos_embed': row.expand(1, 60000**2 + 1, 192)}, tmp_path / 'vit.pth')
        model = VisionTransformer('tiny', **VIT)
        with pytest.raises(ValueError, match=r'pos_embed \(an expanded view'):
            checkpoint.load_pretrained(model, tmp_path / 'vit.pth')

    @pytest.mark.parametrize('dtype', ['float64', 'float16', 'bfloat16'])
    def test_other_floating_point_numbers_load(self, published, dtype):
        path = published(lambda s: {k: v.to(getattr(torch, dtype)) for k, v in s.items()})
        expected = torch.load(path)['patch_embed.proj.bias']
        assert torch.equal(loaded(path).stem.conv.bias, expected.float())

    def test_a_file_that_contains_itself(self, tmp_path):
        content = {'w': torch.ones(1)}
        content['state_dict'] = content
        torch.save(content, tmp_path / 'file.pth')
        with pytest.raises(ValueError, match=r'file\.pth has more than 8 entries inside'):
            checkpoint.load_pretrained(PoolFormer(**TINY), tmp_path / 'file.pth')

    def test_keys_are_no_strings(self, published):
        with pytest.raises(ValueError, match='file.pth has keys that are not strings: 7'):
            loaded(published(lambda s: {**s, 7: torch.ones(1)}))

    def test_holds_foreign_code(self, tmp_path):
        import pickle

        class Foreign:
            def __reduce__(self):
                return print, ('run',)

        torch.save({'state_dict': {}, 'hook': Foreign()}, tmp_path / 'file.pth')
        with pytest.raises(pickle.UnpicklingError, match='file.pth is refused.*print'):
            checkpoint.load_pretrained(PoolFormer(**TINY), tmp_path / 'file.pth')

    def test_unknown_arguments_are_not_ignored(self, published):
        model = PoolFormer(**TINY, init_cfg=pretrained(published(), strict=False))
        with pytest.raises(TypeError, match='strict'):
            model.init_weights()


class TestInitCfg:
    """A list is as good as a dict, and what names no file is no silent start from scratch."""

    def test_lists_load_strictly_after_other_initialisers(self, published):
        path = published()
        constant = {'type': 'Constant', 'layer': ['Conv2d', 'GroupNorm1'], 'val': 3.0}
        model = PoolFormer(**TINY, init_cfg=[pretrained(path), constant])
        model.init_weights()
        assert torch.equal(model.stem.conv.bias, torch.load(path)['patch_embed.proj.bias'])
        model = PoolFormer(**{**TINY, 'depths': (1, 1, 1, 1)}, init_cfg=[pretrained(path)])
        with pytest.raises(ValueError, match='has no tensor for: network.4.1'):
            model.init_weights()

    @pytest.mark.parametrize('wrap', [lambda cfg: cfg, lambda cfg: [cfg]])
    @pytest.mark.parametrize(
        ('cfg', 'error', 'culprit'),
        [
            (
                'mmpatch://x',
                TypeError,
                r"PoolFormer: .*dict\(type='Pretrained', checkpoint='mmpatch",
            ),
            (
                {'type': 'Pretrained'},
                ValueError,
                "PoolFormer: .*names no file; add checkpoint='mmp",
            ),
        ],
    )
    def test_without_a_file_is_an_error(self, cfg, error, culprit, wrap):
        with pytest.raises(error, match=culprit):
            PoolFormer(**TINY, init_cfg=wrap(cfg)).init_weights()


class TestEntries:
    """A file with several state dicts: the report says which one was taken, and how to choose."""

    def load(self, published, **kwargs):
        path = published(lambda s: {'model': s, 'ema': {k: v + 1 for k, v in s.items()}, 'n': 1})
        model = PoolFormer(**TINY)
        report = checkpoint.load_pretrained(model, path, **kwargs)
        return str(report), model.stem.conv.bias, torch.load(path)

    def test_the_report_names_the_other_ones(self, published):
        report, bias, content = self.load(published)
        assert "from 'model', not from 'ema' (prefix='ema.')" in report
        assert torch.equal(bias, content['model']['patch_embed.proj.bias'])

    def test_a_prefix_chooses(self, published):
        report, bias, content = self.load(published, prefix='ema.')
        assert "from 'ema', not from 'model' (prefix='model.')" in report
        assert torch.equal(bias, content['ema']['patch_embed.proj.bias'])


class TestPublished:
    @pytest.mark.parametrize(
        ('name', 'nearest'),
        [('poolformer-s99', 'poolformer-s..?_'), ('vit-bse-p16_in21k', 'vit-base-p16_in21k')],
    )
    def test_unknown_names_get_the_nearest_one(self, name, nearest):
        with pytest.raises(ValueError, match=f'{name}: .*nearest: {nearest}') as error:
            loaded(f'mmpatch://{name}')
        assert len(str(error.value)) < 300

    def test_a_name_without_its_scheme(self):
        with pytest.raises(FileNotFoundError, match='write mmpatch://poolformer-s12_in1k'):
            loaded('poolformer-s12_in1k')

    def test_file_without_direct_link(self):
        with pytest.raises(ValueError, match='drive.google.com.*give the path'):
            loaded('mmpatch://container-light_in1k')

    def test_every_entry_is_of_a_known_network_and_layout(self):
        families = {family.__name__: family for family in checkpoint.list_families()}
        assert {'PoolFormer', 'Container', 'ConvMixer', 'VisionTransformer'} <= set(families)
        names = set()
        for name, entry in checkpoint.PUBLISHED.items():
            with torch.device('meta'):
                families[entry.family](**entry.settings)
            names.add(cached_name(entry.url))
            layouts = (checkpoint.METAFORMER_LAYOUT, *families[entry.family].LAYOUTS)
            assert entry.layout in {layout.name for layout in layouts}, name
            assert entry.url.startswith('https://') and entry.source, name
            assert len(entry.normalisation) == 2
        assert len(names) == len(checkpoint.PUBLISHED)  # no two share a download

    @pytest.mark.parametrize(
        ('name', 'url'),
        [
            (
                'convmixer-1536-20_mmpretrain_in1k',
                'https://download.openmmlab.com/mmclassification/v0/convmixer/'
                'convmixer-1536_20_3rdparty_10xb64_in1k_20220323-ea5786f3.pth',
            ),
            (
                'poolformer-m48_in1k',
                'https://github.com/sail-sg/poolformer/releases/download/v1.0/'
                'poolformer_m48.pth.tar',
            ),
            (
                'deit-base-distilled-384_in1k',
                'https://dl.fbaipublicfiles.com/deit/deit_base_distilled_patch16_384-d0272ac0.pth',
            ),
            (
                'vit-large-p32-original_in21k',
                'https://storage.googleapis.com/vit_models/imagenet21k/ViT-L_32.npz',
            ),
            (
                'vit-base-r50-s16-original_in21k',
                'https://storage.googleapis.com/vit_models/imagenet21k/R50+ViT-B_16.npz',
            ),
        ],
    )
    def test_urls(self, name, url):
        assert checkpoint.PUBLISHED[name].url == url

    def test_a_download_that_is_not_the_published_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
        entry = checkpoint.PUBLISHED['deit-tiny_in1k']
        with FileServer(b'something') as server:
            entry = replace(entry, url=f'{server.url}/{entry.url.rsplit("/")[-1]}')
            monkeypatch.setitem(VisionTransformer.PUBLISHED, 'deit-tiny_in1k', entry)
            with pytest.raises(RuntimeError, match='is not the file that was published.*a1311bcf'):
                loaded('mmpatch://deit-tiny_in1k', VisionTransformer, arch='tiny')
        assert not [*(tmp_path / 'checkpoints').iterdir()]

    def test_an_older_download_that_is_not_the_published_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
        (tmp_path / 'checkpoints').mkdir()
        (tmp_path / 'checkpoints/deit_tiny_patch16_224-a1311bcf.pth').write_bytes(b'something')
        with pytest.raises(RuntimeError, match='SHA-256.*a1311bcf; delete it'):
            loaded('mmpatch://deit-tiny_in1k', VisionTransformer, arch='tiny')


def test_a_family_of_another_project_takes_part(tmp_path):
    """Its sizes, layouts and files are class attributes; nothing else has to know of it."""
    layout = checkpoint.Layout('mine', r'a\.b', ((r'a\.b', 'stem.conv.bias'),))

    class Mine(PoolFormer):
        ARCHS: ClassVar = {'xs': TINY}
        LAYOUTS: ClassVar = (*PoolFormer.LAYOUTS, layout)
        PUBLISHED: ClassVar = {
            'mine': checkpoint.Published('https://x.org/y', {'arch': 'xs'}, 'mine', None, 1.0, 'y')
        }

    torch.save({'a.b': torch.ones(8)}, tmp_path / 'mine.pth')
    MODELS.register_module(module=Mine)
    try:
        assert checkpoint.PUBLISHED['mine'].family == 'Mine'
        with pytest.raises(ValueError, match=r'mine.pth \(mine layout\).* lacks: stem.conv.weight'):
            checkpoint.load_pretrained(Mine('xs'), tmp_path / 'mine.pth')
        with pytest.raises(ValueError, match='holds a Mine .*the model is a PoolFormer'):
            checkpoint.load_pretrained(PoolFormer(**TINY), tmp_path / 'mine.pth')
    finally:
        del MODELS.module_dict['Mine']
    assert 'mine' not in checkpoint.PUBLISHED


class TestConverting:
    TOOL = 'tools/convert_checkpoint.py'

    @pytest.mark.parametrize(
        ('reference', 'make'),
        [
            ('poolformer_s12', lambda: PoolFormer('s12', out_norm=False)),
            ('convmixer_768_32', lambda: ConvMixer('768/32', out_norm=False)),
        ],
    )
    def test_finds_the_network(self, tmp_path, reference, make, monkeypatch, capsys):
        torch.save({'model': golden.load_reference(reference)[1]}, tmp_path / 'src.pth')
        call_tool(monkeypatch, self.TOOL, tmp_path / 'src.pth', tmp_path / 'dst.pth')
        printed = capsys.readouterr().out
        assert 'tensors loaded' in printed and 'dropped: ' in printed
        one, two = make(), make()
        checkpoint.load_pretrained(one, tmp_path / 'src.pth')
        checkpoint.load_pretrained(two, tmp_path / 'dst.pth')
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert sorted(p.name for p in tmp_path.iterdir()) == ['dst.pth', 'src.pth']

    def test_says_what_it_was_told(self, tmp_path, monkeypatch):
        vit_file(tmp_path / 'src.pth')
        backbone = ['type=VisionTransformer', 'arch=tiny', 'depths=1,1,1,1']
        files = tmp_path / 'src.pth', tmp_path / 'dst.pth'
        call_tool(monkeypatch, self.TOOL, *files, '--backbone', *backbone)
        assert torch.load(tmp_path / 'dst.pth')['meta']['backbone']['arch'] == 'tiny'

    @pytest.mark.parametrize(
        ('backbone', 'culprit'),
        [
            (['arch=s12'], 'type=None: choose from'),
            (['type=PoolFromer'], 'type=PoolFromer: choose from'),
            (['type=PoolFormer', 'colour=3'], 'colour'),
        ],
    )
    def test_wrong_backbones_are_named(self, tmp_path, published, backbone, culprit, monkeypatch):
        files = published(), tmp_path / 'dst.pth'
        with pytest.raises(SystemExit, match=f'^error: .*{culprit}'):
            call_tool(monkeypatch, self.TOOL, *files, '--backbone', *backbone)

    def test_own_files_of_hybrids_at_other_sizes(self, tmp_path, monkeypatch, capsys):
        model = VisionTransformer('small-r26-s32', pretrain_img_size=(384, 320), out_norm=False)
        torch.save(model.state_dict(), tmp_path / 'src.pth')
        call_tool(monkeypatch, self.TOOL, tmp_path / 'src.pth', tmp_path / 'dst.pth')
        printed = capsys.readouterr().out
        assert "'arch': 'small-r26-s32'" in printed and '(384, 320)' in printed

    @pytest.mark.process
    def test_leaves_nothing_behind_when_it_fails(self, tmp_path, published):
        path = published(lambda s: {**s, 'network.9.extra': torch.ones(1)})
        (tmp_path / 'dst.pth').write_text('older')
        status, text = try_tool(self.TOOL, path, tmp_path / 'dst.pth')
        assert status and 'fits no arch' in text and 'Traceback' not in text
        assert (tmp_path / 'dst.pth').read_text() == 'older'
        assert len([*tmp_path.iterdir()]) == 2


def test_own_mixes_load_files_of_their_family(published):
    model = MetaFormer(
        TINY['depths'],
        TINY['dims'],
        'Pooling',
        stem={'kernel_size': 7, 'padding': 2},
        downsample={'kernel_size': 3, 'padding': 1},
        layer_scale=0.1,
    )
    assert len(checkpoint.load_pretrained(model, published()).matched) == 58
