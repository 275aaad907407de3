"""docs/own-data.md as a user follows it, from an empty folder, with fewer and smaller pictures."""

import re
import runpy

import pytest

import mmpatch  # noqa: F401, makes mmdet importable without compiled mmcv

from support import ROOT, run_tool

pytestmark = pytest.mark.hosts
PAGE = (ROOT / 'docs/own-data.md').read_text()
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
#: What makes the page's configs small; networks and schedules are not what is tested.
SMALL = """
model['backbone'] = dict(depths=(1, 1, 1, 1))
train_dataloader['batch_size'] = 2
train_cfg = dict({}=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
"""
LIMITS = {'shapes.py': 'max_epochs', 'regions.py': 'max_iters'}


def replace(text, *pairs):
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The files of the page, each under the name that was mentioned last before it."""
    import mmdet.utils
    import mmseg.utils

    mmdet.utils.register_all_modules(init_default_scope=False)
    mmseg.utils.register_all_modules(init_default_scope=False)
    result = tmp_path_factory.mktemp('user')
    for block in BLOCK.finditer(PAGE):
        if block[1] == 'python':
            name = re.findall(r'`(\w+\.py)`', PAGE[: block.start()])[-1]
            text = block[2]
            if name in LIMITS:
                text += SMALL.format(LIMITS[name])
            else:
                text = replace(text, ("'train': 240, 'val': 20", "'train': 6, 'val': 4"))
            (result / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(result)
        runpy.run_path('draw.py')
    return result


def list_commands():
    lines = [line for kind, text in BLOCK.findall(PAGE) if not kind for line in text.splitlines()]
    return [line for line in lines if line.startswith('mmpatch ')]


@pytest.fixture(scope='module')
def outputs(folder):
    """What the commands of the page print."""
    found = {}
    for command in list_commands():
        _, tool, *arguments = re.sub('epoch_20|iter_200', _name_first, command).split()
        script = f'tools/{tool}.py'
        if (ROOT / script).exists():
            found[command] = run_tool(script, *arguments, cwd=folder)
    return found


def _name_first(match):
    return f'{match[0].split("_")[0]}_1'


def test_the_page_has_five_commands_for_a_detector():
    detector = [line for line in list_commands() if 'regions' not in line]
    assert [line.split()[1] for line in detector] == ['train', 'test', 'predict']
    assert (
        'pip install -c CLONE/constraints.txt "CLONE[det,seg]"' in PAGE
        and '`python draw.py`' in PAGE
    )


def test_a_detector_learns_and_is_evaluated(folder, outputs):
    text = outputs['mmpatch train shapes.py']
    table = r'CocoDataset \(shapes/train\.json\): 6 images, \d+ objects: disc \d+, square \d+, tri'
    assert re.search(table, text) and 'Epoch(val) [1]' in text
    assert not re.findall('WARNING.*shapes/.*', text)  # nothing is dropped
    pictures = list((folder / 'work_dirs/shapes').glob('*/compared/*.jpg'))
    assert len(pictures) == 4


def test_a_segmentor_learns_and_is_evaluated(folder, outputs):
    text = outputs['mmpatch train regions.py']
    assert re.search(r'BaseSegDataset \(shapes/labels/train\): 6 images, pixels: ground \d+', text)
    assert len(list((folder / 'compared').rglob('*.png'))) == 4


@pytest.mark.skipif(not (ROOT / 'tools/predict.py').exists(), reason='tools/predict.py is not here')
def test_a_picture_is_predicted(folder, outputs):
    assert any(' predict ' in command for command in outputs)
    assert list((folder / 'found').rglob('003*')) and list((folder / 'found').glob('*.json'))


def test_the_line_on_what_there_is_to_learn(folder):
    """The numbers on the page are those of the whole set."""
    text = replace((folder / 'draw.py').read_text(), ("'train': 6, 'val': 4", "'train': 240"))
    draw = {}
    head, tail = text.split('\nfor split, count')
    exec(head, draw)  # the page's own functions
    import numpy as np

    counts = dict.fromkeys(draw['CLASSES'], 0)
    for k in range(240):
        for number, _ in draw['draw_scene'](np.random.default_rng([5, k]))[2]:
            counts[draw['CLASSES'][number - 1]] += 1
    listed = ', '.join(f'{name} {count}' for name, count in counts.items())
    assert f'240 images, {sum(counts.values())} objects: {listed}' in PAGE and tail
