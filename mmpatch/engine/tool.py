"""What the tools that train and evaluate share: arguments, and the config they run."""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import MODELS, init_default_scope

from mmpatch import compat
from mmpatch.engine.data import check_paths, replace_data_root, warn_of_lost_annotations
from mmpatch.engine.memory import VARIABLE, keep_freed_memory
from mmpatch.engine.model import check_model

#: Hosts, and the extra of this package that installs each.
HOSTS = {'mmdet': 'det', 'mmseg': 'seg'}


def make_parser(
    description: str, config: str = 'config', about: str = 'config file of mmdet or mmseg'
) -> argparse.ArgumentParser:
    """Make a parser with the arguments of all tools, named as in mmdet and mmseg.

    Args:
        description: What the tool does.
        config: Name of its first argument, which says what is run.
        about: Help on that argument.
    """
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(config, help=about)
    result.add_argument('--work-dir', help='where logs and checkpoints go (work_dirs/CONFIG)')
    result.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override settings, e.g. model.backbone.arch=s24; data_root=FOLDER moves all data',
    )
    launchers = ['none', 'pytorch', 'slurm', 'mpi']
    result.add_argument(
        '--launcher', choices=launchers, default='none', help='what started the processes'
    )
    # torch.distributed.launch passes the second form
    result.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return result


def read_config(args: argparse.Namespace, *splits: str) -> Config:
    """Read the config of a tool, check it, and prepare the process to run it.

    Options override the file. Hooks that check data and losses and seed iterations are added.

    Args:
        args: Of :func:`make_parser`.
        splits: Some of 'train', 'val' and 'test', whose data must exist.

    Raises:
        SystemExit: If a file or data is missing or parts of the model do not match, in one line.
        ValueError: If ``default_scope`` names no host.
        ImportError: If the host is not installed.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    for line in compat.install():
        print_log(line, logger='current')
    if keep_freed_memory():
        print_log(f'mmpatch: freed memory is kept ({VARIABLE}=0 to disable)', logger='current')
    try:
        cfg = Config.fromfile(args.config)
    except FileNotFoundError as error:
        sys.exit(f'error: {error}')
    options = dict(args.cfg_options)
    if 'data_root' in options:
        replace_data_root(cfg, str(options.pop('data_root')))
    cfg.merge_from_dict(options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    host = cfg.get('default_scope')
    if host not in HOSTS:
        raise ValueError(f'{args.config}: default_scope={host!r} must be one of {tuple(HOSTS)}')
    try:
        check_paths(cfg, splits)
    except FileNotFoundError as error:
        sys.exit(f'error: {error}')
    try:
        importlib.import_module(host)
    except ImportError as error:
        raise ImportError(f'{host}: {error}; pip install mmpatch[{HOSTS[host]}]') from error
    if host == 'mmdet':
        warn_of_lost_annotations()
    try:
        check_model(cfg.model, host)
    except ValueError as error:
        sys.exit(f'error: {args.config}: {error}')
    own = cfg.get('custom_hooks') or []
    hooks = ['mmpatch.DataCheckHook', 'mmpatch.StepSeedHook']
    if not any(hook['type'] == 'mmpatch.CheckInvalidLossHook' for hook in own):
        hooks.append('mmpatch.CheckInvalidLossHook')
    cfg.custom_hooks = [*({'type': hook} for hook in hooks), *own]
    if args.launcher == 'pytorch' and get_device() == 'cpu':
        join_ranks_on_cpu(cfg)
    return cfg


def join_ranks_on_cpu(cfg: Config) -> None:
    """Join the processes that ``torchrun`` started, over gloo, and wrap the model for a CPU.

    MMEngine assumes a GPU for both, but uses a process group that exists already. Synchronised
    batch norms (SyncBN) still need a GPU.
    """
    torch.distributed.init_process_group('gloo')
    wrapper = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
    }
    cfg.model_wrapper_cfg = {**(cfg.get('model_wrapper_cfg') or wrapper), 'device_ids': None}


def check_precision(cfg: Config) -> None:
    """Refuse mixed precision on a CPU, which MMEngine does not support.

    Raises:
        SystemExit: If the config asks for it; says in one line what to leave out.
    """
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        sys.exit(
            'error: MMEngine has no mixed precision on a CPU: leave out --amp, or add '
            '--cfg-options optim_wrapper.type=OptimWrapper if the config asks for it'
        )


def build_model(cfg: Config) -> Any:
    """Build the whole model of a config of mmdet or mmseg, without pretrained weights."""
    host = importlib.import_module(f'{cfg.default_scope}.utils')
    host.register_all_modules(init_default_scope=False)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    if 'pretrained' in cfg.model:
        cfg.model.pretrained = None
    return MODELS.build(cfg.model)
