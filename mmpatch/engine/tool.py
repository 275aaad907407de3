"""What the tools that train and evaluate share: arguments, and the config they run."""

import argparse
import importlib
import inspect
import logging
import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook as EngineCheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, OPTIMIZERS
from mmengine.runner import Runner

from mmpatch import compat, config_path
from mmpatch.compat.names import find_base
from mmpatch.engine.classes import check_dataset_types
from mmpatch.engine.data import check_annotation_files, check_paths, replace_data_root
from mmpatch.engine.errors import blame_config, report_errors, shorten_error, suggest_type
from mmpatch.engine.memory import VARIABLE, keep_freed_memory
from mmpatch.engine.model import as_list, check_model
from mmpatch.engine.storage import keep_files_whole

#: Hosts, and the extra of this package that installs each.
HOSTS = {'mmdet': 'det', 'mmseg': 'seg'}
#: Variables of the environment that hold rank, number of ranks and rank on the machine.
RANKS = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': tuple(f'OMPI_COMM_WORLD_{name}' for name in ('RANK', 'SIZE', 'LOCAL_RANK')),
}
#: Hooks that every run has.
OWN_HOOKS = [f'mmpatch.{name}Hook' for name in ('DataCheck', 'StepSeed', 'CheckInvalidLoss')]
#: What MMEngine's runner reads of a config.
SETTINGS = [
    *inspect.signature(Runner).parameters,
    *('activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', 'tta_model', 'tta_pipeline'),
]


class OptionAction(DictAction):
    """MMEngine's ``--cfg-options``, which here names an option that it cannot read."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Read all KEY=VALUE of one ``--cfg-options``; an error ends the program."""
        for item in values:
            key, sign, value = item.partition('=')
            balanced = all(value.count(a) == value.count(b) for a, b in ('()', '[]'))
            if not key or not sign or not balanced:
                parser.error(f'{option_string} {item}: write KEY=VALUE, without spaces around =')
        super().__call__(parser, namespace, values, option_string)


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
        action=OptionAction,
        default={},
        metavar='KEY=VALUE',
        help='override settings, e.g. model.backbone.arch=s24; data_root=FOLDER moves all data',
    )
    result.add_argument(
        '--launcher', choices=['none', *RANKS], default='none', help='what started the processes'
    )
    # torch.distributed.launch passes the second form
    result.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return result


@report_errors()
def read_config(args: argparse.Namespace, *splits: str) -> Config:
    """Read the config of a tool, check it, and prepare the process to run it.

    Options override the file. Hooks that check data and losses, seed iterations and keep
    checkpoints whole are added.

    Args:
        args: Of :func:`make_parser`.
        splits: Some of 'train', 'val' and 'test', whose data must exist.

    Raises:
        SystemExit: If the config cannot be read, a file or data is missing, the host is not
            installed or parts of the model do not match, in one line.
    """
    # MMEngine reads LOCAL_RANK under every launcher, and so do downloads
    variable = RANKS.get(args.launcher, RANKS['pytorch'])[2]
    os.environ['LOCAL_RANK'] = os.environ.get(variable, str(args.local_rank))
    for line in compat.install():
        print_log(line, logger='current')
    if keep_freed_memory():
        print_log(f'mmpatch: freed memory is kept ({VARIABLE}=0 to disable)', logger='current')
    cfg = read_file(args.config)
    options = dict(args.cfg_options)
    if 'data_root' in options:
        replace_data_root(cfg, str(options.pop('data_root')))
    override_settings(cfg, options)
    cfg.launcher = args.launcher
    name = re.sub(r'\.(py|json|ya?ml)$', '', Path(args.config).name)  # which may have more dots
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{name}'
    host = import_host(cfg, args.config)
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'{args.config} has no model=dict(...): is it a config of {host}?')
    with blame_config(args.config):
        check_names(cfg)
        check_types(cfg)
        check_paths(cfg, splits)
        check_optimizer(cfg)
        check_dataset_types(cfg, splits)
        check_annotation_files(host)
        try:
            check_model(cfg.model, host)
        except ValueError as error:
            raise ValueError(f'{args.config}: {error}') from error
        own = as_list(cfg.get('custom_hooks') or [])
        given = {hook['type'] for hook in own}  # names, or classes in a config that imports them
        added = [name for name in OWN_HOOKS if not given & {name, HOOKS.get(name)}]
        cfg.custom_hooks = [*({'type': name} for name in added), *own]
    keep_files_whole()
    if 'train' in splits:
        hook = {'type': 'CheckpointHook', 'interval': 1}
        cfg.default_hooks = {'checkpoint': hook} | (cfg.get('default_hooks') or {})
        kept = cfg.default_hooks.checkpoint
        if kept and kept.get('type', 'CheckpointHook') in ('CheckpointHook', EngineCheckpointHook):
            kept['type'] = 'mmpatch.CheckpointHook'  # its subclasses keep to themselves
    if args.launcher != 'none' and get_device() == 'cpu':
        if norms := list(find_sync_norms(cfg.model, 'model')) if 'train' in splits else []:
            raise ValueError(
                f'{", ".join(norms)}: SyncBN trains on GPUs only; on CPU ranks, add --cfg-options '
                + ' '.join(f'{norm}=BN' for norm in norms)
            )
        join_ranks_on_cpu(cfg)
    return cfg


def read_file(name: str) -> Config:
    """Read a config.

    Args:
        name: Path of a file, what :func:`mmpatch.config_path` takes, or ``mmdet::FOLDER/NAME`` and
            ``mmseg::FOLDER/NAME``.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it, or a config that it inherits, cannot be read.
    """
    path = str(Path(name).expanduser())
    if not Path(path).is_file():
        try:
            path = find_base(name, '')[0] if '::' in name else config_path(name)
        except (ValueError, AssertionError, OSError, ImportError) as error:
            raise FileNotFoundError(f'there is no file {name}, and {error}') from error
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is code and can raise anything
        what = f'config {name}, or one that it inherits (_base_), cannot be read'
        raise ValueError(f'{what}: {shorten_error(error)}') from error


def override_settings(cfg: Config, options: dict[str, Any]) -> None:
    """Change settings as ``--cfg-options`` says.

    Raises:
        KeyError: If the first part of a key is no setting of the config and none of MMEngine's.
        ValueError: If a key does not fit the config.
    """
    known = {*cfg, *SETTINGS}
    for key in options:
        if key.split('.')[0] not in known:
            near = get_close_matches(key.split('.')[0], sorted(known), 1)
            hint = f'; did you mean {near[0]}?' if near else ''
            raise KeyError(f'--cfg-options {key}: the config has no such setting{hint}')
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError) as error:
        what = textwrap.shorten(str(error.args[0]), 200)
        raise ValueError(f'--cfg-options {" ".join(options)}: {what}') from error


def check_names(cfg: Config) -> None:
    """Warn of settings whose name is almost one of MMEngine's, which does not read them."""
    for key in cfg:
        if key not in SETTINGS and (near := get_close_matches(key, SETTINGS, 1, 0.9)):
            text = f'the config sets {key}, which MMEngine does not read; did you mean {near[0]}?'
            print_log(text, logger='current', level=logging.WARNING)


def check_types(cfg: Config) -> None:
    """Raise an error for a setting that is no dict, a loader without a dataset or a wrong hook."""
    loaders = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    for key in (*loaders, 'default_hooks', 'optim_wrapper'):
        if not isinstance(value := cfg.get(key), dict | None):
            raise TypeError(f'{key}={value!r} must be a dict')
        if key in loaders and value and 'dataset' not in value:
            raise KeyError(f'{key} has no dataset')
    for key, hook in (cfg.get('default_hooks') or {}).items():
        if not isinstance(hook, dict | None):
            raise TypeError(f'default_hooks.{key}={hook!r} must be a dict')
    hooks = cfg.get('custom_hooks') or []
    if not all(isinstance(hook, dict) and 'type' in hook for hook in as_list(hooks)):
        raise TypeError(f'custom_hooks={hooks!r} must be a list of dict(type=...), in the config')


def check_optimizer(cfg: Config) -> None:
    """Raise a KeyError for an optimizer that is not registered, where MMEngine calls None."""
    kind = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    with OPTIMIZERS.switch_scope_and_registry(cfg.default_scope) as registry:
        if isinstance(kind, str) and registry.get(kind) is None:
            raise KeyError(suggest_type(kind, OPTIMIZERS.name))


def import_host(cfg: Config, source: str) -> str:
    """Import the host of a config and return its name.

    Raises:
        ValueError: If ``default_scope`` names no host.
        ImportError: If the host is not installed.
    """
    host = cfg.get('default_scope')
    if host not in list(HOSTS):  # a list cannot be looked up in a dict
        raise ValueError(f'{source}: default_scope={host!r} must name a host, of {tuple(HOSTS)}')
    try:
        importlib.import_module(f'{host}.registry')
    except ImportError as error:
        raise ImportError(f'{host}: {error}; pip install mmpatch[{HOSTS[host]}]') from error
    return host


def join_ranks_on_cpu(cfg: Config) -> None:
    """Join the processes that a launcher started, over gloo, and wrap the model for a CPU.

    MMEngine assumes a GPU for both, but uses a process group that exists already.

    Raises:
        LookupError: If the launcher has not set what says where the other processes are.
    """
    env, names = os.environ, RANKS[cfg.launcher]
    if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in env and 'SLURM_NODELIST' in env:
        command = ['scontrol', 'show', 'hostnames', env['SLURM_NODELIST']]
        env['MASTER_ADDR'] = subprocess.check_output(command, text=True).split()[0]
    env.setdefault('MASTER_PORT', '29500')  # torch's
    if missing := [name for name in (*names, 'MASTER_ADDR') if name not in env]:
        raise LookupError(
            f'--launcher {cfg.launcher}: {", ".join(missing)} not in the environment. torchrun '
            '(tools/dist_train.sh), srun (tools/slurm_train.sh) or mpirun must start the processes'
        )
    env.update(zip(RANKS['pytorch'], [env[name] for name in names], strict=True))
    seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    timeout = timedelta(seconds=seconds) if seconds else None
    torch.distributed.init_process_group('gloo', timeout=timeout)
    wrapper = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
    }
    cfg.model_wrapper_cfg = {**(cfg.get('model_wrapper_cfg') or wrapper), 'device_ids': None}


def find_sync_norms(part: Any, place: str) -> Iterator[str]:
    """Places in a config of batch norms that learn and are synchronised between GPUs."""
    items = dict(enumerate(part)) if isinstance(part, list) else part
    if isinstance(items, dict) and not items.get('norm_eval'):
        if 'SyncBN' in str(items.get('type')):
            yield f'{place}.type'
        for key, value in items.items():
            yield from find_sync_norms(value, f'{place}.{key}')


def set_precision(cfg: Config, is_mixed: bool) -> None:
    """Turn mixed precision on: MMEngine's on a GPU, bfloat16 on a CPU, which MMEngine refuses.

    Raises:
        ValueError: If it is not to be turned on, but the config asks for MMEngine's on a CPU.
    """
    wrapper, is_on_cpu = cfg.optim_wrapper, get_device() == 'cpu'
    if is_mixed and is_on_cpu:
        wrapper.type = 'mmpatch.BFloat16OptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fsdp'):  # of MMEngine's
            wrapper.pop(key, None)
    elif is_mixed:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    elif is_on_cpu and wrapper.get('type') == 'AmpOptimWrapper':
        raise ValueError(
            'the config asks for AmpOptimWrapper, which needs a GPU: add --amp to train in '
            'bfloat16, or --cfg-options optim_wrapper.type=OptimWrapper to train in float32'
        )
