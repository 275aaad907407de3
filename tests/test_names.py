"""Names of our configs where OpenMMLab's users type them: what works, and what says why not."""

from collections import OrderedDict

import pytest
from mmengine.hub import get_config, get_model
from mmengine.infer import BaseInferencer
from mmengine.registry import DefaultScope

import mmpatch
from mmpatch.engine.build import build_model

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
@pytest.mark.parametrize(('kind', 'config'), KINDS)
def test_path_of_a_config_works_in_every_host(kind, config):
    model = make(kind, mmpatch.config_path(config))
    assert type(model.backbone).__name__ == 'PoolFormer' and not model.training


@pytest.mark.parametrize(('kind', 'config'), [KINDS[0], KINDS[2]])
def test_name_with_our_scope_says_what_to_give_instead(kind, config):
    name = config.split('/')[1].removesuffix('.py')
    with pytest.raises(KeyError, match=r'leave scope out, give mmpatch\.config_path') as error:
        make(kind, name, scope='mmpatch')
    assert 'no trained' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(('kind', 'config'), KINDS)
def test_hosts_do_not_know_inherited_names(kind, config):
    """Only ``_base_`` and MMEngine's hub read ``mmpatch::``."""
    with pytest.raises((ValueError, FileNotFoundError), match=f'mmpatch::{config}'):
        make(kind, f'mmpatch::{config}')


def test_all_names_are_listed():
    names = BaseInferencer.list_models('mmpatch')
    stems = [name.split('/')[1].removesuffix('.py') for name in mmpatch.list_configs()]
    assert set(names) == {stem for stem in stems if 'nano' not in stem}


def test_hub_reads_configs_and_knows_of_no_weights():
    cfg = get_config(f'mmpatch::{DETECTOR}', pretrained=True)
    assert cfg.model_path is None
    assert type(build_model(cfg).backbone).__name__ == 'PoolFormer'


def test_hub_cannot_build_models():
    """It looks for all types in our scope, where no host is asked; build_model does not."""
    with pytest.raises(ModuleNotFoundError, match='mmpatch.utils'):
        get_model(f'mmpatch::{DETECTOR}')
