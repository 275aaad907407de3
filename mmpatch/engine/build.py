"""Builds what a config or a name stands for, without training or evaluating it."""

import importlib
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmpatch import list_configs
from mmpatch.backbones import names
from mmpatch.engine.tool import import_host, override_settings, read_file


def build_model(cfg: Config) -> Any:
    """Build the whole model of a config of mmdet or mmseg, without pretrained weights."""
    host = importlib.import_module(f'{cfg.default_scope}.utils')
    host.register_all_modules(init_default_scope=False)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    if 'pretrained' in cfg.model:
        cfg.model.pretrained = None
    return MODELS.build(cfg.model)


def is_config(name: str) -> bool:
    """Whether a name is that of a config, and not of a backbone."""
    return name.endswith('.py') or '::' in name or bool(list_configs(f'*{name}.py'))


def read_network(name: str, options: dict[str, Any] | None = None) -> Config:
    """Read what :func:`build_network` builds.

    Args:
        name: A config of mmdet or mmseg, as :func:`mmpatch.engine.tool.read_file` takes it; or a
            backbone, as :func:`mmpatch.backbones.names.find_network` takes it.
        options: Override settings of a config, by their full keys.

    Returns:
        The config; or one whose ``backbone`` is all there is.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If there is no such backbone, or a config cannot be read.
        KeyError: If an option is no setting.
        ImportError: If its host is not installed.
    """
    if not is_config(name):
        return Config({'backbone': names.find_network(name)})
    cfg = read_file(name)
    override_settings(cfg, options or {})
    import_host(cfg, name)
    return cfg


def build_network(cfg: Config) -> Any:
    """Build the detector, segmentor or backbone of :func:`read_network`, without weights."""
    if 'backbone' not in cfg:
        return build_model(cfg)
    return MODELS.build({**cfg.backbone, 'init_cfg': None})


def build_empty(cfg: Config) -> Any:
    """:func:`build_network` on the meta device, without memory for its numbers."""
    try:
        with torch.device('meta'):
            return build_network(cfg)
    except RuntimeError:  # mmdet's PVT, say, reads numbers while it is built
        return build_network(cfg).to('meta')
