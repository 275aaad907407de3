"""Two ranks on a CPU, over gloo. tools/check_reliability.py does the same with more of them."""

import importlib

import pytest

import mmpatch  # noqa: F401, makes mmdet importable without compiled mmcv

from support import ROOT, call_tool

pytestmark = [pytest.mark.hosts, pytest.mark.process]
SEGMENTOR = 'configs/demo/fpn_poolformer-nano_toy-ade20k.py'
#: A config for each kind of backbone.
CONFIGS = [
    'poolformer/mask-rcnn_poolformer-s12_fpn_1x_coco.py',
    'poolformer/retinanet_poolformer-s12_fpn_1x_coco.py',
    'container/detr_container-light_8xb2-50e_coco.py',
    'convmixer/retinanet_convmixer-768-32-p8_sfp_1x_coco.py',
    'vit/fpn_deit-s_tap-fpn_8xb2-80k_ade20k-512x512.py',
    'vit/retinanet_vit-b-r50_fpn_1x_coco.py',
    'vit/mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco.py',
    'timm/fpn_dinov2-s-reg4_8xb4-40k_ade20k-512x512.py',
]


@pytest.fixture(scope='module')
def processes():
    """The part of the check of reliability."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'tools')
        module = importlib.import_module('reliability.processes')
        module.register_hosts()
        yield module


@pytest.fixture(scope='module')
def data(processes, tmp_path_factory):
    return processes.make_data(tmp_path_factory.mktemp('data'), processes.PICTURES, 7)


def assert_held(rows, tried):
    rows = list(rows)
    assert [row for row in rows if row.held < row.tried] == []
    assert [row.tried for row in rows] == tried


def test_ranks_train_as_one_process(processes, data, tmp_path):
    assert_held(processes.check_weights(tmp_path, data, ['poolformer'], [2]), [1])


def test_ranks_of_slurm_and_mpi(processes, data, tmp_path):
    assert_held(processes.check_launchers(tmp_path, data, ['slurm', 'mpi']), [2])


def test_a_killed_rank_ends_all_and_training_resumes(processes, data, tmp_path):
    assert_held(processes.check_killed_rank(tmp_path, data, [2, 1]), [1, 2])


def test_ranks_evaluate_as_one_process(processes, data, tmp_path):
    assert_held(processes.check_evaluation(tmp_path, data, [2]), [2])


def test_one_rank_downloads(processes, data, tmp_path):
    assert_held(processes.check_downloads(tmp_path, data, [2]), [1])


def test_ranks_augment_differently(processes, data, tmp_path):
    assert_held(processes.check_augmentation(tmp_path, data, [0]), [45])


def test_all_parameters_of_backbones_get_gradients(processes, tmp_path):
    assert_held(processes.check_backbones(tmp_path, CONFIGS), [16])


def test_what_cannot_be_trained_is_named(processes, data, tmp_path):
    assert_held(processes.check_refusals(tmp_path, data), [2])


def test_missing_variables_of_a_launcher_are_named(toy, tmp_path, monkeypatch):
    monkeypatch.setattr('mmpatch.engine.tool.get_device', lambda: 'cpu')
    monkeypatch.setenv('SLURM_PROCID', '0')
    command = ['tools/test.py', SEGMENTOR, 'a.pth', '--launcher', 'slurm', '--work-dir', tmp_path]
    missing = '^error: --launcher slurm: SLURM_NTASKS, SLURM_LOCALID, MASTER_ADDR not in the env'
    with pytest.raises(SystemExit, match=missing):
        call_tool(monkeypatch, *command, '--cfg-options', f'data_root={toy}/ade')
