"""Names of our configs where OpenMMLab's users type them: what works, and what says why not."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
from mmengine import hub
from mmengine.config import Config, config
from mmengine.infer import BaseInferencer
from mmengine.registry import DefaultScope

import mmpatch
from mmpatch.compat import names
from mmpatch.engine import tool

pytestmark = pytest.mark.hosts
DETECTOR = 'poolformer/retinanet_poolformer-s12_fpn_1x_coco.py'
SEGMENTOR = 'poolformer/fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'


@pytest.fixture(autouse=True)
def scope(monkeypatch):
    """Inferencers change the default scope of the process."""
    scopes = OrderedDict(DefaultScope._instance_dict)
    monkeypatch.setattr(DefaultScope, '_instance_dict', scopes)


def make(kind, name, **kwargs):
    """What a host makes of the name of a config."""
    from mmdet.apis import DetInferencer, init_detector
    from mmseg.apis import MMSegInferencer, init_model

    if kind in ('init_detector', 'init_model'):
        init = {'init_detector': init_detector, 'init_model': init_model}[kind]
        return init(name, device='cpu', **kwargs)
    inferencer = {'DetInferencer': DetInferencer, 'MMSegInferencer': MMSegInferencer}[kind]
    return inferencer(name, device='cpu', **kwargs).model


KINDS = [
    ('DetInferencer', DETECTOR),
    ('init_detector', DETECTOR),
    ('MMSegInferencer', SEGMENTOR),
    ('init_model', SEGMENTOR),
]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('spelling', ['path', 'mmpatch::'])
@pytest.mark.parametrize(('kind', 'config'), KINDS)
def test_configs_work_in_every_host(kind, config, spelling):
    name = mmpatch.config_path(config) if spelling == 'path' else f'mmpatch::{config}'
    model = make(kind, name)
    assert type(model.backbone).__name__ == 'PoolFormer' and not model.training


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(('kind', 'config'), [KINDS[0], KINDS[2]])
def test_inferencers_know_names_of_our_scope(kind, config):
    """With a word that there are no trained weights, and the host's types around ours."""
    name = Path(config).stem
    with pytest.warns(UserWarning, match=f'{name} is untrained'):
        model = make(kind, name, scope='mmpatch')
    assert type(model.backbone).__name__ == 'PoolFormer'


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(('kind', 'config'), KINDS)
def test_unknown_names_are_answered_with_the_nearest(kind, config):
    with pytest.raises(ValueError, match=f'nearest: [^;]*{config}'):
        make(kind, f'mmpatch::{config}x')


@pytest.mark.filterwarnings('ignore')
def test_names_of_the_hosts_are_left_to_them():
    with pytest.raises(ValueError, match='Cannot find model: none in mmdet'):
        make('DetInferencer', 'none')
    with pytest.raises(AssertionError, match='does not support to load none config'):
        hub.get_model('none::folder/name.py')


def test_variables_of_a_base_are_looked_up_in_the_host(tmp_path):
    from mmseg.registry import TRANSFORMS

    file = tmp_path / 'mine.py'
    file.write_text(f"_base_ = 'mmpatch::{SEGMENTOR}'\nmine = [*_base_.train_pipeline]\n")
    for step in Config.fromfile(file).mine:
        assert TRANSFORMS.build(step)


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::_base_/default_runtime.py',
        'mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py',
    ],
)
def test_bases_of_hosts_are_found_without_their_metafiles(name, monkeypatch):
    expected = names._find_base(name, '')
    monkeypatch.setattr(config, '_get_external_cfg_path', None)
    assert Config._get_cfg_path(name, '') == expected


def test_bases_that_are_not_there_are_left_to_mmengine():
    for name, error in {
        'mmdet::none/none.py': FileNotFoundError,
        '::a/b.py': AssertionError,
    }.items():
        with pytest.raises(error) as ours:
            Config._get_cfg_path(name, '')
        with pytest.raises(error, match=re.escape(str(ours.value))):
            names._find_base(name, '')


@pytest.mark.parametrize('suffix', ['', '.py'])
def test_tools_read_configs_of_hosts_by_name(suffix):
    name = 'mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512'
    found = tool.read_file(name + suffix).to_dict()
    assert found == hub.get_config(f'{name}.py').to_dict() and found['default_scope'] == 'mmseg'


@pytest.mark.parametrize('suffix', ['', '.py'])
def test_work_dirs_have_the_whole_name_of_a_config(suffix, monkeypatch):
    """Names of hosts have dots; two runs in one folder would resume from each other."""
    monkeypatch.setenv('MMPATCH_KEEP_HEAP', '0')
    monkeypatch.setenv('LOCAL_RANK', '0')
    name = 'unet-s5-d16_fcn_4xb4-ce-1.0-dice-3.0-40k_drive-64x64'
    args = tool.make_parser('').parse_args([f'mmseg::unet/{name}{suffix}'])
    assert tool.read_config(args).work_dir == f'work_dirs/{name}'


def test_all_names_are_listed():
    listed = BaseInferencer.list_models('mmpatch')
    stems = [name.split('/')[1].removesuffix('.py') for name in mmpatch.list_configs()]
    assert set(listed) == {stem for stem in stems if 'nano' not in stem}
    assert len(set(stems)) == len(stems)  # so that a name stands for one config


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR])
def test_hub_reads_configs_and_builds_models(config):
    name = f'mmpatch::{config}'
    assert hub.get_config(name, pretrained=True).model_path is None
    model = hub.get_model(name, init_cfg={'type': 'Normal', 'layer': 'Conv2d'})
    assert type(model.backbone).__name__ == 'PoolFormer'
    assert model.init_cfg['type'] == 'Normal'
    with pytest.raises(ValueError, match='no trained detectors or segmentors: leave pretrained'):
        hub.get_model(name, pretrained=True)
