"""In mmdet and mmseg: types resolve by themselves, configs build, train and predict."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmpatch

from support import ROOT

pytestmark = pytest.mark.hosts
POOLFORMER = {
    'poolformer/retinanet_poolformer-s12_fpn_1x_coco.py': 21.65,
    'poolformer/fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py': 15.67,
}


def build(cfg):
    from mmdet.utils import register_all_modules as register_mmdet
    from mmengine.registry import MODELS
    from mmseg.utils import register_all_modules as register_mmseg

    {'mmdet': register_mmdet, 'mmseg': register_mmseg}[cfg.default_scope](False)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', POOLFORMER)
def test_parameters_of_whole_models(name):
    with torch.device('meta'):
        model = build(Config.fromfile(mmpatch.config_path(name)))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(POOLFORMER[name], abs=0.01)


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
def test_type_resolves_without_custom_imports(host):
    import importlib

    registry = importlib.import_module(f'{host}.registry').MODELS
    init_default_scope(host)
    cfg = {'type': 'mmpatch.PoolFormer', 'depths': (1, 1), 'dims': 8, 'strides': (4, 2)}
    model = registry.build({**cfg, 'out_indices': (0, 1)})
    assert type(model) is mmpatch.backbones.PoolFormer


def test_unknown_arch_is_named_through_the_host():
    from mmdet.registry import MODELS

    with pytest.raises(ValueError, match="PoolFormer has no arch 's13'; choose from.*'s12'"):
        MODELS.build({'type': 'mmpatch.PoolFormer', 'arch': 's13'})


def test_every_config_is_listed_and_parses():
    names = mmpatch.list_configs()
    assert set(POOLFORMER) < set(names)
    for name in names:
        cfg = Config.fromfile(mmpatch.config_path(name))
        assert cfg.default_scope in ('mmdet', 'mmseg'), name
        assert cfg.auto_scale_lr.base_batch_size > 0, name


def test_unknown_config_is_named():
    with pytest.raises(ValueError, match=r"no config 'poolformer/none\.py'.*retinanet"):
        mmpatch.config_path('poolformer/none.py')


@pytest.mark.parametrize(
    'base',
    [
        "'mmpatch::poolformer/retinanet_poolformer-s12_fpn_1x_coco.py'",
        "[__import__('mmpatch').config_path('poolformer/retinanet_poolformer-s12_fpn_1x_coco.py')]",
    ],
)
def test_configs_are_inherited_from_anywhere(tmp_path, base):
    (tmp_path / 'mine.py').write_text(
        f'_base_ = {base}\nmodel = dict(backbone=dict(depths=(1, 1, 1, 1)))\n'
    )
    model = build(Config.fromfile(tmp_path / 'mine.py'))
    assert [len(stage.blocks) for stage in model.backbone.stages] == [1, 1, 1, 1]


@pytest.mark.parametrize('name', [n for n in mmpatch.list_configs() if n.startswith('demo/')])
def test_no_parameter_is_left_without_gradient(name, torch_seed):
    """So that distributed training needs no search for unused parameters."""
    model = build(Config.fromfile(mmpatch.config_path(name))).train()
    if 'retinanet' in name:
        from mmdet.testing import demo_mm_inputs

        data = demo_mm_inputs(2, [(3, 97, 130), (3, 64, 90)], num_items=[3, 0], num_classes=80)
    else:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = [SegDataSample() for _ in range(2)]
        for sample in samples:
            sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 97, 130)))
            sample.set_metainfo({'img_shape': (97, 130), 'ori_shape': (97, 130)})
        data = {'inputs': [torch.randint(0, 256, (3, 97, 130))] * 2, 'data_samples': samples}
    data = model.data_preprocessor(data, True)
    losses, _ = model.parse_losses(model(**data, mode='loss'))
    losses.backward()
    assert torch.isfinite(losses)
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        assert len(model.eval()(**data, mode='predict')) == 2


def test_mim_folder_links_to_the_project():
    for link in ('configs', 'tools', 'model-index.yml'):
        assert (ROOT / 'mmpatch/.mim' / link).resolve() == ROOT / link
