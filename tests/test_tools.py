"""tools/train.py and tools/test.py as processes: on toy data, tiny networks, one core."""

import json
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config

import mmpatch  # noqa: F401, makes mmdet importable without compiled mmcv
from mmpatch.engine.tool import check_precision

import golden
from support import ROOT, child_environment, run_tool

pytestmark = [pytest.mark.hosts, pytest.mark.process]

DETECTOR = 'configs/demo/retinanet_poolformer-nano_fpn_toy-coco.py'
SEGMENTOR = 'configs/demo/fpn_poolformer-nano_toy-ade20k.py'
TINY = [
    'model.backbone.depths=(1,1,1,1)',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
    'test_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.persistent_workers=False',
    'train_dataloader.batch_size=2',
    'default_hooks.logger.interval=1',
    'randomness.seed=3',
]


def options(toy, *more):
    data = {'coco': f'data_root={toy}/coco', 'ade': f'data_root={toy}/ade'}
    return ['--cfg-options', *TINY, *(data.get(item, item) for item in more)]


def detector(toy, *more):
    fixed = ('train_dataloader.batch_size=1', 'train_cfg.max_epochs=3', 'train_cfg.val_interval=1')
    return ['tools/train.py', DETECTOR, *options(toy, 'coco', *fixed, *more)]


def last_metric(folder, key):
    lines = []
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        lines += [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if key in line][-1]


def losses(folder):
    file = max(folder.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [(line['step'], line['loss']) for line in lines if 'loss' in line]


@pytest.fixture(scope='module')
def whole(toy, tmp_path_factory):
    """A training that nothing interrupts: three epochs of twelve iterations."""
    folder = tmp_path_factory.mktemp('whole')
    run_tool(*detector(toy), '--work-dir', folder)
    return folder


def test_killed_and_resumed_training_equals_an_uninterrupted_one(toy, whole, tmp_path):
    command = [sys.executable, *detector(toy), '--work-dir', str(tmp_path)]
    output = tmp_path / 'log'
    log = output.open('w')
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=child_environment())
    deadline = time.monotonic() + 200
    # in the middle of the second epoch
    while not re.search(r'\[2\]\[ *2/12\]', output.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / 'epoch_1.pth').exists() and not (tmp_path / 'epoch_2.pth').exists()

    assert 'resumed epoch: 1' in run_tool(*command[1:], '--resume').stdout
    resumed = torch.load(tmp_path / 'epoch_3.pth', weights_only=True)['state_dict']
    expected = torch.load(whole / 'epoch_3.pth', weights_only=True)['state_dict']
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)
    key = 'coco/bbox_mAP'
    assert last_metric(tmp_path, key)[key] == last_metric(whole, key)[key]
    # the first losses logged after the resumption are smoothed with those before it
    assert losses(tmp_path)[-1] == losses(whole)[-1]


def test_a_loss_that_is_not_finite_stops_training(toy, tmp_path):
    command = [*detector(toy, 'optim_wrapper.optimizer.lr=1e30'), '--work-dir', tmp_path]
    result = run_tool(*command, check=False)
    error = result.stderr.strip().splitlines()[-1]
    assert result.returncode and re.search(r'loss is not finite at iteration \d+', error), error
    assert re.search(r'loss_(cls|bbox)=(nan|inf)', error) and not list(tmp_path.glob('*.pth'))


KEEP_RANKS = """
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KeepRanks(Hook):
    def after_train(self, runner):
        torch.save(runner.model.module.state_dict(), f'{runner.work_dir}/rank{runner.rank}.pth')
"""


def test_two_ranks_train_on_a_cpu(toy, tmp_path):
    (tmp_path / 'keep_ranks.py').write_text(KEEP_RANKS)
    (tmp_path / 'config.py').write_text(
        f"_base_ = '{ROOT}/{SEGMENTOR}'\n"
        "custom_imports = dict(imports=['keep_ranks'])\n"
        "custom_hooks = [dict(type='KeepRanks')]\n"
    )
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', 2]
    train = ['tools/train.py', tmp_path / 'config.py', '--launcher', 'pytorch']
    four = options(toy, 'ade', 'train_cfg.max_iters=4', 'train_cfg.val_interval=4')
    env = {'PYTHONPATH': f'{tmp_path}:{ROOT}', 'CUDA_VISIBLE_DEVICES': ''}
    run_tool(*launch, *train, '--work-dir', tmp_path, *four, env=env)
    first, second = (torch.load(tmp_path / f'rank{rank}.pth') for rank in (0, 1))
    assert first and all(torch.equal(first[key], second[key]) for key in first)
    assert last_metric(tmp_path, 'mIoU')['step'] == 4


def test_mixed_precision_is_refused_on_a_cpu(toy, tmp_path):
    train = ['tools/train.py', SEGMENTOR, '--amp', '--work-dir', tmp_path, *options(toy, 'ade')]
    result = run_tool(*train, check=False, env={'CUDA_VISIBLE_DEVICES': ''})
    assert result.returncode and 'Traceback' not in result.stderr
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith('error: MMEngine has no mixed precision on a CPU: leave out --amp')
    check_precision(Config({'optim_wrapper': {'optimizer': {'type': 'AdamW'}}}))  # type left out


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (['tools/train.py', 'nothere.py'], r'nothere\.py'),
        (['tools/test.py', DETECTOR, 'a.pth', '--out', 'a.json'], r'a\.json: a detector writes'),
        (['tools/make_toy_data.py', '--train', '0'], '--train 0 --val 80: each set needs'),
    ],
)
def test_wrong_arguments_end_in_one_line(toy, tmp_path, arguments, error):
    tail = ['--work-dir', tmp_path, *options(toy, 'coco')] if 'data' not in arguments[0] else []
    result = run_tool(*arguments, *tail, check=False)
    assert result.returncode and 'Traceback' not in result.stderr
    assert re.search(f'error: .*{error}', result.stderr.strip().splitlines()[-1])


def test_segmentor_trains_resumes_and_predicts(toy, tmp_path):
    steps = ['train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']
    steps = options(toy, 'ade', 'train_cfg.max_iters=4', *steps)
    whole = tmp_path / 'whole'
    run_tool('tools/train.py', SEGMENTOR, '--work-dir', whole, *steps)
    resume = ['--resume', whole / 'iter_2.pth']
    run_tool('tools/train.py', SEGMENTOR, '--work-dir', tmp_path, *resume, *steps)
    assert last_metric(tmp_path, 'mIoU')['step'] == 4
    resumed, uninterrupted = (
        torch.load(folder / 'iter_4.pth', weights_only=True)['state_dict']
        for folder in (tmp_path, whole)
    )
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)
    test = ['tools/test.py', SEGMENTOR, tmp_path / 'iter_4.pth', '--work-dir', tmp_path / 'test']
    out, show = tmp_path / 'labels', tmp_path / 'pictures'
    run_tool(*test, '--out', out, '--show-dir', show, *options(toy, 'ade'))
    assert len(list(out.glob('*.png'))) == 6
    assert len(list(show.rglob('*.png'))) == 6


def test_detector_predicts(toy, whole, tmp_path):
    test = ['tools/test.py', DETECTOR, whole / 'epoch_3.pth', '--work-dir', tmp_path]
    out = tmp_path / 'found.pkl'
    run_tool(*test, '--out', out, '--show-dir', 'pictures', *options(toy, 'coco'))
    with out.open('rb') as file:
        assert len(pickle.load(file)) == 6
    assert len(list(tmp_path.glob('*/pictures/*.jpg'))) == 6
    metrics = json.loads(next(tmp_path.glob('*/*.json')).read_text())
    key = 'coco/bbox_mAP'
    assert metrics[key] == last_metric(whole, key)[key]


@pytest.mark.parametrize(
    'name', ['retinanet_poolformer-s12_fpn_1x_coco', 'mask-rcnn_poolformer-s12_fpn_1x_coco']
)
def test_detectors_of_mmdet_2_are_evaluated(toy, tmp_path, name):
    from mmdet.utils import register_all_modules
    from mmengine.registry import MODELS

    register_all_modules()
    config = ROOT / f'configs/poolformer/{name}.py'
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    theirs = golden.rename_to_published(model.state_dict())
    assert 'backbone.network.0.0.norm1.weight' in theirs and 'neck.fpn_convs.0.conv.bias' in theirs
    meta = {'mmdet_version': '2.19.0', 'epoch': 12}
    torch.save({'meta': meta, 'state_dict': theirs}, tmp_path / 'old.pth')
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'new.pth')
    small = ['test_dataloader.dataset.pipeline.1.scale=(96,80)', f'data_root={toy}/coco']
    if 'mask' in name:
        small.append('model.test_cfg.rpn.max_per_img=20')
    found = {}
    for file in ('old', 'new'):
        out = tmp_path / f'{file}.pkl'
        command = ['tools/test.py', config, tmp_path / f'{file}.pth', '--out', out]
        options = ['--work-dir', tmp_path / file, '--cfg-options', *TINY[3:4], *TINY[5:6], *small]
        text = run_tool(*command, *options)
        assert 'unexpected key' not in text.stdout + text.stderr
        assert 'missing keys' not in text.stdout + text.stderr
        with out.open('rb') as stream:
            found[file] = pickle.load(stream)
    for old, new in zip(found['old'], found['new'], strict=True):
        for key in ('scores', 'labels', 'bboxes'):
            assert torch.equal(old['pred_instances'][key], new['pred_instances'][key])
    assert sum(len(image['pred_instances']['scores']) for image in found['old'])


@pytest.mark.parametrize(
    ('config', 'missing', 'source'),
    [
        ('poolformer/retinanet_poolformer-s12_fpn_1x_coco.py', 'data/none', 'cocodataset.org'),
        ('poolformer/fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py', 'data/none', 'csail.mit.edu'),
    ],
)
def test_missing_data_is_named_before_anything_is_built(tmp_path, config, missing, source):
    command = ['tools/train.py', f'configs/{config}', '--work-dir', tmp_path]
    result = run_tool(*command, '--cfg-options', f'data_root={missing}', check=False)
    error = result.stderr.strip().splitlines()[-1]
    assert result.returncode and error.startswith('error: data/none does not exist')
    assert source in error and 'make_toy_data.py' in error
    assert 'Traceback' not in result.stderr
    assert not list(tmp_path.iterdir())  # no runner was made


def test_parts_that_do_not_fit_are_named_before_anything_is_built(toy, tmp_path):
    wrong = 'model.neck.in_channels=[64,128,320]'
    code, text = failure(toy, tmp_path, DETECTOR, 'coco', wrong)
    assert code and 'Traceback' not in text
    assert 'model.neck.in_channels=[64, 128, 320], but the backbone gives' in text.splitlines()[-1]


@pytest.fixture
def spoiled(toy, tmp_path):
    """A copy of the toy data to damage."""
    import shutil

    shutil.copytree(toy, tmp_path / 'toy')
    return tmp_path / 'toy'


def failure(toy, tmp_path, config, data, *more):
    command = ['tools/train.py', config, '--work-dir', tmp_path / 'out']
    result = run_tool(*command, *options(toy, data, *more), check=False)
    return result.returncode, result.stdout + result.stderr


def test_missing_image_is_named(spoiled, tmp_path):
    (spoiled / 'coco/train2017/000000000003.jpg').unlink()
    code, text = failure(spoiled, tmp_path, DETECTOR, 'coco')
    assert code and '1 of the files that CocoDataset names are missing or empty' in text
    assert 'train2017/000000000003.jpg' in text.splitlines()[-1]


def test_truncated_image_is_named(spoiled, tmp_path):
    image = spoiled / 'coco/train2017/000000000003.jpg'
    image.write_bytes(image.read_bytes()[:900])
    code, text = failure(spoiled, tmp_path, DETECTOR, 'coco')
    assert code and 'the data pipeline failed on' in text.splitlines()[-1]
    assert 'train2017/000000000003.jpg' in text.splitlines()[-1]


def test_truncated_label_is_named(spoiled, tmp_path):
    label = next((spoiled / 'ade/annotations/training').iterdir())
    label.write_bytes(label.read_bytes()[:60])
    code, text = failure(spoiled, tmp_path, SEGMENTOR, 'ade')
    assert code and label.name in text.splitlines()[-1]


def test_what_has_no_image_is_counted(spoiled, tmp_path):
    file = spoiled / 'coco/annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    lost = [a['id'] for a in content['annotations'] if a['image_id'] == content['images'][-1]['id']]
    content['images'].pop()
    file.write_text(json.dumps(content))
    assert lost
    short = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=2')
    code, text = failure(spoiled, tmp_path, DETECTOR, 'coco', *short)
    assert not code and f'{len(lost)} annotations belong to images that the annotation file' in text

    (spoiled / 'ade/images/training/ADE_train_00000002.jpg').unlink()
    code, text = failure(spoiled, tmp_path, SEGMENTOR, 'ade', 'train_cfg.max_iters=1')
    assert not code and '1 labels in' in text and 'ADE_train_00000002.png' in text


def test_matrix_runs():
    """One cell of it: the whole takes minutes."""
    command = ['tools/check_matrix.py', '--iterations', 12]
    text = run_tool(*command, '--families', 'convmixer', '--tasks', 'semantic-fpn').stdout
    assert re.search(r'\| semantic-fpn \| \d+\.\d+ -> \d+\.\d+; .* M; \d+ s \|', text)
