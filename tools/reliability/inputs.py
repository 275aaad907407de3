"""Bad input: mutated checkpoints, annotations, pictures and configs, each read in its own process.

A try holds if it works as before or ends in one error that names the file, or the setting, and the
cause. Broken are: a process that dies or hangs, an error without the culprit, other numbers without
a word, weights that a failed load has changed, code that ran, and files outside the work dir.
"""

import hashlib
import http.server
import json
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.visualization import Visualizer
from torch import nn

from mmpatch.compat.safe_load import download
from mmpatch.engine.build import build_model
from mmpatch.engine.classes import check_dataset_types, check_heads
from mmpatch.engine.data import check_dataset, check_paths
from mmpatch.engine.errors import report_errors
from mmpatch.engine.tool import make_parser, read_config
from reliability.child import make_data
from reliability.mutants import (
    Mutant,
    make_annotations,
    make_checkpoint,
    make_picture,
    mutate_config,
)
from reliability.report import Row

TOOLS = Path(__file__).parents[1]
SEED = 17
#: Seconds of CPU and of the clock, and bytes of memory above those of the parent.
CPU_SECONDS, SECONDS, MEMORY = 30, 60, 4 * 2**30
#: Largest difference that a number may have after a detour over another type: bfloat16's.
TOLERANCE = 2e-2

DETECTOR = """
_base_ = '{config}'
data_root = '{data}/'
model = dict(
    backbone=dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16)),
    neck=dict(in_channels=[16, 16, 16], out_channels=16, norm_cfg=dict(num_groups=4)),
    bbox_head=dict(
        in_channels=16, feat_channels=16, stacked_convs=1, norm_cfg=dict(num_groups=4)
    ),
)
own = dict(data_root=data_root)
train_dataloader = dict(batch_size=2, dataset=own)
val_dataloader = dict(batch_size=1, dataset=own)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=0.0))
param_scheduler = []
train_cfg = dict(max_epochs={epochs}, val_interval=9)
randomness = dict(seed=0)
"""
SEGMENTOR = """
_base_ = '{config}'
data_root = '{data}/'
model = dict(
    backbone=dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16)),
    neck=dict(in_channels=[8, 16, 16, 16], out_channels=16),
    decode_head=dict(
        in_channels=[16] * 4, channels=16, norm_cfg=dict(num_groups=4)
    ),
)
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=1, val_interval=9)
randomness = dict(seed=0)
"""


# --- a process for each try -----------------------------------------------------------------------


@dataclass(frozen=True)
class Try:
    """What became of one try.

    Attributes:
        status: 'ran', 'line' for one line of a tool, 'error' or 'died'.
        text: The error, or what ran.
        log: All that was printed.
    """

    status: str
    text: str
    log: str


def run_apart(folder: Path, action: Callable[[], str]) -> Try:
    """Do something in a copy of this process, with limits, in the folder ``work`` of a folder."""
    answer, log, work = folder / 'answer', folder / 'log', folder / 'work'
    answer.unlink(missing_ok=True)
    subprocess.run(['rm', '-rf', str(work)], check=True)
    work.mkdir()
    child = os.fork()
    if not child:
        try:
            os.setsid()
            _run_child(answer, log, work, action)
        finally:
            os._exit(1)
    end = time.monotonic() + SECONDS
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.003)
    text = log.read_text(errors='replace')
    status = os.waitstatus_to_exitcode(done[1])
    if status or not answer.is_file():
        return Try('died', f'status {status} {text[-300:]}', text)
    return Try(*json.loads(answer.read_text()), text)


def _run_child(answer: Path, log: Path, work: Path, action: Callable[[], str]) -> None:
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')
    os.chdir(work)
    for kind in (MMLogger, Visualizer):
        kind._instance_dict.clear()
    try:
        result = 'ran', action()
    except SystemExit as end:
        result = 'line', str(end.code)
    except BaseException as error:
        traceback.print_exc()
        result = 'error', f'{type(error).__name__}: {error}'
    sys.stdout.flush()
    sys.stderr.flush()
    answer.write_text(json.dumps(result))
    os._exit(0)


class Judge:
    """Counts tries, and says which promises they broke."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ends: dict[str, Counter[str]] = {}
        self.tried: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.start = self._list_files()

    def _list_files(self) -> dict[str, int]:
        """Files outside of ``work``, with their sizes."""
        own = {'work', 'input', 'answer', 'log', 'tmp', 'hub'}
        return {
            str(path): path.lstat().st_size
            for top in self.folder.iterdir()
            if top.name not in own
            for path in [top, *top.rglob('*')]
            if not path.is_dir()
        }

    def count(self, group: str, name: str, end: str, why: str = '') -> None:
        """Add a try; ``why`` says what it broke."""
        written = {k for k, v in self._list_files().items() if self.start.get(k) != v}
        why = why or (f'wrote {written}' if written else '')
        self.tried[group] += 1
        self.held[group] += not why
        self.ends.setdefault(group, Counter())[end if not why else 'broken'] += 1
        if why:
            print(f'  {group}: {name}: {" ".join(why.split())[:400]}', file=sys.stderr)

    def make_row(self, group: str, promise: str, fault: str) -> Row:
        """The row of a group."""
        ends = ', '.join(f'{count} {end}' for end, count in self.ends[group].most_common())
        return Row(promise, fault, self.tried[group], self.held[group], ends)


def run_tool(name: str, *arguments: str) -> str:
    """Run a tool of this project in this process."""
    Config.pretty_text = ''  # formatted three times, which takes a second
    os.environ |= {'MMPATCH_KEEP_HEAP': '0', 'LOCAL_RANK': '0'}
    sys.argv = [name, *arguments]
    runpy.run_path(str(TOOLS / f'{name}.py'), run_name='__main__')
    return ''


def show_progress(what: str, i: int, tries: range) -> None:
    if i % 20 == 0:
        print(f'  {what}: {i} of {tries.stop}', file=sys.stderr)


# --- data and networks ----------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Make pictures, configs, and a checkpoint of a training of one epoch."""
    for name in ('work', 'input', 'tmp', 'hub', 'home'):
        (folder / name).mkdir()
    os.environ |= {'TORCH_HOME': str(folder / 'hub'), 'MMENGINE_HOME': str(folder / 'home')}
    os.environ |= {'TMPDIR': str(folder / 'tmp'), 'OMP_NUM_THREADS': '1'}
    torch.set_num_threads(1)
    make_data(folder / 'toy', 2, 1)
    configs = TOOLS.parent / 'configs/demo'
    files = {
        'detector': (DETECTOR, 'retinanet_poolformer-nano_fpn_toy-coco.py', 'coco', 1),
        'resumed': (DETECTOR, 'retinanet_poolformer-nano_fpn_toy-coco.py', 'coco', 2),
        'segmentor': (SEGMENTOR, 'fpn_poolformer-nano_toy-ade20k.py', 'ade', 1),
    }
    for name, (text, config, data, epochs) in files.items():
        filled = text.format(config=configs / config, data=folder / 'toy' / data, epochs=epochs)
        file = folder / f'{name}-short.py'
        file.write_text(filled)
        Config.fromfile(file).dump(folder / f'{name}.py')
        file.unlink()
    import mmdet.utils
    import mmseg.utils

    mmdet.utils.register_all_modules(init_default_scope=False)
    mmseg.utils.register_all_modules(init_default_scope=False)
    trained = run_apart(
        folder, lambda: run_tool('train', str(folder / 'detector.py'), '--work-dir', 'out')
    )
    if trained.status != 'ran':
        raise RuntimeError(f'no training: {trained.text}\n{trained.log[-2000:]}')
    (folder / 'work/out/epoch_1.pth').rename(folder / 'good.pth')


# --- checkpoints ----------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves a file on this machine; each of the ``ends`` cuts an answer off, at that byte."""

    def __init__(self, file: Path) -> None:
        self.file, self.tag = file, '"1"'
        self.ends: list[int] = []
        super().__init__(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server_port}'


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every address with the same file."""

    server: Server

    def do_GET(self) -> None:
        """Send the file."""
        data, start = self.server.file.read_bytes(), 0
        if self.server.tag and self.headers['If-Range'] == self.server.tag:
            start = int(self.headers['Range'].strip('bytes=-'))
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(data) - start))
        self.send_header('ETag', self.server.tag)
        self.end_headers()
        end = self.server.ends.pop() if self.server.ends else len(data)
        self.wfile.write(data[start : max(start, end)])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


PAVI = """
import pathlib
class Model:
    name = 'model.pth'
    def download(self, file):
        pathlib.Path(file).write_bytes(pathlib.Path({file!r}).read_bytes())
class modelcloud:
    get = staticmethod(lambda name: Model())
"""
PETREL = """
import pathlib
class Client:
    def __init__(self, *args, **kwargs): pass
    def Get(self, name, *args, **kwargs): return pathlib.Path({file!r}).read_bytes()
"""
SCHEMES = (
    *('torchvision://net', 'modelzoo://net', 'mmcls://net', 'open-mmlab://net', 'openmmlab://net'),
    *('openmmlab://local', 'pavi://net', 's3://net/x.pth', 'petrel://net/x.pth'),
)


def enter_zoo(folder: Path, file: Path, url: str) -> None:
    """Let every scheme of MMEngine lead to a file: by its tables, and clients of its storages."""
    (folder / 'home/open_mmlab.json').write_text(json.dumps({'net': url, 'local': str(file)}))
    for table in ('get_torchvision_models', 'get_mmcls_models'):
        setattr(mmengine_checkpoint, table, lambda: {'net': url})
    modules = folder / 'modules'
    for name, text in {'pavi.py': PAVI, 'petrel_client/client.py': PETREL}.items():
        (modules / name).parent.mkdir(exist_ok=True, parents=True)
        (modules / name).write_text(text.format(file=str(file)))
    (modules / 'petrel_client/__init__.py').touch()
    sys.path.insert(0, str(modules))


def compare(state: Any, good: dict[str, torch.Tensor], log: str) -> str:
    """What is wrong with loaded weights: numbers that are not the file's, and not warned of."""
    wrong = [
        key
        for key, value in good.items()
        if not torch.allclose(state[key].float(), value.float(), TOLERANCE, TOLERANCE)
        and key not in log
    ]
    return f'other numbers in {len(wrong)} tensors: {wrong[:3]}' if wrong else 'same'


class Loads:
    """The ways that a checkpoint takes into a model. Each returns what became of the weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        cfg = Config.fromfile(folder / 'detector.py')
        self.good = torch.load(folder / 'good.pth', weights_only=True)['state_dict']
        self.model: nn.Module = build_model(cfg)
        self.backbone: Any = MODELS.build(cfg.model.backbone)
        self.picture = next((folder / 'toy/coco/val2017').iterdir())

    def load_backbone(self, source: str) -> str:
        """``init_cfg`` of a backbone; nothing changes if it fails."""
        model = self.backbone
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.init_cfg = {'type': 'Pretrained', 'checkpoint': source}
        model._is_init = False
        try:
            model.init_weights()
        except BaseException:
            after = model.state_dict()
            if not all(torch.equal(value, after[key]) for key, value in before.items()):
                sys.exit('partly loaded')
            raise
        names = [key for key in before if not key.startswith('out_norms')]
        return compare(model.state_dict(), {k: self.good[f'backbone.{k}'] for k in names}, '')

    def load_runner(self, source: str) -> str:
        """``Runner.load_checkpoint`` of MMEngine, which warns of what does not fit."""
        runner: Any = type('Some', (), {'model': self.model, 'logger': MMLogger('a')})()
        runner.call_hook = lambda *_, **__: None
        before = {key: value.clone() for key, value in self.model.state_dict().items()}
        try:
            Runner.load_checkpoint(runner, source)
        except BaseException:
            after = self.model.state_dict()
            if not all(torch.equal(value, after[key]) for key, value in before.items()):
                sys.exit('partly loaded')
            raise
        return self._compare(self.model)

    def run_tool(self, name: str, *arguments: str) -> str:
        """A tool, up to its first output of a model."""
        seen: list[nn.Module] = []

        def see(module: nn.Module, _: Any) -> None:
            if hasattr(module, 'bbox_head'):
                seen.append(module)

        nn.modules.module.register_module_forward_pre_hook(see)
        run_tool(name, *arguments)
        return self._compare(seen[0])

    def _compare(self, model: nn.Module) -> str:
        sys.stderr.flush()
        sys.stdout.flush()
        log = (self.folder / 'log').read_text(errors='replace')
        return compare(model.state_dict(), self.good, log)

    def list_routes(self, file: Path, url: str) -> dict[str, Callable[[], str]]:
        """Name of a route -> what goes there."""
        config, path = str(self.folder / 'detector.py'), str(file)
        tool = self.run_tool
        return {
            'init_cfg': partial(self.load_backbone, path),
            'Runner.load_checkpoint': partial(self.load_runner, path),
            'load_from': partial(tool, 'train', config, '--cfg-options', f'load_from={path}'),
            'resume': partial(tool, 'train', str(self.folder / 'resumed.py'), '--resume', path),
            'test': partial(tool, 'test', config, path),
            'predict': partial(tool, 'predict', config, path, str(self.picture)),
            'predict alone': partial(tool, 'predict', path, str(self.picture)),
            'http': partial(self.load_backbone, url),
            **{scheme: partial(self.load_backbone, scheme) for scheme in SCHEMES},
        }


def check_checkpoints(folder: Path, tries: range) -> Iterator[Row]:
    """Read mutants of a checkpoint on all routes."""
    content = torch.load(folder / 'good.pth', weights_only=True)
    loads = Loads(folder)
    server = Server(folder / 'good.pth')
    enter_zoo(folder, folder / 'input/net.pth', f'{server.url}/net.pth')
    judge = Judge(folder)
    canary = folder / 'canary'
    for i in tries:
        show_progress('checkpoints', i, tries)
        mutant = make_checkpoint(SEED, i, content, str(canary))
        file = folder / f'input/bad{mutant.suffix}'
        file.write_bytes(mutant.data)
        (folder / 'input/net.pth').write_bytes(mutant.data)
        server.file = file
        subprocess.run(['rm', '-rf', str(folder / 'hub/hub')], check=True)
        routes = loads.list_routes(file, f'{server.url}/net{mutant.suffix}')
        route = random.Random(f'{SEED} route {i}').choice([*['init_cfg'] * 4, *routes])
        action = routes[route]
        result = run_apart(folder, action)
        end, why = judge_load(mutant, route, result, file)
        if canary.exists():
            end, why = 'ran code', 'code ran'
            subprocess.run(['rm', '-rf', str(canary)], check=True)
        judge.count(mutant.group, f'{i} {mutant.name} by {route}', end, why)
        file.unlink()
    texts = {
        'bytes': 'files cut off, bytes flipped, cleared, inserted, swapped, overwritten',
        'structure': 'lists for dicts, other keys, cycles, junk; tensors renamed, lost, reshaped',
        'tensors': 'int, bool, complex, float8, sparse, meta, quantised, nested, expanded, NaN',
        'records': 'other pickles and bombs in archives with right checksums',
        'code': 'pickles that call functions, in every format',
    }
    for group, text in texts.items():
        promise = 'A bad checkpoint works as before or is one error that names it'
        if group == 'code':
            promise = 'A checkpoint runs no code, whatever way it comes'
        yield judge.make_row(group, promise, f'{text} (seed {SEED}, {len(routes)} routes)')


def check_downloads(folder: Path, tries: range) -> Iterator[Row]:
    """Download from a server whose answers break off."""
    server, judge = Server(folder / 'good.pth'), Judge(folder)
    data = server.file.read_bytes()
    for i in tries:
        rng = random.Random(f'{SEED} {i}')
        ends = sorted(rng.randrange(len(data)) for _ in range(rng.randint(1, 6)))
        server.ends, server.tag = ends[::-1], rng.choice(['"1"', ''])
        sha256 = hashlib.sha256(data).hexdigest() if rng.random() < 0.5 else None
        target = folder / f'hub/{i}'
        try:
            path = download(f'{server.url}/net.pth', str(target), False, sha256)
            end, why = 'whole', '' if path.read_bytes() == data else 'another file was kept'
        except OSError as error:
            end, why = 'refused by name', '' if server.url in str(error) else f'unnamed: {error}'
            why = why or 'half a file was kept' * bool([*target.iterdir()])
        judge.count('downloads', f'{i} {ends}', end, why)
    yield judge.make_row(
        'downloads',
        'A download that breaks off goes on or is one error; half a file is never kept',
        f'1 to 6 answers cut off at random bytes, with and without ETag (seed {SEED})',
    )


def judge_load(mutant: Mutant, route: str, result: Try, file: Path) -> tuple[str, str]:
    """How a load ended, and what it broke."""
    if result.status == 'died' or result.text == 'partly loaded':
        return 'died', f'{result.text}'
    if result.status == 'ran':
        if result.text == 'same':
            return 'as before', ''
        if mutant.is_silent:
            return 'with other numbers that nothing in the file tells from good ones', ''
        return 'silent', result.text
    names = (file.name, f'net{mutant.suffix}', 'net.pth', '://net', '://local')
    if not any(name in result.text for name in names):
        return 'unnamed', f'unnamed {result.status}: {result.text}'
    is_tool = route in ('load_from', 'resume', 'test', 'predict', 'predict alone')
    if is_tool and result.status != 'line':
        return 'traceback', f'traceback: {result.text}'
    return 'refused by name', ''


# --- annotations, label maps and pictures ---------------------------------------------------------


def read_batch(cfg: Config, model: nn.Module) -> str:
    """What tools/train.py checks before the first iteration, and the first batch."""
    init_default_scope(cfg.default_scope)
    with report_errors():
        splits = ('train',)
        check_paths(cfg, splits)
        check_dataset_types(cfg, splits)
        loader: Any = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        check_heads(model, loader.dataset)
        check_dataset(loader.dataset)
        batch = next(iter(loader))
    for sample, image in zip(batch['data_samples'], batch['inputs'], strict=True):
        size = tuple(image.shape[1:])
        if 'gt_sem_seg' in sample:
            labels = sample.gt_sem_seg.data
            if tuple(labels.shape[1:]) != size or not ((labels < 150) | (labels == 255)).all():
                return f'labels {labels.unique().tolist()} of {tuple(labels.shape)} for {size}'
            continue
        boxes, masks = sample.gt_instances.bboxes.tensor, sample.gt_instances.masks
        if not boxes.isfinite().all() or (sample.gt_instances.labels >= 80).any():
            return f'boxes {boxes.tolist()}'
        if len(masks) != len(boxes) or (masks.height, masks.width) != size:
            return f'{len(masks)} masks of {masks.height}x{masks.width} for {size}'
    return 'same'


def prepare_batches(folder: Path, name: str) -> tuple[Config, nn.Module]:
    """A config with the checks of the tools installed, and its model."""
    cfg = read_config(make_parser('').parse_args([str(folder / f'{name}.py')]), 'train')
    if name == 'detector':
        pipeline = cfg.train_dataloader.dataset.pipeline
        pipeline[1].with_mask = True
    return cfg, build_model(cfg)


def judge_batch(result: Try, file: Path) -> tuple[str, str]:
    """How reading of a batch ended, and what it broke."""
    if result.status == 'died' or (result.status == 'ran' and result.text != 'same'):
        return result.status, result.text
    if result.status == 'ran':
        return 'warned of' if 'WARNING' in result.log else 'read', ''
    if result.status == 'error':
        return 'traceback', f'traceback: {result.text}'
    # a file that others name, by its own name
    named = (file.name, 'names are missing', 'data pipeline failed on', 'in the annotations, so')
    is_named = any(name in result.text for name in named)
    return 'refused by name', '' if is_named else f'unnamed: {result.text}'


def check_annotations(folder: Path, tries: range) -> Iterator[Row]:
    """Read mutants of annotation files, pictures and label maps."""
    toy, judge, case = folder / 'toy', Judge(folder), None
    files = {
        'annotations': toy / 'coco/annotations/instances_train2017.json',
        'pictures': min((toy / 'coco/train2017').iterdir()),
        'label maps': min((toy / 'ade/annotations/training').iterdir()),
    }
    good = {group: file.read_bytes() for group, file in files.items()}
    content = json.loads(good['annotations'])
    # five eighths are annotations, one is pictures and two are label maps, in this order
    for i in tries:
        show_progress('data', i, tries)
        part = i * 8 // tries.stop
        group = 'annotations' if part < 5 else 'pictures' if part < 6 else 'label maps'
        if case is None or (group == 'label maps' and 'label maps' not in judge.tried):
            case = prepare_batches(folder, 'segmentor' if group == 'label maps' else 'detector')
        is_text = group == 'annotations'
        mutant = (
            make_annotations(SEED, i, content) if is_text else make_picture(SEED, i, good[group])
        )
        files[group].write_bytes(mutant.data)
        result = run_apart(folder, partial(read_batch, *case))
        files[group].write_bytes(good[group])
        judge.count(group, f'{i} {mutant.name}', *judge_batch(result, files[group]))
    promise = 'Bad data is read, warned of, or one error that names the file'
    for group, text in {
        'annotations': 'boxes, masks, ids, categories, types and bytes of COCO files',
        'pictures': 'bytes, modes, sizes and formats of pictures',
        'label maps': 'bytes, modes, sizes, formats and labels of label maps',
    }.items():
        yield judge.make_row(group, promise, f'{text} changed (seed {SEED})')


# --- configs --------------------------------------------------------------------------------------


def check_configs(folder: Path, tries: range) -> Iterator[Row]:
    """Train one iteration with mutants of two configs."""
    judge = Judge(folder)
    for i in tries:
        show_progress('configs', i, tries)
        rng = random.Random(f'{SEED} {i}')
        content = Config.fromfile(folder / f'{("detector", "segmentor")[i % 2]}.py').to_dict()
        key, way, words = mutate_config(rng, content)
        file = folder / 'input/bad.py'
        lines = (f'{name} = {value!r}' for name, value in content.items())
        file.write_text('nan, inf = float("nan"), float("inf")\n' + '\n'.join(lines) + '\n')
        result = run_apart(folder, partial(run_tool, 'train', str(file)))
        end, why = judge_config(result, words)
        judge.count('configs', f'{i} {way} {key}', end, why)
    yield judge.make_row(
        'configs',
        'A bad config trains, or is one error that names the setting',
        f'settings deleted, renamed, nested, of other types, values and scopes (seed {SEED})',
    )


def judge_config(result: Try, words: set[str]) -> tuple[str, str]:
    """How a training of one iteration ended, and what it broke."""
    if result.status == 'died':
        return 'died', result.text
    if result.status == 'ran':
        return 'trained', ''
    if result.status == 'error':
        return 'traceback', f'traceback: {result.text}'
    named = any(word in result.text for word in words)
    return 'refused by name', '' if named else f'unnamed: {result.text}'


def check(folder: Path, is_long: bool) -> Iterator[Row]:
    """Read bad files and say how each kind of them ended."""
    environment = dict(os.environ)
    try:
        prepare(folder)
        yield from check_checkpoints(folder, range(500 if is_long else 80))
        yield from check_downloads(folder, range(100 if is_long else 20))
        yield from check_annotations(folder, range(500 if is_long else 80))
        yield from check_configs(folder, range(200 if is_long else 32))
    finally:
        os.environ.clear()
        os.environ.update(environment)
