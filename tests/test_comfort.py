"""What the hosts bring along for training and evaluation works with networks of ours."""

import json
import shlex

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mmpatch  # noqa: F401, makes the hosts importable without compiled mmcv

from support import IS_FORK, ROOT, run_tool

pytestmark = [pytest.mark.hosts, pytest.mark.process]
DETECTOR = """
_base_ = '{root}/configs/demo/retinanet_poolformer-nano_fpn_toy-coco.py'
metainfo = dict(classes=('stop sign', 'kite', 'donut'))  # a matrix of 80 takes a minute to draw
model = dict(bbox_head=dict(num_classes=3))
train_dataloader = dict(dataset=dict(metainfo=metainfo))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = dict(dataset=dict(metainfo=metainfo))
custom_hooks = [
    dict(type='EMAHook', momentum=0.1),
    dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', min_delta=1.0, patience=1),
]
default_hooks = dict(
    logger=dict(interval=1),
    visualization=dict(type='DetVisualizationHook', draw=True, interval=1),
)
visualizer = dict(
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
)
"""
SEGMENTOR = """
_base_ = '{root}/configs/demo/fpn_poolformer-nano_toy-ade20k.py'
default_hooks = dict(
    logger=dict(interval=1),
    visualization=dict(type='SegVisualizationHook', draw=True, interval=1),
)
"""
SHORT = """
model.backbone.depths=(1,1,1,1) train_dataloader.batch_size=2 train_dataloader.dataset.indices=2
val_dataloader.dataset.indices=2 test_dataloader.dataset.indices=2
train_dataloader.num_workers=0 train_dataloader.persistent_workers=False
val_dataloader.num_workers=0 val_dataloader.persistent_workers=False
test_dataloader.num_workers=0 test_dataloader.persistent_workers=False
default_hooks.checkpoint.interval=1
"""


def train(folder, toy, text, *options):
    """Train for two epochs or iterations; the config that was run is in the work dir."""
    config = folder / 'mine.py'
    config.write_text(text.format(root=ROOT))
    options = ['--cfg-options', *shlex.split(SHORT), *options]
    data = f'data_root={toy}/{"coco" if "coco" in text else "ade"}'
    arguments = [config, '--work-dir', folder / 'run', *options, data]
    return folder / 'run', run_tool('tools/train.py', *arguments, cwd=folder)


@pytest.fixture(scope='module')
def detector(toy, tmp_path_factory):
    options = ['train_cfg.max_epochs=5', 'train_cfg.val_interval=1']
    options += ['model.test_cfg.score_thr=0.0']  # so that there is a metric
    return train(tmp_path_factory.mktemp('detector'), toy, DETECTOR, *options)


@pytest.fixture(scope='module')
def segmentor(toy, tmp_path_factory):
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    return train(tmp_path_factory.mktemp('segmentor'), toy, SEGMENTOR, *options)


def run_host(host, tool, *arguments, cwd):
    return run_tool('-m', 'mmpatch', 'run', host, tool, *arguments, cwd=cwd)


def test_averaged_weights_are_saved(detector):
    content = torch.load(next(detector[0].glob('epoch_2*.pth')), weights_only=True)
    names = {name.removeprefix('module.') for name in content['ema_state_dict']} - {'steps'}
    assert names == content['state_dict'].keys()
    moved = [
        not torch.equal(tensor, content['ema_state_dict'][f'module.{name}'])
        for name, tensor in content['state_dict'].items()
        if tensor.is_floating_point()
    ]
    assert any(moved)


def test_training_stops_early(detector):
    """The metric cannot grow by 1, so the second epoch without growth is the last."""
    epochs = {int(file.stem.split('_')[1]) for file in detector[0].glob('epoch_*.pth')}
    assert max(epochs) == 2 and 'did not improve' in detector[1]


@pytest.mark.parametrize('run', ['detector', 'segmentor'])
def test_pictures_of_predictions_are_kept_every_time(request, run):
    folder = request.getfixturevalue(run)[0]
    assert list(folder.glob('*/vis_data/vis_image/*.png'))


def test_a_detector_is_evaluated_with_augmentation(detector, tmp_path):
    """What it finds makes the matrix of confusions."""
    config, found = detector[0] / 'mine.py', tmp_path / 'found.pkl'
    checkpoint = next(detector[0].glob('epoch_2*.pth'))
    test = ['test', config, checkpoint, '--tta', '--out', found]
    assert 'coco/bbox_mAP' in run_host('mmdet', *test, cwd=tmp_path)
    run_host('mmdet', 'confusion_matrix', config, found, tmp_path, cwd=tmp_path)
    assert (tmp_path / 'confusion_matrix.png').stat().st_size > 1000


def test_a_segmentor_is_evaluated_with_augmentation(segmentor, tmp_path):
    folder, _ = segmentor
    checkpoint = next(folder.glob('iter_2*.pth'))
    out = run_host('mmseg', 'test', folder / 'mine.py', checkpoint, '--tta', cwd=tmp_path)
    assert 'mIoU' in out


def test_pictures_of_training_data_are_drawn(detector, tmp_path):
    arguments = [detector[0] / 'mine.py', '--output-dir', tmp_path / 'seen', '--not-show']
    run_host('mmdet', 'browse_dataset', *arguments, cwd=tmp_path)
    assert len(list((tmp_path / 'seen').rglob('*.jpg'))) == 2


def test_losses_are_logged_as_json_and_drawn(detector, segmentor, tmp_path):
    for host, (folder, _) in {'mmdet': detector, 'mmseg': segmentor}.items():
        file = min(folder.glob('*/vis_data/scalars.json'))
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert len([line for line in lines if 'loss' in line]) >= 2
        curve = tmp_path / f'{host}.png'
        arguments = ['plot_curve', file] if host == 'mmdet' else [file]
        if host == 'mmdet' and IS_FORK:  # its own default is none of matplotlib's
            arguments += ['--style', 'default']
        run_host(host, 'analyze_logs', *arguments, '--keys', 'loss', '--out', curve, cwd=tmp_path)
        assert curve.stat().st_size > 1000


def test_losses_and_pictures_are_logged_for_tensorboard(detector):
    folder = min(detector[0].glob('*/vis_data'))  # others are of evaluations
    events = EventAccumulator(str(folder)).Reload()
    assert len(events.Scalars('loss')) == 2 and events.Tags()['images']
