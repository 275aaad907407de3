"""Predictions equal the hosts', whole and in tiles; files that cannot be read are named."""

import gc
import json
import re
import signal
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

import mmpatch
from mmpatch.engine.build import build_model
from mmpatch.engine.tool import import_host
from mmpatch.inference.predict import Predictor, list_files
from mmpatch.inference.results import Shot, Writer
from mmpatch.registry import check_types

from support import ROOT, call_tool, relative_error, try_tool

pytestmark = pytest.mark.hosts
TOOL = 'tools/predict.py'
NETWORKS = {
    'detector': 'demo/retinanet_poolformer-nano_fpn_toy-coco.py',
    'segmentor': 'demo/fpn_poolformer-nano_toy-ade20k.py',
}
CLASSES = ('cat', 'dog', 'kite')
PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def save(path, cfg, model, **meta):
    """Write a checkpoint as MMEngine does at the end of a training."""
    known = {'cfg': cfg.pretty_text, 'dataset_meta': {'classes': CLASSES, 'palette': PALETTE}}
    torch.save({'state_dict': model.state_dict(), 'meta': {**known, **meta}}, path)
    return path


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Small networks of three classes and random weights, with which they find a lot."""
    folder, files = tmp_path_factory.mktemp('trained'), {}
    for name, config in NETWORKS.items():
        cfg = Config.fromfile(mmpatch.config_path(config))
        small = {'backbone': {'depths': (1, 1, 1, 1)}}
        head = 'bbox_head' if name == 'detector' else 'decode_head'
        cfg.merge_from_dict({'model': {**small, head: {'num_classes': 3}}})
        cfg.dump(folder / f'{name}.py')
        torch.manual_seed(0)
        files[name] = save(folder / f'{name}.pth', cfg, build_model(cfg))
    return files


@pytest.fixture(scope='module')
def reader(tmp_path_factory):
    """A detector that sees pixels and nothing else: bright spots, with scores by their colour."""
    from mmdet.models import BaseDetector
    from mmdet.registry import MODELS
    from mmengine.structures import InstanceData

    @MODELS.register_module(force=True)
    class SpotReader(BaseDetector):
        with_mask = True

        def __init__(self, backbone, data_preprocessor):
            super().__init__(data_preprocessor)
            self.backbone = nn.Conv2d(1, 1, 1)

        def extract_feat(self, *args): ...

        _forward = loss = extract_feat

        def predict(self, inputs, samples):
            blue, green, red = inputs[0].numpy()
            count, spots = cv2.connectedComponents((blue > 127).astype(np.uint8))
            found = InstanceData()
            found.masks = torch.from_numpy(spots == np.arange(1, count)[:, None, None])
            corners = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in self.find(found)]
            found.bboxes = torch.tensor(np.array(corners).reshape(-1, 4), dtype=torch.float32)
            found.scores = torch.tensor([green[y[0], x[0]] / 255 for y, x in self.find(found)])
            found.labels = torch.tensor([int(red[y[0], x[0]]) for y, x in self.find(found)])
            order = found.scores.argsort(descending=True)
            samples[0].pred_instances = found[order]
            return samples

        def find(self, found):
            return [np.nonzero(mask.numpy()) for mask in found.masks]

    steps = [{'type': 'LoadImageFromFile'}, {'type': 'PackDetInputs', 'meta_keys': ('ori_shape',)}]
    model = {'type': 'SpotReader', 'backbone': {}, 'data_preprocessor': {}}
    model['data_preprocessor'] = {'type': 'mmdet.DetDataPreprocessor'}
    data = {'dataset': {'pipeline': steps}}
    cfg = Config({'default_scope': 'mmdet', 'model': model, 'test_dataloader': data})
    path = tmp_path_factory.mktemp('reader') / 'reader.pth'
    return save(path, cfg, SpotReader({}, {'type': 'mmdet.DetDataPreprocessor'}))


def scatter(width, height, largest, count=400, seed=0):
    """Spots of random sizes and colours that do not touch each other, some at the borders."""
    rng = np.random.default_rng(seed)
    picture, taken = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
    for _ in range(count):
        w, h = rng.integers(3, largest + 1, 2)
        x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
        area = np.s_[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2]
        if not taken[area].any():
            taken[area] = True
            spot = np.ones((h, w), np.uint8)
            spot[: h // 3, : w // 3] = rng.integers(0, 2)  # some lack a corner
            spot[h // 3 :, 0] = spot[0, w // 3 :] = spot[-1] = spot[:, -1] = 1
            colour = (255, rng.integers(100, 255), rng.integers(0, 3))
            picture[y : y + h, x : x + w] = spot[..., None] * np.array(colour)
    return picture


def write_video(path, count):
    """Frames of 96 x 64, five in a second, from black to light grey."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 5, (96, 64))
    for i in range(count):
        video.write(np.full((64, 96, 3), 60 * i, np.uint8))
    video.release()


def rows(found):
    """What was found, in an order that equal scores do not change."""
    keys = ('boxes', 'scores', 'names', *(['masks'] if 'masks' in found else []))
    return sorted(zip(*(map(str, found[key]) for key in keys), strict=True))


@pytest.mark.parametrize('size', [(700, 500), (130, 400), (512, 128), (100, 90)])
def test_tiles_find_what_the_whole_picture_shows(reader, size):
    """Objects up to seven eighths of the overlap, with masks, wherever tiles cut them."""
    picture = scatter(*size, largest=28)
    whole = Predictor(None, reader)(picture)
    tiled = Predictor(None, reader, slice=128, overlap=0.25)(picture)
    assert len(whole['boxes']) > 10 and whole['scores'] == sorted(whole['scores'], reverse=True)
    assert rows(tiled) == rows(whole)


def test_larger_objects_come_out_in_parts(reader):
    picture = np.zeros((128, 300, 3), np.uint8)
    picture[40:80, 20:280] = 255, 200, 1
    found = Predictor(None, reader, slice=128, overlap=0.25)(picture)
    assert found['boxes'] == [[20, 40, 128, 80], [96, 40, 224, 80], [172, 40, 280, 80]]
    assert set(found['names']) == {'dog'}


def test_a_tile_is_predicted_like_a_picture(trained):
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    detect = Predictor(None, trained['detector'])
    expected = []
    for x in (0, 64):
        alone = detect(picture[:, x : x + 64])
        moved = [[a + x, b, c + x, d] for a, b, c, d in alone['boxes']]
        expected += zip(moved, alone['scores'], alone['names'], strict=True)
    tiled = Predictor(None, trained['detector'], slice=64, overlap=0)(picture)
    found = list(zip(tiled['boxes'], tiled['scores'], tiled['names'], strict=True))
    assert len(found) > 50 and len(found) == len(expected)
    for a, b in zip(sorted(found), sorted(expected), strict=True):
        assert a[0] == pytest.approx(b[0], abs=0.02) and a[1:] == b[1:]


def test_tiles_of_a_segmentor_meet_in_the_middle_of_their_overlap(trained):
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    segment = Predictor(None, trained['segmentor'])
    left, right = (segment(picture[:, x : x + 64])['class_map'] for x in (0, 32))
    tiled = Predictor(None, trained['segmentor'], slice=64, overlap=0.5)(picture)['class_map']
    assert np.array_equal(tiled, np.hstack([left[:, :48], right[:, 16:]]))
    assert len(np.unique(tiled)) > 1 and not np.array_equal(left[:, 32:], right[:, :32])


def write_pictures(folder):
    """Pictures of all kinds that hosts read."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    colour = cv2.resize(rng.integers(0, 256, (8, 12, 3), np.uint8), (120, 80))
    cv2.imwrite(str(folder / 'colour.JPG'), colour)
    cv2.imwrite(str(folder / 'grey.png'), colour[..., 0])
    cv2.imwrite(str(folder / 'clear.png'), np.dstack([colour, colour[..., 1]]))
    cv2.imwrite(str(folder / 'deep.png'), colour.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'deep.tif'), colour.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    Image.fromarray(colour).save(folder / 'turned.jpg', exif=exif)
    return folder


def test_boxes_are_those_of_mmdet(trained, tmp_path):
    from mmdet.apis import inference_detector, init_detector

    folder = write_pictures(tmp_path / 'in')
    config, checkpoint = trained['detector'].with_suffix('.py'), trained['detector']
    model = init_detector(config, str(checkpoint), palette='random', device='cpu')
    results = mmpatch.predict(config, checkpoint, folder, score_thr=0.5)
    assert [result['file'] for result in results] == sorted(map(str, folder.iterdir()))
    for result in results:
        expected = inference_detector(model, result['file']).pred_instances
        expected = expected[expected.scores >= 0.5]
        width, height = (80, 120) if 'turned' in result['file'] else (120, 80)
        assert result['size'] == [width, height] and len(result['boxes']) > 20
        assert relative_error(torch.tensor(result['boxes']), expected.bboxes) < 1e-3
        assert result['names'] == [CLASSES[i] for i in expected.labels]


def test_class_maps_are_those_of_mmseg(trained, tmp_path):
    from mmseg.apis import inference_model, init_model

    folder = write_pictures(tmp_path / 'in')
    config, checkpoint = trained['segmentor'].with_suffix('.py'), trained['segmentor']
    model = init_model(config, str(checkpoint), device='cpu')
    written = mmpatch.predict(config, checkpoint, folder, out=tmp_path / 'out')
    records = json.loads(written.file.read_text())['predictions']
    assert written.count == len(records) == 6 and not written.failed
    assert len({record['class_map'] for record in records}) == 6  # two are called deep
    for record in records:
        found = cv2.imread(str(tmp_path / 'out' / record['class_map']), cv2.IMREAD_UNCHANGED)
        expected = inference_model(model, record['file']).pred_sem_seg.data[0].numpy()
        assert np.array_equal(found, expected)
        drawn = cv2.imread(str(tmp_path / 'out' / record['picture']))
        assert drawn.shape == (*expected.shape, 3)


def test_the_tool_names_bad_files_and_goes_on(trained, tmp_path, monkeypatch, capsys):
    folder = write_pictures(tmp_path / 'in')
    (folder / 'cut.jpg').write_bytes((folder / 'colour.JPG').read_bytes()[:-200])
    (folder / 'text.png').write_text('no picture')
    (folder / 'empty.bmp').touch()
    cv2.imwrite(str(folder / 'thin.png'), np.zeros((4000, 1, 3), np.uint8))  # 0 wide when resized
    (folder / 'notes.txt').write_text('not looked at')
    with pytest.raises(SystemExit) as stop:
        call_tool(monkeypatch, TOOL, trained['detector'], folder, '--out', tmp_path / 'out')
    lines = stop.value.code.splitlines()
    assert lines[0] == '4 could not be predicted:' and len(lines) == 5
    for line, name in zip(lines[1:], ('cut.jpg', 'empty.bmp', 'text.png'), strict=False):
        assert line.startswith(f'{folder / name} cannot be read: ')
    assert lines[4].startswith(f'{folder / "thin.png"} cannot be predicted: ')
    assert 'predicted pictures: 6; ' in capsys.readouterr().out
    content = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert content['classes'] == list(CLASSES) and len(content['predictions']) == 10
    assert sum('error' in record for record in content['predictions']) == 4
    assert len(list((tmp_path / 'out/pictures').iterdir())) == 6


@pytest.mark.parametrize('kind', ['pictures', 'class_maps'])
def test_inputs_are_not_overwritten(reader, tmp_path, kind):
    (tmp_path / kind).mkdir()
    cv2.imwrite(str(tmp_path / kind / 'a.png'), scatter(60, 50, 10, count=5))
    (tmp_path / 'link').symlink_to(tmp_path / kind)
    before = (tmp_path / kind / 'a.png').read_bytes()
    for given in (kind, f'{kind}/a.png', 'link'):
        with pytest.raises(ValueError, match=r'a\.png could be overwritten; give another folder'):
            mmpatch.predict(None, reader, tmp_path / given, out=tmp_path)
    assert [path.name for path in tmp_path.glob('*/*')] == ['a.png'] * 2
    assert (tmp_path / kind / 'a.png').read_bytes() == before


def test_arrays_of_another_kind_are_refused(reader, tmp_path):
    predictor = Predictor(None, reader)
    picture = scatter(60, 50, 10, count=5)
    with pytest.raises(TypeError, match=r'uint8, blue first; got \(50, 60, 3\) of float64$'):
        predictor(picture / 255)
    for wrong in (picture[..., 0], picture[None], str(tmp_path)):
        with pytest.raises(TypeError, match='uint8, blue first; got'):
            predictor(wrong)


def test_drawn_colours_are_those_of_picture_and_palette(reader):
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[30:] = 100, 20, 20  # dark blue, which is no spot
    picture[2:20, 30:60] = 255, 200, 2  # a kite, drawn in blue
    predictor = Predictor(None, reader)
    drawn = predictor.draw(picture, predictor(picture)).astype(int)
    assert np.abs(drawn[45:] - picture[45:]).max() <= 2
    edge = drawn[18:22, 58:62].reshape(-1, 3)
    assert (edge[:, 0] > 150).any() and (edge[:, 1:].min(1) < 60).any()


def test_large_pictures_are_drawn_smaller(reader):
    picture = np.zeros((50, 3200, 3), np.uint8)
    picture[10:40, 2000:2400] = 255, 200, 0
    predictor = Predictor(None, reader)
    drawn = predictor.draw(picture, predictor(picture))
    assert drawn.shape == (25, 1600, 3) and drawn[:, 990:1210].any() and not drawn[:, :980].any()


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_videos(trained, tmp_path, kind, monkeypatch, capsys):
    write_video(tmp_path / 'walk.mp4', 4)
    call_tool(monkeypatch, TOOL, trained[kind], tmp_path / 'walk.mp4', '--out', tmp_path / 'out')
    records = json.loads((tmp_path / 'out/predictions.json').read_text())['predictions']
    assert [record['frame'] for record in records] == [0, 1, 2, 3]
    drawn = cv2.VideoCapture(str(tmp_path / 'out/pictures/walk.mp4'))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 4 and drawn.get(cv2.CAP_PROP_FPS) == 5
    maps = sorted(path.name for path in (tmp_path / 'out').glob('class_maps/*'))
    assert maps == [f'walk_{i:06}.png' for i in range(4)] * (kind == 'segmentor')
    (tmp_path / 'bad.mp4').write_text('no video')
    result = mmpatch.predict(None, trained[kind], tmp_path / 'bad.mp4')[0]
    assert result['error'] == f'video {tmp_path / "bad.mp4"} cannot be opened'


def test_the_file_is_whole_after_each_prediction(tmp_path):
    shots = [Shot(tmp_path / f'{i}.jpg', np.zeros((4, 6, 3), np.uint8)) for i in range(3)]
    bad = Shot(tmp_path / 'bad.jpg', None)
    with Writer(tmp_path / 'out', {'classes': ['cat']}) as writer:
        for count, shot in enumerate([bad, *shots]):
            content = json.loads(writer.path.read_text())
            assert content['classes'] == ['cat'] and len(content['predictions']) == count
            writer.add(shot, {'error': 'bad'} if shot is bad else {'boxes': []}, shot.picture)
        assert writer.path.read_text().count('\n') == 6
    assert not list(tmp_path.rglob('*.part*'))
    last = json.loads(writer.path.read_text())['predictions'][-1]
    assert last == {
        'file': str(tmp_path / '2.jpg'),
        'size': [6, 4],
        'boxes': [],
        'picture': 'pictures/2.jpg',
    }


def test_no_picture_stays_in_memory(reader, tmp_path, monkeypatch):
    for i in range(4):
        cv2.imwrite(str(tmp_path / f'{i}.png'), scatter(60, 50, 10, count=5, seed=i))
    alive, draw = [], Predictor.draw

    def draw_and_count(self, picture, found):
        gc.collect()
        assert sum(picture() is not None for picture in alive) <= 1
        alive.append(weakref.ref(picture))
        return draw(self, picture, found)

    monkeypatch.setattr(Predictor, 'draw', draw_and_count)
    assert mmpatch.predict(None, reader, tmp_path, out=tmp_path / 'out').count == len(alive) == 4


#: Runs a tool in which a signal comes when the second frame or picture is drawn.
INTERRUPTED = """
import runpy, signal, sys
from mmpatch.inference.predict import Predictor

draw, drawn = Predictor.draw, []
tool, number = sys.argv[1:3]

def draw_one(self, picture, found):
    if drawn:
        signal.raise_signal(int(number))
    drawn.append(draw(self, picture, found))
    return drawn[0]

Predictor.draw = draw_one
sys.argv = [tool, *sys.argv[3:]]
runpy.run_path(tool, run_name='__main__')
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('name', ['walk.mp4', 'photos'])
def test_a_signal_leaves_whole_files(trained, tmp_path, name, number):
    write_video(tmp_path / 'walk.mp4', 4)
    (tmp_path / 'photos').mkdir()
    for i in range(3):
        photo = scatter(60, 50, 10, count=5, seed=i)
        cv2.imwrite(str(tmp_path / f'photos/{i}.png'), photo)
    words = ['-c', INTERRUPTED, ROOT / TOOL, int(number), trained['detector'], tmp_path / name]
    status, text = try_tool(*words, '--out', tmp_path / 'out')
    assert status == 1, text
    assert text.splitlines()[-1] == f'interrupted; what was predicted is in {tmp_path / "out"}'
    assert len(json.loads((tmp_path / 'out/predictions.json').read_text())['predictions']) == 1
    (kept,) = (tmp_path / 'out/pictures').iterdir()
    if name == 'photos':
        assert cv2.imread(str(kept)).shape == (50, 60, 3)
    else:
        assert cv2.VideoCapture(str(kept)).get(cv2.CAP_PROP_FRAME_COUNT) == 1


def test_a_second_run_into_the_same_folder_is_refused(reader, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), scatter(60, 50, 10, count=5))
    with Writer(tmp_path / 'out', {'checkpoint': 'a.pth'}) as first:
        first.add(Shot(tmp_path / 'a.png', None), {'error': 'none'}, None)
        with pytest.raises(ValueError, match='another run writes to .*out; give another folder'):
            mmpatch.predict(None, reader, tmp_path / 'photo.png', out=tmp_path / 'out')
    assert json.loads(first.path.read_text())['predictions'][0]['error'] == 'none'
    assert mmpatch.predict(None, reader, tmp_path / 'photo.png', out=tmp_path / 'out').count == 1


def test_threads_find_what_one_finds(trained, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), scatter(60, 50, 10, count=5))

    def find(name):
        (found,) = mmpatch.predict(None, trained[name], tmp_path / 'photo.png', device='cpu')
        return found['class_map'].tolist() if name == 'segmentor' else found['boxes']

    alone = {name: find(name) for name in NETWORKS}
    names = [*NETWORKS] * 6
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads meet in the middle of building
    try:
        with ThreadPoolExecutor(len(names)) as pool:
            assert list(pool.map(find, names)) == [alone[name] for name in names]
    finally:
        sys.setswitchinterval(interval)


def test_files_of_a_folder_that_are_left_out_are_named(tmp_path, monkeypatch):
    for name in ('a.png', 'b.gif', 'c.HEIC', 'd.txt', 'e.mp4', 'f.webp'):
        (tmp_path / name).touch()
    lines = []
    module = sys.modules[list_files.__module__]
    monkeypatch.setattr(module, 'print_log', lambda text, **kwargs: lines.append(text))
    assert list_files([tmp_path]) == [tmp_path / 'a.png', tmp_path / 'f.webp']
    assert lines == [f'{tmp_path}: 4 files are left out: b.gif, c.HEIC, d.txt, e.mp4']


def test_configs_by_path_and_by_name(trained, tmp_path):
    files = write_pictures(tmp_path / 'in') / 'colour.JPG'
    options = {'model.backbone.depths': (1, 1, 1, 1), 'model.bbox_head.num_classes': 3}
    name = NETWORKS['detector']
    configs = [trained['detector'].with_suffix('.py'), f'mmpatch::{name}', name.split('/')[1][:-3]]
    found = [
        mmpatch.predict(config, trained['detector'], files, cfg_options=options)
        for config in (None, *configs)
    ]
    assert found[0][0]['boxes'] and all(other == found[0] for other in found[1:])


def test_an_exported_backbone_finds_the_same(trained, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    size = {'test_dataloader.dataset.pipeline.1.scale': (64, 64)}
    whole = Predictor(None, trained['detector'], cfg_options=size)
    mmpatch.export(whole.model.backbone, tmp_path / 'a.pt2', input_size=(1, 3, 64, 64), dynamic=())
    new = {'_delete_': True, 'type': 'mmpatch.ExportedBackbone', 'file': str(tmp_path / 'a.pt2')}
    options = {**size, **{f'model.backbone.{key}': value for key, value in new.items()}}
    found = Predictor(None, trained['detector'], cfg_options=options)(picture)
    expected = whole(picture)
    assert len(found['boxes']) == len(expected['boxes']) > 20
    assert relative_error(torch.tensor(found['scores']), torch.tensor(expected['scores'])) < 1e-3
    content = torch.load(trained['detector'])
    state = content['state_dict']
    changes = {
        'backbone weights differ from those in': {'backbone.stem.conv.bias': torch.ones(8)},
        r'other\.pth lacks neck\.': {key: None for key in state if key.startswith('neck.')},
    }
    for message, change in changes.items():
        kept = {key: value for key, value in (state | change).items() if value is not None}
        torch.save({**content, 'state_dict': kept}, tmp_path / 'other.pth')
        with pytest.raises(ValueError, match=message):
            Predictor(None, tmp_path / 'other.pth', cfg_options=options)


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def wrong(trained, tmp_path_factory):
    """A folder of files with which predictions cannot start."""
    folder = tmp_path_factory.mktemp('wrong')
    content = torch.load(trained['detector'], weights_only=True)
    state, meta = content['state_dict'], content['meta']
    changes = {
        'no_classes': {'dataset_meta': {}},
        'few_classes': {'dataset_meta': {'classes': ('cat',)}},
        'no_config': {'cfg': None},
        'code': {'cfg': f'x = open({str(folder / "ran")!r}, "w")'},
        'import': {'cfg': f'import os\n{meta["cfg"]}'},
        'call': {'cfg': meta['cfg'].replace("'mmpatch.PoolFormer'", "'os.system'")},
        'norm': {
            'cfg': meta['cfg'].replace("type='mmpatch.P", "norm_cfg='os.system', type='mmpatch.P")
        },
        'other_host': {
            'cfg': meta['cfg'].replace("default_scope = 'mmdet'", "default_scope = 'b'")
        },
    }
    for name, change in changes.items():
        torch.save({'state_dict': state, 'meta': {**meta, **change}}, folder / f'{name}.pth')
    lacking = {key: value for key, value in state.items() if key != 'bbox_head.retina_reg.bias'}
    torch.save({'state_dict': lacking, 'meta': meta}, folder / 'lacking.pth')
    torch.save(state | {'bbox_head.retina_reg.bias': torch.zeros(3)}, folder / 'shape.pth')
    (folder / 'page.pth').write_text('<html>')
    cv2.imwrite(str(folder / 'photo.png'), np.zeros((64, 64, 3), np.uint8))
    (folder / 'empty').mkdir()
    return folder


def test_a_host_that_is_not_installed(trained, wrong, monkeypatch):
    for module in ('mmseg', 'mmseg.registry'):  # another test may have imported the second
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'^mmseg: .*; pip install mmpatch\[seg\]$'):
        mmpatch.predict(None, trained['segmentor'], wrong / 'photo.png')


MISTAKES = {
    'no photo': ('DET', 'none.jpg', r'there is no picture, folder or video .*none\.jpg'),
    'empty folder': ('DET', 'empty', r'folder .*empty has no pictures \(\.jpg .*'),
    'no checkpoint': ('none.pth', 'photo.png', r'checkpoint .*none\.pth does not exist'),
    'no file of weights': (
        'page.pth',
        'photo.png',
        r'.*page\.pth is not a checkpoint but a web .*',
    ),
    'no classes': (
        'no_classes.pth',
        'photo.png',
        r'.*no_classes\.pth names no classes: add .*metainfo\.classes=.*',
    ),
    'few classes': (
        'few_classes.pth',
        'photo.png',
        r'.*names 1 classes, but its network has 3: .*',
    ),
    'no config': ('no_config.pth', 'photo.png', r'.*holds no config .*; give the config, too'),
    'code': ('code.pth', 'photo.png', r'the config in .*code\.pth is not plain values .*'),
    'import': ('import.pth', 'photo.png', r'the config in .*import\.pth is not plain values .*'),
    'call': ('call.pth', 'photo.png', r"the config in .* has type='os\.system', no known class.*"),
    'call by a name': ('norm.pth', 'photo.png', r"'os\.system' is not registered.*"),
    'no host': ('other_host.pth', 'photo.png', r".*default_scope='b' must name a host, .*"),
    'lacking': ('lacking.pth', 'photo.png', r'.*does not fit .*lacks: bbox_head\.retina_reg\.bias'),
    'shape': (
        (
            'DET.py',
            'shape.pth',
            '--cfg-options',
            'test_dataloader.dataset.metainfo.classes=(a,b,c)',
        ),
        'photo.png',
        r'.*wrong shapes: bbox_head\.retina_reg\.bias: \(3,\) in the file.*',
    ),
    'other network': (('SEG.py', 'DET'), 'photo.png', r'.*does not fit this EncoderDecoder; .*'),
    'no such config': (
        ('none.py', 'DET'),
        'photo.png',
        r'there is no file .*none\.py, and mmpatch has no config .*',
    ),
    'option': (
        ('DET', '--cfg-options', 'model.backbone.arch=s99'),
        'photo.png',
        r".*no arch 's99'.*|.*'s99'.*",
    ),
    'argument': (
        ('DET', '--cfg-options', 'model.neck.colour=red'),
        'photo.png',
        r".*takes no argument 'colour'.*",
    ),
    'out': (('DET', '--out', 'photo.png'), 'photo.png', r'.*photo\.png is a file; .*'),
    'no device': (('DET', '--device', 'meta'), 'photo.png', r"device 'meta' cannot be used: .*"),
    'device': (('DET', '--device', 'cuda:99'), 'photo.png', r"device 'cuda:99' cannot be used: .*"),
    'slice': (('DET', '--slice', '8'), 'photo.png', r'slice=8 is less than the stride .*, 32'),
    'typo of an option': (
        ('DET', '--cfg-options', 'modle.test_cfg.max_per_img=1'),
        'photo.png',
        r'--cfg-options modle\.test_cfg\.max_per_img: .*no such setting; did you mean model\?',
    ),
    'score': (('DET', '--score-thr', '30'), 'photo.png', r'score_thr=30\.0 is no score: .*'),
    'out of reach': (('DET', '--out', '/proc/none'), 'photo.png', r".*'/proc/none'"),
    'overlap': (
        ('DET', '--overlap', '.95'),
        'photo.png',
        r'overlap=0\.95 is not a share .* 0\.9',
    ),
}


@pytest.mark.parametrize(
    ('kind', 'is_known'),
    [
        ('mmpatch.PoolFormer', True),
        ('mmpatch.backbones.PoolFormer', True),  # of a config that imports its classes
        ('mmdet.models.RetinaNet', True),
        ('mmpatch.backbones.Registry', False),
        ('mmpatch.backbones.metaformer.partial', False),
        ('torch.nn.PoolFormer', False),
        ('nowhere.PoolFormer', False),
        ('RetinaNet', True),
        ('nms', True),  # an op
        ('Pretrained', True),
        ('this', False),  # a module
    ],
)
def test_stored_configs_name_registered_classes(kind, is_known):
    import_host(Config({'default_scope': 'mmdet'}), 'a.pth')
    context = nullcontext() if is_known else pytest.raises(ValueError, match='no known class')
    with context:
        check_types({'model': {'type': kind}}, 'a.pth')


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_get_one_line(trained, wrong, monkeypatch, capsys, name):
    given, photo, message = MISTAKES[name]
    known = {'DET': trained['detector'], 'DET.py': trained['detector'].with_suffix('.py')}
    known['SEG.py'] = trained['segmentor'].with_suffix('.py')
    given = [given] if isinstance(given, str) else given
    named = ('.pth', '.py', '.png')
    given = [known.get(x, wrong / x if x.endswith(named) else x) for x in given]
    split = next((i for i, x in enumerate(given) if str(x).startswith('--')), len(given))
    arguments = [*given[:split], wrong / photo, *given[split:]]
    if '--out' not in arguments:
        arguments += ['--out', wrong / 'out']
    with pytest.raises(SystemExit) as stop:
        call_tool(monkeypatch, TOOL, *arguments)
    assert '\n' not in stop.value.code
    assert re.fullmatch(f'error: {message}', stop.value.code), stop.value.code
    assert not (wrong / 'out').exists() and not (wrong / 'ran').exists()
