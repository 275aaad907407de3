"""Many processes on a CPU, over gloo: they train and evaluate as one process does, and end as one.

Ranks are real processes that run tools/train.py and tools/test.py. Most are forked from a process
that has imported the hosts, with the variables that their launcher would set. The scripts in
``tools`` are run as well; the cluster of Slurm is a fake one, of this machine.
"""

import json
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations, product
from pathlib import Path
from typing import Any

import check_matrix
import mmdet.utils
import mmseg.utils
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mmpatch
from mmpatch.backbones import PoolFormer
from mmpatch.engine.data import replace_data_root
from mmpatch.engine.tool import RANKS
from reliability.child import make_data, run_script
from reliability.report import Row

TOOLS = Path(__file__).parents[1]
SEGMENTOR = 'demo/fpn_poolformer-nano_toy-ade20k.py'
DETECTOR = 'demo/retinanet_poolformer-nano_fpn_toy-coco.py'
SERVER = multiprocessing.get_context('forkserver')
PRELOADED = ['mmpatch.backbones', 'mmdet.apis', 'mmseg.apis', 'mmdet.evaluation', 'check_matrix']
SCRIPTS = 'dist_test.sh', 'slurm_test.sh'
LIMIT = 300  # seconds that a run may take
TOLERANCE = 1e-5
#: Training pictures, and those that the ranks take together in one of five steps.
PICTURES, BATCH = 20, 4
SIDE = 64
DIMS = [8, 16, 24, 32]
#: Programs of a cluster that consists of this machine.
SRUN = """#!/usr/bin/env bash
# starts the tasks of a job, and ends all if one fails
echo "$@" > "$(dirname "$0")/srun.txt"
while [ "${1:0:1}" = - ]; do
    case $1 in -p) shift ;; --ntasks=*) export SLURM_NTASKS=${1#*=} ;; esac
    shift
done
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_NODELIST=localhost SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
done
for ((i = 0; i < SLURM_NTASKS; i++)); do wait -n || { kill $(jobs -p); exit 1; }; done
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1 $2 $3" = "show hostnames localhost" ] && echo 127.0.0.1
"""


@HOOKS.register_module()
class RankRecorder(Hook):
    """Saves what a rank is trained on and its weights at the end, as ``rankN.pt``.

    Args:
        kill: Rank that sends itself SIGKILL, and the iteration at whose start, from 0.
    """

    def __init__(self, kill: Sequence[int] = ()) -> None:
        self.kill = list(kill)
        self.seen: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Remember the weights that training starts from, and the process."""
        Path(runner.work_dir, f'pid{runner.rank}').write_text(f'{os.getpid()}')
        self.first = deepcopy(self._get_weights(runner))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Record the pictures of a batch, and perhaps die."""
        self.seen += data_batch['inputs']
        if self.kill == [runner.rank, runner.iter]:
            Path(runner.work_dir, 'killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def after_train(self, runner: Runner) -> None:
        """Save both."""
        content = {'weights': self._get_weights(runner), 'first': self.first, 'seen': self.seen}
        content['ranks'] = runner.world_size
        torch.save(content, f'{runner.work_dir}/rank{runner.rank}.pt')

    def _get_weights(self, runner: Runner) -> Any:
        return getattr(runner.model, 'module', runner.model).state_dict()


# --- processes ------------------------------------------------------------------------------------


def run_ranks(
    words: Sequence[Any], folder: Path, ranks: int = 1, launcher: str = 'pytorch', **variables: str
) -> str:
    """Run a tool in several processes, with the variables that a launcher would set.

    Returns:
        What they printed.

    Raises:
        RuntimeError: If one fails, with the end of what it printed, or does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = find_port()
    SERVER.set_forkserver_preload(PRELOADED)
    logs = [folder / f'log{rank}' for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        own = dict(zip(RANKS[launcher], map(str, (rank, ranks, rank)), strict=True))
        own |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, **variables}
        line = [*words, '--work-dir', folder, *(['--launcher', launcher] if ranks > 1 else [])]
        work = [*map(str, line)], log
        process = SERVER.Process(target=run_script, args=work, kwargs=own)
        process.start()
        processes.append(process)
    end = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    hung = [process.kill() for process in processes if process.exitcode is None]
    for rank, (process, log) in enumerate(zip(processes, logs, strict=True)):
        if hung or process.exitcode:
            last = log.read_text()[-3000:]
            raise RuntimeError(f'rank {rank} ends with {process.exitcode}:\n{last}')
    return '\n'.join(log.read_text() for log in logs)


def find_port() -> str:
    """A port of this machine that is free."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def start(words: Sequence[Any], **variables: str) -> subprocess.Popen[str]:
    """Start a script of ``tools`` as a user does."""
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    env = os.environ | {'PATH': path, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    pipes: dict[str, Any] = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    return subprocess.Popen([*map(str, words)], env=env | variables, text=True, **pipes)


def finish(*processes: subprocess.Popen[str]) -> str:
    """Wait for processes, which must all end well, and return what they printed."""
    texts = [process.communicate(timeout=LIMIT)[0] for process in processes]
    for process, text in zip(processes, texts, strict=True):
        if process.returncode:
            raise RuntimeError(f'{process.args} ends with {process.returncode}:\n{text[-3000:]}')
    return '\n'.join(texts)


# --- configs --------------------------------------------------------------------------------------


@cache
def read_config(name: str) -> Config:
    """A config of the project; MMEngine takes a second for one that inherits from a host."""
    return Config.fromfile(mmpatch.config_path(name))


def make_config(folder: Path, data: Path, name: str = SEGMENTOR, **changes: Any) -> Path:
    """Write a small config of the demo as :func:`write_config` does."""
    cfg = deepcopy(read_config(name))
    replace_data_root(cfg, str(data / ('ade' if name == SEGMENTOR else 'coco')))
    cfg.model.backbone.update(depths=(1, 1, 1, 1), dims=DIMS)
    cfg.model.backbone.pop('init_cfg')
    cfg.model.neck.in_channels = DIMS[-len(cfg.model.neck.in_channels) :]
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.batch_size = 1  # larger batches are padded to the size of the largest picture
    return write_config(cfg, folder, **changes)


def write_config(cfg: Config, folder: Path, with_noise: bool = False, **changes: Any) -> Path:
    """Have a config train with SGD for one epoch of five steps, and write it.

    Pictures are augmented only ``with_noise``. ``changes`` replace settings, with two underscores
    for a dot.
    """
    if not with_noise:
        pipeline = cfg.train_dataloader.dataset.pipeline
        pipeline = [step for step in pipeline if not step['type'].startswith('Random')]
        resize = {'type': 'Resize', 'scale': (SIDE, SIDE), 'keep_ratio': False}
        cfg.train_dataloader.dataset.pipeline = [*pipeline[:2], resize, pipeline[-1]]
    cfg.train_dataloader.sampler = {'type': 'DefaultSampler', 'shuffle': True}
    cfg.train_dataloader.pop('batch_sampler', None)
    cfg.train_cfg = {'type': 'EpochBasedTrainLoop', 'max_epochs': 1, 'val_interval': 1000}
    sgd = {'type': 'SGD', 'lr': 0.02, 'momentum': 0.9}
    cfg.optim_wrapper = {'type': 'OptimWrapper', 'optimizer': sgd}
    warmup = {'type': 'LinearLR', 'start_factor': 0.2, 'by_epoch': False, 'begin': 0, 'end': 8}
    cfg.param_scheduler = [warmup]
    cfg.default_hooks.checkpoint = {'type': 'CheckpointHook', 'interval': 1}
    cfg.default_hooks.logger.interval = 1
    cfg.log_processor = {'by_epoch': True}
    cfg.randomness = {'seed': 0}
    cfg.custom_imports = {'imports': ['reliability.processes']}
    cfg.custom_hooks = [{'type': 'RankRecorder'}]
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    folder.mkdir(parents=True, exist_ok=True)
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


def shrink_config(family: str, data: Path, folder: Path) -> Path:
    """Write a small segmentor of a family, with batch norms frozen as its detectors have them."""
    cfg = check_matrix.shrink_config(family, '', 'semantic-fpn', data, 5)
    if 'norm_eval' in cfg.model.backbone:
        cfg.model.backbone.norm_eval = True
    for rate in ('drop_path_rate', 'drop_rate'):
        if rate in cfg.model.backbone:
            cfg.model.backbone[rate] = 0.0
    cfg.model.data_preprocessor.size = (SIDE, SIDE)
    cfg.model.decode_head.update(norm_cfg={'type': 'GN', 'num_groups': 16}, dropout_ratio=0.0)
    return write_config(cfg, folder)


def share_batch(ranks: int) -> list[str]:
    """Options with which ranks share the batch of one process."""
    return ['--cfg-options', f'train_dataloader.batch_size={BATCH // ranks}']


def train(config: Path, folder: Path, ranks: int, *arguments: Any, **more: Any) -> str:
    """Train with :func:`run_ranks`. The ranks share the batch of one process."""
    words = [TOOLS / 'train.py', config, *arguments, *share_batch(ranks)]
    return run_ranks(words, folder, ranks, **more)


def read(folder: Path, rank: int = 0) -> Any:
    return torch.load(folder / f'rank{rank}.pt', weights_only=True)


def compare(folder: Path, expected: Path, ranks: int) -> float:
    """Distance of the weights of all ranks from those of another run, over how far these moved.

    Infinite if the ranks do not agree to the bit, or are not as many.
    """
    runs = [read(folder, rank) for rank in range(ranks)]
    other = read(expected)
    weights = [flatten(run['weights']) for run in runs]
    right, first = flatten(other['weights']), flatten(other['first'])
    if any(run['ranks'] != ranks for run in runs) or any(not w.equal(weights[0]) for w in weights):
        return float('inf')
    return float((weights[0] - right).norm() / (right - first).norm())


def flatten(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.double().flatten() for value in weights.values()])


# --- checks ---------------------------------------------------------------------------------------


def check_weights(
    folder: Path, data: Path, families: Sequence[str], ranks: Sequence[int]
) -> Iterator[Row]:
    """Train each family as one process and as several, which share its batches."""
    errors = {}
    for family in families:
        home = folder / family.replace('/', '-')
        config = shrink_config(family, data, home)
        train(config, home / '1', 1)
        for count in ranks:
            train(config, home / str(count), count)
            errors[f'{family} on {count}'] = compare(home / str(count), home / '1', count)
    worst = max(errors, key=lambda name: errors[name])
    yield Row(
        'ranks train as one process on the joined batch',
        f'{", ".join(families)}: five steps on {" and ".join(map(str, ranks))} ranks',
        len(errors),
        sum(error < TOLERANCE for error in errors.values()),
        f'largest difference {errors[worst]:.0e} of the weights ({worst})',
    )


def check_launchers(folder: Path, data: Path, names: Sequence[str]) -> Iterator[Row]:
    """Start two ranks in the ways that MMEngine knows, and compare the weights after five steps."""
    config = make_config(folder, data)
    train(config, folder / 'none', 1)
    errors = {}
    for name in names:
        home = folder / name
        arguments = ['--work-dir', home, *share_batch(2)]
        if name == 'mpi':
            train(config, home, 2, launcher='mpi')
        elif name == 'slurm':
            words = [TOOLS / 'slurm_train.sh', 'partition', 'job', config, *arguments]
            finish(start(words, **make_cluster(folder / 'bin')))
            asked = (folder / 'bin/srun.txt').read_text()
            assert asked.startswith('-p partition --job-name=job --gres=gpu:2 --ntasks=2 '), asked
        else:
            machines = 2 if name == 'two machines' else 1
            words = [TOOLS / 'dist_train.sh', config, 2 // machines, *arguments]
            meeting = {'MASTER_ADDR': '127.0.0.1', 'PORT': find_port(), 'NNODES': str(machines)}
            finish(*(start(words, NODE_RANK=str(i), **meeting) for i in range(machines)))
        errors[name] = compare(home, folder / 'none', 2)
    yield Row(
        'ranks on a CPU join over gloo, whatever started them',
        f'two ranks started by {", ".join(names)} (a fake cluster on one machine)',
        len(errors),
        sum(error < TOLERANCE for error in errors.values()),
        f'largest difference from one process {max(errors.values()):.0e}',
    )


def make_cluster(folder: Path) -> dict[str, str]:
    """Write the programs of a cluster; variables of the environment that has them."""
    folder.mkdir(exist_ok=True)
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f'{folder}:{Path(sys.executable).parent}:{os.environ["PATH"]}'
    return {'PATH': path, 'GPUS': '2', 'GPUS_PER_NODE': '2', 'MASTER_PORT': find_port()}


def check_killed_rank(folder: Path, data: Path, resumed: Sequence[int]) -> Iterator[Row]:
    """Kill one of two ranks in the second of two epochs, and go on on some numbers of ranks."""
    config = make_config(folder, data, train_cfg__max_epochs=2)
    train(config, folder / 'whole', 2)
    home = folder / 'killed'
    words = [TOOLS / 'dist_train.sh', config, 2, '--work-dir', home, *share_batch(2)]
    process = start([*words, 'custom_hooks.0.kill=[1,7]'])
    text, _ = process.communicate(timeout=LIMIT)
    seconds = time.time() - (home / 'killed').stat().st_mtime
    left = [file for file in home.glob('pid*') if Path('/proc', file.read_text()).exists()]
    is_named = re.search(r'rank +: 1 .*\n.*-9 ', text) and 'SIGKILL' in text
    held = process.returncode != 0 and seconds < 60 and not left and bool(is_named)
    yield Row(
        'all ranks end within a minute, and a message names the one that died',
        'SIGKILL to rank 1 of 2 in the middle of an epoch',
        1,
        int(held),
        f'ended after {seconds:.1f} s, {len(left)} processes left',
    )
    errors = {}
    for ranks in resumed:
        train(config, folder / str(ranks), ranks, '--resume', home / 'epoch_1.pth')
        errors[ranks] = compare(folder / str(ranks), folder / 'whole', ranks)
    yield Row(
        'a run resumes on as many ranks to the bit, and on other numbers with the same batch',
        f'the killed run, resumed on {" and ".join(map(str, resumed))} ranks',
        len(errors),
        sum(error == 0 or (ranks != 2 and error < TOLERANCE) for ranks, error in errors.items()),
        ', '.join(f'{ranks}: difference {error:.0e}' for ranks, error in errors.items()),
    )


def check_evaluation(
    folder: Path, data: Path, ranks: Sequence[int], scripts: Sequence[str] = ()
) -> Iterator[Row]:
    """Evaluate seven pictures on several ranks and compare metrics and predicted boxes."""
    found: dict[str, dict[Any, Any]] = {}
    for name, key in ((SEGMENTOR, 'mIoU'), (DETECTOR, 'coco/bbox_mAP')):
        home = folder / key.replace('/', '-')
        config = make_config(home, data, name)
        if name == DETECTOR:  # it has learnt nothing: take boxes of any score
            options = {'score_thr': 0.0, 'max_per_img': 50}
            config = make_config(home, data, name, model__test_cfg=options)
        train(config, home, 1)
        found[key] = {}
        for count in (1, *ranks):
            words = [TOOLS / 'test.py', config, home / 'epoch_1.pth']
            if name == DETECTOR:
                words += ['--out', home / f'{count}.pkl']
            run_ranks(words, home / str(count), count)
            found[key][count] = [read_metric(home / str(count), key), read_boxes(home, count)]
    home = folder / 'mIoU'
    for script in scripts:
        words = [home / 'config.py', home / 'epoch_1.pth']
        words = ['partition', 'job', *words] if 'slurm' in script else [*words, 2]
        cluster = make_cluster(folder / 'bin') if 'slurm' in script else {}
        finish(start([TOOLS / script, *words, '--work-dir', home / script], **cluster))
        found['mIoU'][script] = [read_metric(home / script, 'mIoU'), None]
    tries = [(key, count) for key, runs in found.items() for count in runs if count != 1]
    yield Row(
        'ranks evaluate as one process',
        f'7 pictures on {" and ".join([*map(str, ranks)])} ranks; {", ".join(scripts)}',
        len(tries),
        sum(found[key][count] == found[key][1] for key, count in tries),
        ', '.join(f'{key} {runs[1][0]} each time' for key, runs in found.items()),
    )


def read_metric(folder: Path, key: str) -> float:
    """A metric that tools/test.py has written last."""
    files = folder.glob('[0-9]*/*.json')
    return json.loads(max(files).read_text())[key]


def read_boxes(folder: Path, ranks: int) -> list[Any] | None:
    """Names of pictures, scores and boxes that tools/test.py has written; None if it has not."""
    file = folder / f'{ranks}.pkl'
    if not file.is_file():
        return None
    with file.open('rb') as stream:
        found = [(image['img_path'], image['pred_instances']) for image in pickle.load(stream)]
    return [(name, made['scores'].tolist(), made['bboxes'].tolist()) for name, made in found]


def check_downloads(folder: Path, data: Path, ranks: Sequence[int]) -> Iterator[Row]:
    """Let ranks load weights from a server of this machine, which counts what it is asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, text: str, *values: Any) -> None:
            asked.append(self.path)

    (folder / 'served').mkdir(parents=True)
    torch.save(
        PoolFormer(depths=(1,) * 4, dims=DIMS, layer_scale=None).state_dict(),
        folder / 'served/weights.pth',
    )
    handler = partial(Handler, directory=folder / 'served')
    counts = {}
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/weights.pth'
        init_cfg = {'type': 'Pretrained', 'checkpoint': url}
        config = make_config(folder, data, model__backbone__init_cfg=init_cfg)
        for count in ranks:
            home = folder / str(count)
            asked.clear()
            train(config, home, count, TORCH_HOME=str(home / 'torch'), no_proxy='127.0.0.1')
            counts[count] = len(asked)
        server.shutdown()
    yield Row(
        'one rank downloads, the others wait for it',
        f'weights at a URL, {" and ".join(map(str, ranks))} ranks',
        len(counts),
        sum(count == 1 for count in counts.values()),
        ', '.join(f'{count} request from {ranks} ranks' for ranks, count in counts.items()),
    )


def check_augmentation(folder: Path, data: Path, workers: Sequence[int]) -> Iterator[Row]:
    """Let two ranks augment the same picture in five epochs."""
    changes = {'train_cfg__max_epochs': 5, 'train_dataloader__dataset__indices': 1}
    tried = different = 0
    for count in workers:
        home = folder / str(count)
        changes['train_dataloader__num_workers'] = count
        train(make_config(home, data, with_noise=True, **changes), home, 2)
        pictures = [picture for rank in (0, 1) for picture in read(home, rank)['seen']]
        pairs = list(combinations(pictures, 2))
        tried += len(pairs)
        different += sum(not torch.equal(a, b) for a, b in pairs)
    yield Row(
        'ranks and epochs augment differently',
        f'one picture on 2 ranks in 5 epochs, {" and ".join(map(str, workers))} workers',
        tried,
        different,
        'pairs of pictures that differ',
    )


def check_backbones(folder: Path, configs: Sequence[str]) -> Iterator[Row]:
    """Give the backbones of configs, made small, to DistributedDataParallel."""
    folder.mkdir(parents=True, exist_ok=True)
    SERVER.set_forkserver_preload(PRELOADED)
    process = SERVER.Process(target=train_backbones, args=(folder, configs))
    process.start()
    process.join(LIMIT)
    errors = json.loads((folder / 'errors.json').read_text())
    failed = [name for name, error in errors.items() if error]
    yield Row(
        'no backbone of the configs has a parameter that gets no gradient',
        'two steps in DistributedDataParallel, also with the first stage frozen',
        len(errors),
        len(errors) - len(failed),
        failed[0] if failed else 'find_unused_parameters stays False',
    )


def train_backbones(folder: Path, configs: Sequence[str]) -> None:
    """Do that in this process, with a group of one rank, and write ``errors.json``."""
    torch.set_num_threads(1)
    register_hosts()
    store = f'file://{folder}/store'
    torch.distributed.init_process_group('gloo', init_method=store, rank=0, world_size=1)
    errors = {}
    for name in configs:
        cfg = read_config(name).get('model', {}).get('backbone', {})
        if not cfg.get('type', '').startswith('mmpatch.'):
            continue
        cfg.update(check_matrix.shrink_backbone(cfg), init_cfg=None)
        for frozen in {-1, 1, cfg.get('frozen_stages', -1)}:
            model = MODELS.build({**cfg, 'frozen_stages': frozen})
            if (key := f'{model} {model.out_indices} {frozen}') not in errors:
                errors[key] = train_backbone(model)
    (folder / 'errors.json').write_text(json.dumps(errors))


def train_backbone(model: nn.Module) -> str:
    """Train for two steps on all outputs; returns what went wrong."""
    model = DistributedDataParallel(model.train())
    try:
        for _ in range(2):
            sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    except RuntimeError as error:
        return str(error)
    return ''


def check_models(folder: Path, data: Path, tasks: Sequence[str]) -> Iterator[Row]:
    """Train small models of all families for some tasks on two ranks."""
    failed, tried = {}, 0
    for family, task in product(check_matrix.FAMILIES, tasks):
        if not check_matrix.find_configs(family, task):
            continue
        tried += 1
        cfg = check_matrix.shrink_config(family, '', task, data, 3)
        if 'decode_head' in cfg.model:
            cfg.model.decode_head.norm_cfg = {'type': 'GN', 'num_groups': 16}
        if 'auxiliary_head' in cfg.model:
            cfg.model.auxiliary_head.norm_cfg = {'type': 'GN', 'num_groups': 16}
        cfg.train_dataloader.batch_size = 2
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.train_cfg.pop('val_interval')
        home = folder / f'{family}-{task}'.replace('/', '-')
        home.mkdir(parents=True)
        cfg.dump(home / 'config.py')
        try:
            run_ranks([TOOLS / 'train.py', home / 'config.py'], home, 2)
        except RuntimeError as error:
            failed[f'{family} {task}'] = str(error).splitlines()[-1]
    yield Row(
        'no detector or segmentor of the configs has a parameter that gets no gradient',
        f'three steps on 2 ranks for {", ".join(tasks)}, all families',
        tried,
        tried - len(failed),
        '; '.join(f'{name}: {error}' for name, error in failed.items()) or 'all train',
    )


def check_refusals(folder: Path, data: Path) -> Iterator[Row]:
    """Train models on two ranks that cannot be trained there, and read what is said."""
    four = {'model__backbone__out_indices': (0, 1, 2, 3), 'model__neck__in_channels': DIMS}
    configs = {
        'no head reads the outputs of stages [0]': (
            make_config(folder / 'unread', data, DETECTOR, model__neck__start_level=1, **four)
        ),
        'error: model.decode_head.norm_cfg.type: SyncBN trains on GPUs only': (
            make_config(folder / 'sync', data, model__decode_head__norm_cfg={'type': 'SyncBN'})
        ),
    }
    said = 0
    for message, config in configs.items():
        with suppress(RuntimeError):
            train(config, config.parent, 2)
            continue
        said += message in (config.parent / 'log0').read_text()
    yield Row(
        'what cannot be trained on these ranks is named before the first step',
        'an output that no head reads; SyncBN without a GPU',
        len(configs),
        said,
        'named, with the setting that helps',
    )


def register_hosts() -> None:
    """Register what the configs of both hosts name."""
    mmdet.utils.register_all_modules(init_default_scope=False)
    mmseg.utils.register_all_modules(init_default_scope=False)


def check(folder: Path, is_long: bool) -> Iterator[Row]:
    """All checks; the long form has four ranks and all families."""
    register_hosts()
    data = make_data(folder / 'data', PICTURES, 7)
    ranks = [2, 4] if is_long else [2]
    families = check_matrix.FAMILIES if is_long else ['poolformer', 'convmixer']
    yield from check_weights(folder / 'weights', data, families, ranks)
    launchers = ['one machine', 'two machines', 'slurm', 'mpi']
    yield from check_launchers(folder / 'launchers', data, launchers[0 if is_long else 1 :])
    yield from check_killed_rank(folder / 'killed', data, [2, 1, 4] if is_long else [2, 1])
    yield from check_evaluation(folder / 'evaluation', data, [2, 4], SCRIPTS[: 2 if is_long else 1])
    yield from check_downloads(folder / 'downloads', data, ranks)
    yield from check_augmentation(folder / 'augmentation', data, [0, 2])
    yield from check_backbones(folder / 'backbones', mmpatch.list_configs())
    tasks = check_matrix.TASKS if is_long else ['retinanet']
    yield from check_models(folder / 'models', data, list(tasks))
    yield from check_refusals(folder / 'refusals', data)
