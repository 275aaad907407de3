"""The documents: their blocks run, links lead somewhere, messages and tables are those of now."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as HOST
from mmengine.registry import init_default_scope
from PIL import Image

import mmpatch  # makes the hosts importable without compiled mmcv
from mmpatch.command import TOOLS
from mmpatch.engine import check_model
from mmpatch.engine.build import build_model
from mmpatch.registry import MODELS

from support import ROOT, child_environment, run_tool

pytestmark = [pytest.mark.hosts, pytest.mark.process]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ('*.md', 'docs/*.md', 'configs/*/README.md')
    for page in ROOT.glob(pattern)
    if page.name != 'CHANGELOG.md'  # it names what is gone
)
#: Pages whose blocks make one story, and the tests that run them.
OTHER_TESTS = {'docs/own-data.md': 'tests/test_own_data.py'}
#: The page whose blocks in Python run exported files.
DEPLOY = 'docs/deploy.md'
FENCE = re.compile(r'^```(.*)\n((?:.*\n)*?)```$', re.MULTILINE)
BLOCKS = [
    (page, match[1], match[2])
    for page in PAGES
    if page not in OTHER_TESTS
    for match in FENCE.finditer((ROOT / page).read_text())
]
#: Starts of commands that no test runs from the page, and why not.
NOT_RUN = {
    'make ': 'they set up an environment, which takes minutes; CI runs `make test`',
    'pip ': 'changes the environment; test_wheel installs the wheel',
    'uv ': 'changes the environment',
    'python -m build': 'test_wheel builds it',
    **dict.fromkeys(
        ('torchrun ', 'tools/dist_', 'srun ', 'NNODES=', 'GPUS='),
        'starts eight processes or more; test_processes starts two',
    ),
    'python -m mmpatch reproduce fpn_': 'downloads a released model; test_reproduce makes its own',
    'python -m mmpatch reproduce retinanet': 'needs a released model; test_reproduce makes one',
    'python -m mmpatch convert model_final': 'needs a released file; test_whole makes one',
    'python -m mmpatch test configs/vit': 'needs that file',
    'python -m mmpatch visualize weights mmpatch': 'needs a released file; test_visualize draws',
    'python -m mmpatch run mmseg': 'needs a trained segmentor; test_comfort runs it',
    'python tools/ablate.py': 'lists and trains for minutes; test_ablation does both on its own',
    'python tools/analysis/benchmark': 'takes an hour; test_benchmark writes the tables',
    'python tools/analysis/growth': 'measures for minutes',
    'python tools/analysis/startup': 'measures for minutes',
}
DETECTOR = 'configs/demo/retinanet_poolformer-nano_fpn_toy-coco.py'
SEGMENTOR = 'poolformer/fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py'
#: What makes a command short, each with the words in the command that ask for it.
TINY = {
    '': 'train_dataloader.num_workers=0 train_dataloader.persistent_workers=False '
    'train_dataloader.batch_size=2 val_dataloader.num_workers=0 '
    'val_dataloader.persistent_workers=False test_dataloader.num_workers=0 '
    'test_dataloader.persistent_workers=False train_dataloader.dataset.indices=2 '
    'val_dataloader.dataset.indices=2 test_dataloader.dataset.indices=2 '
    'default_hooks.checkpoint.interval=1',
    'configs/poolformer': 'model.backbone.init_cfg=None model.backbone.depths="(1,1,1,1)"',
    'retinanet|CONFIG': 'train_cfg.max_epochs=1 train_cfg.val_interval=1 '
    'train_dataloader.dataset.pipeline.2.scale="(96,80)" '
    'val_dataloader.dataset.pipeline.1.scale="(96,80)" '
    'test_dataloader.dataset.pipeline.1.scale="(96,80)"',
    'ade20k': 'train_cfg.max_iters=1 train_cfg.val_interval=1',
}


def name_blocks(language):
    """Blocks in a language with the ids of their tests: page and number."""
    count = dict.fromkeys(PAGES, 0)
    for page, of, text in BLOCKS:
        count[page] += 1
        if of == language and (page, of) != (DEPLOY, 'python'):
            yield pytest.param(text, id=f'{page}:{count[page]}')


# --- blocks in Python -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def workspace(toy, tmp_path_factory):
    """A folder as a clone has it, with small data where the configs look for COCO and ADE20K."""
    folder = tmp_path_factory.mktemp('workspace')
    for name in ('tools', 'configs', 'docs', 'model-index.yml'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'data/ade').mkdir(parents=True)
    shutil.copytree(toy, folder / 'data/toy')
    (folder / 'data/coco').symlink_to(toy / 'coco')
    (folder / 'data/ade/ADEChallengeData2016').symlink_to(toy / 'ade')
    (folder / 'photos').mkdir()
    for name in ('photo.jpg', 'photos/a.jpg'):
        shutil.copy(next((toy / 'coco/val2017').glob('*.jpg')), folder / name)
    return folder


def make_detector(**backbone):
    """Config and model of a detector with random weights."""
    from mmdet.datasets import CocoDataset

    cfg = Config.fromfile(ROOT / DETECTOR)
    cfg.model.backbone.update(backbone)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.dataset_meta = CocoDataset.METAINFO
    return cfg, model


def save_detector(cfg, model, file):
    """A checkpoint as training would write it."""
    meta = {'cfg': cfg.pretty_text, 'dataset_meta': {'classes': model.dataset_meta['classes']}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, file)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    file = tmp_path_factory.mktemp('trained') / 'model.pth'
    save_detector(*make_detector(), file)
    return file


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """Files without a config: of a detector, without classes, and of a segmentor, with mmseg's."""
    from mmseg.datasets import ADE20KDataset

    folder = tmp_path_factory.mktemp('released')
    torch.save(make_detector()[1].state_dict(), folder / 'detector.pth')
    model = build_model(Config.fromfile(mmpatch.config_path(SEGMENTOR)))
    meta = {name.upper(): value for name, value in ADE20KDataset.METAINFO.items()}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'segmentor.pth')
    return folder


@pytest.mark.parametrize('text', name_blocks('python'))
def test_python_block(text, workspace, checkpoint, released, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    text = text.replace("'FILE'", repr(str(released / 'detector.pth')))
    MODELS.import_from_location()
    # what a block registers is gone after it
    monkeypatch.setattr(MODELS, '_module_dict', dict(MODELS.module_dict))
    if re.match(r'_base_ =|model =|backbone =|optim_wrapper =|custom_imports =', text):
        check_config(text, tmp_path / 'config.py')
        return
    text = re.sub(
        r"config_path\('.*'\)", f"config_path('{DETECTOR.removeprefix('configs/')}')", text
    )
    text = text.replace("'retinanet_poolformer-s12_fpn_1x_coco'", repr(Path(DETECTOR).stem))
    text = text.replace('CHECKPOINT', str(checkpoint)).replace('PHOTO', 'photo.jpg')
    with torch.no_grad():
        exec(compile(text, 'block', 'exec'), {'__name__': 'block'})


@pytest.mark.skipif(torch.__version__.startswith('2.6.'), reason='writes no detectors to ONNX')
def test_exported_files_in_a_program_of_ones_own(workspace, tmp_path, monkeypatch):
    """Both engines find what mmpatch.predict finds."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(workspace / 'photo.jpg', tmp_path)
    cfg, model = make_detector(depths=(1, 1, 1, 1))
    save_detector(cfg, model, 'model.pth')
    (expected,) = mmpatch.predict(None, 'model.pth', 'photo.jpg')
    width, height = Image.open('photo.jpg').size
    ratio = min(max(cfg.scale) / max(width, height), min(cfg.scale) / min(width, height))
    size = (1, 3, round(height * ratio), round(width * ratio))
    for name in ('detector.onnx', 'detector.xml'):
        mmpatch.export(model, name, input_size=size, dynamic=())  # free sizes take a minute
    onnx, xml = (text for page, of, text in BLOCKS if (page, of) == (DEPLOY, 'python'))
    for old, new in zip(('1333', '800', 'PHOTO'), (*map(str, cfg.scale), 'photo.jpg'), strict=True):
        onnx = onnx.replace(old, new)
    program = {}
    exec(onnx, program)
    exec(xml, program)
    count = len(expected['scores'])
    assert count > 20
    found = [program[name] for name in ('boxes', 'scores', 'labels')]
    others = [out[0] for out in program['run'](program['image']).values()]
    for boxes, scores, labels in (found, others):
        assert (scores > 0.3).sum() == count
        np.testing.assert_allclose(scores[:count], expected['scores'], atol=1e-3)
        assert (labels[:count] == expected['labels']).mean() > 0.9  # equal scores change places
        near = np.abs(boxes[:count] / program['scale'] - expected['boxes']).max(1) < 1
        assert near.mean() > 0.9


def check_config(text, file):
    """Build what a config says, without weights."""
    file.write_text(text)
    cfg = Config.fromfile(file)
    if '_base_' in text:
        check_model(cfg.model, cfg.default_scope)
        with torch.device('meta'):
            build_model(cfg)
        return
    model = cfg.get('model') or {'backbone': cfg.get('backbone'), 'neck': []}
    necks = model['neck'] if isinstance(model['neck'], list) else [model['neck']]
    importlib.import_module('mmdet.models')
    init_default_scope('mmdet')
    for part in filter(None, (model['backbone'], *necks)):
        with torch.device('meta'):
            HOST.build({key: value for key, value in part.items() if key != '_delete_'})
    if 'optim_wrapper' in cfg:
        backbone = MODELS.build({'type': 'mmpatch.PoolFormer', 'depths': (1, 1, 1, 1)})
        optimizer = {'type': 'SGD', 'lr': 1.0, 'weight_decay': 0.1}
        holder = torch.nn.ModuleDict({'backbone': backbone})
        build_optim_wrapper(holder, {**cfg.optim_wrapper, 'optimizer': optimizer})


# --- commands -------------------------------------------------------------------------------------


def list_commands(text):
    """Commands of a block, each on one line."""
    lines = text.replace('\\\n', ' ').splitlines()
    lines = (re.sub(r'\s+', ' ', line.split(' #')[0]).strip() for line in lines)
    lines = (line.removeprefix('.venv/bin/') for line in lines if line and line[0] != '#')
    return [f'python -m {line}' if line.startswith('mmpatch ') else line for line in lines]


def is_run(command):
    return not command.startswith(tuple(NOT_RUN))


def shrink(command, toy, checkpoint, released):
    """A command with small data and few steps, as a list."""
    settings = {}
    for asks, values in TINY.items():
        if re.search(asks, command):
            settings |= dict(value.split('=') for value in shlex.split(values))
    if 'ExportedBackbone' in command:
        settings = {k: v for k, v in settings.items() if not k.startswith('model.backbone')}
    for word, value in {
        'CONFIG': DETECTOR,
        'CHECKPOINT': checkpoint,
        'FILE': released / 'segmentor.pth',
        'FOLDER': toy / ('ade' if 'ade20k' in command else 'coco'),
        'TOOL': Path(find_spec('mmdet').origin).parent / '.mim/tools/misc/print_config.py',
        'ARGS': DETECTOR,
    }.items():
        command = re.sub(rf'\b{word}\b', str(value), command)
    words = [re.sub(r'epoch_\d+', 'epoch_1', word) for word in shlex.split(command)]
    if 'make_toy_data' in command:
        return [*words, '--train', '4', '--val', '2']
    tool = re.match(r'python -m mmpatch (train|test|export)\b', command)
    if not tool:
        return words
    words = [word for word in words if word.split('=')[0] not in settings]
    words += ['--input-size', '1', '64', '96'] if tool[1] == 'export' else []
    at = words.index('--cfg-options') + 1 if '--cfg-options' in words else len(words)
    start = [] if '--cfg-options' in words else ['--cfg-options']
    return [*words[:at], *start, *(f'{k}={v}' for k, v in settings.items()), *words[at:]]


def list_shell_blocks():
    """Page and commands of each block; what stands in a longer block, too, is left to that."""
    found = [
        (page, [command for command in list_commands(text) if is_run(command)])
        for page, language, text in BLOCKS
        if language == 'bash'
    ]
    texts = ['\n'.join(commands) for _, commands in found]
    for i, (page, commands) in enumerate(found):
        longer = [text for text in texts if texts[i] in text and texts[i] != text]
        if commands and not longer and texts.index(texts[i]) == i:
            yield pytest.param(commands, id=f'{page}: {commands[0][:40]}')


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A cache of torch's hub that has a file in the place of a published one."""
    from mmpatch.backbones import PoolFormer
    from mmpatch.compat.safe_load import cached_name

    cache = tmp_path_factory.mktemp('cache')
    (cache / 'hub/checkpoints').mkdir(parents=True)
    url = PoolFormer.PUBLISHED['poolformer-s12_in1k'].url
    file = cache / 'hub/checkpoints' / cached_name(url)
    torch.save(PoolFormer('s12').state_dict(), file)
    return cache


@pytest.mark.parametrize('commands', list_shell_blocks())
def test_commands(commands, workspace, toy, checkpoint, released, published):
    for command in commands:
        words = shrink(command, toy, checkpoint, released)
        assert words[0] == 'python', command
        run_tool(*words[1:], cwd=workspace, env={'TORCH_HOME': str(published)})


def test_notebook(workspace, published, tmp_path):
    """The cells run one after the other in one namespace."""
    notebook = json.loads((ROOT / 'examples/first_steps.ipynb').read_text())
    cells = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    text = '\n\n'.join(''.join(cell['source']) for cell in cells)
    (tmp_path / 'cells.py').write_text(text)
    environment = {'TORCH_HOME': str(published)}
    text = run_tool(tmp_path / 'cells.py', cwd=workspace, env=environment)
    assert 'largest difference' in text


def test_commands_that_are_not_run_are_on_the_pages():
    """The list of exceptions is no longer than it must be, and every block says what it is."""
    commands = [c for _, of, text in BLOCKS if of == 'bash' for c in list_commands(text)]
    assert not [start for start in NOT_RUN if not any(c.startswith(start) for c in commands)]
    assert {language for _, language, _ in BLOCKS} <= {'python', 'bash', 'text', ''}
    plain = [(page, text) for page, language, text in BLOCKS if not language]
    assert not [block for block in plain if re.search(r'\bpython |pip |import ', block[1])]


# --- links, names, messages -----------------------------------------------------------------------


def list_anchors(page):
    """Anchors of a page's headings, as both hosts of pages make them."""
    text = FENCE.sub('', page.read_text())
    names = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    return {re.sub(r'\s+', '-', re.sub(r'[^\w\s-]', '', name.lower()).strip()) for name in names}


@pytest.mark.parametrize('page', PAGES)
def test_links_and_paths(page):
    text = FENCE.sub('', (ROOT / page).read_text())
    folder = (ROOT / page).parent
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith(('http://', 'https://')):
            continue
        file, _, anchor = target.partition('#')
        path = folder / file if file else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in list_anchors(path), target
    for path in re.findall(r'`((?:configs|docs|examples|mmpatch|tests|tools)/[\w./-]+)`', text):
        assert (ROOT / path).exists() or path.isupper() or 'FAMILY' in path, path


def list_strings(folder):
    """String literals of the code in a folder, with … for what an f-string fills in."""
    for file in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else '…' for v in node.values)
                yield ''.join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_pages_write_commands_where_there_are_some():
    rows = {f'| `mmpatch {name}` | `tools/{file}` |' for name, (file, _) in TOOLS.items()}
    table = (ROOT / 'docs/install.md').read_text()
    assert not [row for row in rows if row not in table]
    files = '|'.join(re.escape(file) for file, _ in TOOLS.values())
    pages = {page: (ROOT / page).read_text() for page in PAGES}
    assert not [page for page, text in pages.items() if re.search(rf'python tools/({files})', text)]


def test_messages_are_those_of_the_code():
    """Each heading of the troubleshooting page can be searched for."""
    page = (ROOT / 'docs/troubleshooting.md').read_text()
    messages = re.findall(r'^### `(.+)`$', page, re.MULTILINE)
    folders = [ROOT / 'mmpatch', Path(find_spec('mmengine').origin).parent / 'config']
    strings = [text for folder in folders for text in list_strings(folder)]
    # of Python, torch and mmcv
    strings += ["No module named 'mmcv._ext'", 'CUDA out of memory', 'input must be contiguous']
    for message in messages:
        parts = [part.strip() for part in message.split('…') if part.strip()]
        assert [s for s in strings if all(part in s for part in parts)], message
    assert len(messages) > 20


def test_tables_of_backbones_are_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/analysis')
    text = importlib.import_module('compare_configs').make_tables()
    assert text.strip() in (ROOT / 'docs/backbones.md').read_text()


def test_the_site_builds_without_a_warning(tmp_path):
    """Without a network: nothing is fetched, and the pages load nothing from elsewhere."""
    site = tmp_path / 'site'
    result = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', site],
        cwd=ROOT,
        env={**child_environment(), 'NO_MKDOCS_2_WARNING': 'true', 'https_proxy': 'localhost:9'},
        capture_output=True,
        text=True,
    )
    assert not result.returncode and not result.stderr, result.stderr
    text = (site / 'api.html').read_text()
    assert 'token_mixers' in text and not re.search(r':(func|class|meth|mod|attr|data):', text)
    for page in site.rglob('*.html'):
        prose = re.sub(r'<pre.*?</pre>', '', page.read_text(), flags=re.DOTALL)
        assert '\n- ' not in prose, f'{page}: a list needs an empty line before it'
        for address in re.findall(
            r'<(?:script|link|img)\b[^>]*?(?:src|href)="([^"]+)"', page.read_text()
        ):
            assert not address.startswith(('http:', 'https:', '//')), (page, address)
