"""tools/train.py and tools/test.py as processes: on toy data, tiny networks, one core."""

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import mmpatch  # noqa: F401, makes mmdet importable without compiled mmcv
from mmpatch.engine.data import replace_data_root

import golden
from support import IS_FORK, ROOT, call_tool, child_environment, run_tool, try_tool

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
    fixed = ('train_dataloader.batch_size=1', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=1')
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
def lacking(toy, tmp_path_factory):
    """A copy of the toy data in which one picture of each set to train on is missing."""
    folder = tmp_path_factory.mktemp('lacking') / 'toy'
    shutil.copytree(toy, folder)
    file = folder / 'coco/annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    content['images'].pop()
    file.write_text(json.dumps(content))
    (folder / 'ade/images/training/ADE_train_00000002.jpg').unlink()
    return folder


@pytest.fixture(scope='module')
def whole(lacking, tmp_path_factory):
    """A training that nothing interrupts: two epochs of eleven iterations."""
    folder = tmp_path_factory.mktemp('whole')
    text = run_tool(*detector(lacking), '--work-dir', folder)
    (folder / 'printed').write_text(text)
    return folder


def test_annotations_without_an_image_are_counted(lacking, whole):
    content = json.loads((lacking / 'coco/annotations/instances_train2017.json').read_text())
    images = {image['id'] for image in content['images']}
    lost = [a['id'] for a in content['annotations'] if a['image_id'] not in images]
    line = f'{len(lost)} belong to images that the file does not list'
    assert lost and line in (whole / 'printed').read_text()
    assert (whole / 'epoch_2.pth').is_file()  # training went on


def test_killed_and_resumed_training_equals_an_uninterrupted_one(lacking, whole, tmp_path):
    command = [sys.executable, *detector(lacking), '--work-dir', str(tmp_path)]
    output = tmp_path / 'log'
    log = output.open('w')
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=child_environment())
    deadline = time.monotonic() + 200
    # in the middle of the second epoch
    while not re.search(r'\[2\]\[ *2/11\]', output.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / 'epoch_1.pth').exists() and not (tmp_path / 'epoch_2.pth').exists()

    assert 'resumed epoch: 1' in run_tool(*command[1:], '--resume')
    resumed = torch.load(tmp_path / 'epoch_2.pth', weights_only=True)['state_dict']
    expected = torch.load(whole / 'epoch_2.pth', weights_only=True)['state_dict']
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)
    key = 'coco/bbox_mAP'
    assert last_metric(tmp_path, key)[key] == last_metric(whole, key)[key]
    # the first losses logged after the resumption are smoothed with those before it
    assert losses(tmp_path)[-1] == losses(whole)[-1]


def test_a_loss_that_is_not_finite_stops_training(toy, tmp_path):
    command = [*detector(toy, 'optim_wrapper.optimizer.lr=1e30'), '--work-dir', tmp_path]
    status, text = try_tool(*command)
    error = text.splitlines()[-1]
    assert status and re.search(r'loss is not finite at iteration \d+', error), error
    assert re.search(r'loss_(cls|bbox)=(nan|inf)', error) and not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (['tools/train.py', 'nothere.py'], r'nothere\.py'),
        (['tools/make_toy_data.py', '--train', '0'], '--train 0 --val 80: each set needs'),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, error):
    status, text = try_tool(*arguments)
    assert status and 'Traceback' not in text
    assert re.search(f'error: .*{error}', text.strip().splitlines()[-1])


def test_a_detector_writes_one_file(toy, tmp_path, monkeypatch):
    test = ['tools/test.py', DETECTOR, 'a.pth', '--out', 'a.json', '--work-dir', tmp_path]
    with pytest.raises(SystemExit, match=r'^error: .*a\.json: a detector writes .*$'):
        call_tool(monkeypatch, *test, *options(toy, 'coco'))


def test_segmentor_trains_resumes_and_predicts(lacking, tmp_path):
    """One of its labels has no image, which is counted."""
    steps = ['train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=1']
    steps = options(lacking, 'ade', 'train_cfg.max_iters=2', *steps)
    whole = tmp_path / 'whole'
    train = ['tools/train.py', SEGMENTOR]
    text = run_tool(*train, '--work-dir', whole, *steps)
    assert '1 labels in' in text and 'ADE_train_00000002.png' in text
    resume = ['--resume', whole / 'iter_1.pth']
    run_tool(*train, '--work-dir', tmp_path, *resume, *steps)
    assert last_metric(tmp_path, 'mIoU')['step'] == 2
    resumed, uninterrupted = (
        torch.load(folder / 'iter_2.pth', weights_only=True)['state_dict']
        for folder in (tmp_path, whole)
    )
    same = all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)
    assert same or IS_FORK  # which augments anew in loops by iteration
    test = [
        'tools/test.py',
        SEGMENTOR,
        tmp_path / 'iter_2.pth',
        '--work-dir',
        tmp_path / 'test',
    ]
    out, show = tmp_path / 'labels', tmp_path / 'pictures'
    run_tool(*test, '--out', out, '--show-dir', show, *options(lacking, 'ade'))
    assert len(list(out.glob('*.png'))) == 6
    assert len(list(show.rglob('*.png'))) == 6


def test_detector_predicts(toy, whole, tmp_path):
    test = ['tools/test.py', DETECTOR, whole / 'epoch_2.pth', '--work-dir', tmp_path]
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
    loader = {'num_workers': 0, 'persistent_workers': False}
    small = {'model': {'backbone': {'depths': (1, 1, 1, 1)}}, 'test_dataloader': loader}
    if 'mask' in name:
        few = {'rpn': {'max_per_img': 20}, 'rcnn': {'max_per_img': 10}}
        small['model']['test_cfg'] = few
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(small)
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 80)
    cfg.model.backbone.init_cfg = None
    replace_data_root(cfg, f'{toy}/coco')
    config = tmp_path / 'small.py'
    cfg.dump(config)
    model = MODELS.build(cfg.model).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    theirs = golden.rename_to_published(model.state_dict())
    assert 'backbone.network.0.0.norm1.weight' in theirs and 'neck.fpn_convs.0.conv.bias' in theirs
    meta = {'mmdet_version': '2.19.0', 'epoch': 12}
    torch.save({'meta': meta, 'state_dict': theirs}, tmp_path / 'old.pth')
    command = ['tools/test.py', config, tmp_path / 'old.pth', '--out', tmp_path / 'old.pkl']
    text = run_tool(*command, '--work-dir', tmp_path / 'out')
    assert 'unexpected key' not in text and 'missing keys' not in text
    with (tmp_path / 'old.pkl').open('rb') as stream:
        found = pickle.load(stream)
    with torch.no_grad():
        batches = Runner.build_dataloader(cfg.test_dataloader)
        expected = [sample for batch in batches for sample in model.test_step(batch)]
    for old, sample in zip(found, expected, strict=True):
        for key in ('scores', 'labels', 'bboxes'):
            torch.testing.assert_close(old['pred_instances'][key], sample.pred_instances[key])
    assert sum(len(image['pred_instances']['scores']) for image in found)


@pytest.mark.parametrize(
    ('config', 'missing', 'source'),
    [
        ('poolformer/retinanet_poolformer-s12_fpn_1x_coco.py', 'data/none', 'cocodataset.org'),
        ('poolformer/fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py', 'data/none', 'csail.mit.edu'),
    ],
)
def test_missing_data_is_named_before_anything_is_built(
    tmp_path, config, missing, source, monkeypatch
):
    command = ['tools/train.py', f'configs/{config}', '--work-dir', tmp_path]
    error = f'^error: data/none does not exist.*{source}.*make_toy_data.py.*$'
    with pytest.raises(SystemExit, match=error):
        call_tool(monkeypatch, *command, '--cfg-options', f'data_root={missing}')
    assert not list(tmp_path.iterdir())  # no runner was made


def test_parts_that_do_not_fit_are_named_before_anything_is_built(toy, tmp_path, monkeypatch):
    command = ['tools/train.py', DETECTOR, '--work-dir', tmp_path]
    wrong = options(toy, 'coco', 'model.neck.in_channels=[64,128,320]')
    error = r'^error: .*model.neck.in_channels=\[64, 128, 320\], but the backbone gives .*$'
    with pytest.raises(SystemExit, match=error):
        call_tool(monkeypatch, *command, *wrong)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def spoiled(toy, tmp_path):
    """A copy of the toy data to damage."""
    shutil.copytree(toy, tmp_path / 'toy')
    return tmp_path / 'toy'


def failure(toy, tmp_path, config, data, *more):
    command = ['tools/train.py', config, '--work-dir', tmp_path / 'out']
    return try_tool(*command, *options(toy, data, *more))


def test_missing_image_is_named(spoiled, tmp_path):
    (spoiled / 'coco/train2017/000000000003.jpg').unlink()
    code, text = failure(spoiled, tmp_path, DETECTOR, 'coco')
    assert code and '1 of the files that CocoDataset names are missing or empty' in text
    assert 'train2017/000000000003.jpg' in text.splitlines()[-1]


def test_truncated_image_is_named(spoiled, tmp_path):
    image = spoiled / 'coco/train2017/000000000003.jpg'
    image.write_bytes(image.read_bytes()[:900])
    all_at_once = 'train_dataloader.batch_size=12'
    code, text = failure(spoiled, tmp_path, DETECTOR, 'coco', all_at_once)
    assert code and 'the data pipeline failed on' in text.splitlines()[-1]
    assert 'train2017/000000000003.jpg' in text.splitlines()[-1]


def test_truncated_label_is_named(spoiled, tmp_path):
    label = next((spoiled / 'ade/annotations/training').iterdir())
    label.write_bytes(label.read_bytes()[:60])
    code, text = failure(spoiled, tmp_path, SEGMENTOR, 'ade', 'train_dataloader.batch_size=12')
    assert code and label.name in text.splitlines()[-1]


def test_matrix_runs():
    """One cell of it: the whole takes minutes."""
    command = ['tools/check_matrix.py', '--iterations', 8]
    text = run_tool(*command, '--families', 'convmixer', '--tasks', 'semantic-fpn')
    cell = re.search(r'\| semantic-fpn \| (\d+\.\d+) -> (\d+\.\d+); .* M; \d+ s \|', text)
    before, after = map(float, cell.groups())
    assert after < 0.95 * before  # without a step, noise alone lets it fall a little


def test_matrix_says_what_was_not_learnt_by_heart():
    command = ['tools/check_matrix.py', '--by-heart', '--tasks', 'detr', '--iterations', 10]
    status, text = try_tool(*command)
    assert status and '1 of the cells failed: poolformer detr' in text
    assert re.search(r'poolformer detr +FAILED: AssertionError: box AP is 0\.0', text)
    _, text = try_tool(*command[:3], 'retinanet')
    assert '--by-heart takes only the tasks detr, deformable-detr' in text


READ_PATIENCE = """
import sys
from mmpatch.engine.tool import make_parser, read_config

cfg = read_config(make_parser('').parse_args(sys.argv[1:]))
print('patience', [x.get('patience') for x in cfg.custom_hooks if 'InvalidLoss' in str(x['type'])])
"""


@pytest.mark.parametrize('kind', ['CheckInvalidLossHook', "'mmpatch.CheckInvalidLossHook'"])
def test_a_hook_of_the_user_takes_the_place_of_the_one_that_is_added(tmp_path, kind):
    """As a class, too, which a config without ``_base_`` may import."""
    hook = f'custom_hooks = [dict(type={kind}, patience=2)]\n'
    start = 'from mmpatch.engine.hooks import CheckInvalidLossHook\n'
    text = Config.fromfile(ROOT / DETECTOR).pretty_text
    (tmp_path / 'own.py').write_text(f'{start}{text}{hook}')
    assert 'patience [2]' in run_tool('-c', READ_PATIENCE, tmp_path / 'own.py')
