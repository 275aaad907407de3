"""Trained models as their hosts' inferencers, with the classes and the config of the checkpoint."""

import os
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device

from mmpatch.checkpoint import load_whole
from mmpatch.checkpoint.load import join_names, read_checkpoint, unwrap
from mmpatch.deployment import ExportedBackbone
from mmpatch.deployment.files import first_line
from mmpatch.engine.build import build_model
from mmpatch.engine.data import find_datasets
from mmpatch.engine.model import check_model
from mmpatch.engine.tool import import_host, override_settings, read_file
from mmpatch.inference.stored import read_stored_config
from mmpatch.registry import check_types

#: Of a path, as ``open`` takes it.
File = str | os.PathLike[str]


def load_inferencer(
    config: File | Config | None,
    checkpoint: File,
    device: str | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Any:
    """Load a checkpoint strictly into its model, and make the host's inferencer of it.

    The arguments and errors are those of :class:`mmpatch.inference.predict.Predictor`.

    Returns:
        A ``DetInferencer`` or ``MMSegInferencer``. ``model.dataset_meta`` has the names and the
        colours of the classes.
    """
    source, device = os.fspath(checkpoint), device or get_device()
    try:
        torch.zeros(1, device=device).item()  # the device meta has no numbers
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f'device {device!r} cannot be used: {first_line(error)}') from error
    cfg: Any = deepcopy(config) if isinstance(config, Config) else None
    if config is not None and cfg is None:
        cfg = read_file(os.fspath(config))
    content = read_checkpoint(source)
    if config is None:
        cfg = read_stored_config(content, source)
    name = cfg.filename or source
    host = import_host(cfg, name)
    override_settings(cfg, cfg_options or {})
    loader = cfg.get('test_dataloader') or {}
    data: Any = next(find_datasets(loader.get('dataset') or {}), {})
    if 'pipeline' not in data or 'model' not in cfg:
        raise ValueError(f'{name} has no model, or no test_dataloader.dataset.pipeline')
    if config is None:
        check_types([cfg.model, data.pipeline], source)
    model = _load_model(cfg, content, name, source)
    model.dataset_meta = _read_meta(content, data.get('metainfo') or {}, model, source)
    model.to(device).eval()
    if host == 'mmdet':
        from mmdet.apis import DetInferencer as Host
    else:
        from mmseg.apis import MMSegInferencer as Host

    class Inferencer(Host):
        """The host's, around the model that was loaded strictly."""

        def _init_model(self, *_: Any) -> Any:
            return model

        def _init_collate(self, _: Any) -> Any:
            return pseudo_collate

    steps = [step for step in data.pipeline if 'Annotations' not in str(step['type'])]
    kind = {'mmdet': 'Det', 'mmseg': 'Seg'}[host]
    parts = {
        'default_scope': host,
        'model': cfg.model,
        'test_dataloader': {'dataset': {'pipeline': steps}},
        # not that of the training, which may write logs or send them somewhere
        'visualizer': {'type': f'{kind}LocalVisualizer', 'name': 'predict', 'save_dir': ''},
    }
    return Inferencer(Config(parts), device=device)


def _load_model(cfg: Any, content: Any, name: str, source: str) -> Any:
    check_model(cfg.model, cfg.default_scope)
    try:
        model = build_model(cfg)
    except Exception as error:  # hosts raise what they like
        raise ValueError(f'{name}: no model can be built: {first_line(error)}') from error
    if isinstance(model.backbone, ExportedBackbone):  # compares the weights of the backbone itself
        tensors, _ = unwrap(content, source, prefixes=('module.',))
        if missing := model.load_state_dict(tensors, strict=False).missing_keys:
            raise ValueError(f'{source} lacks {join_names(missing)}')
    else:
        load_whole(model, source, content)
    return model


def _read_meta(content: Any, metainfo: dict[str, Any], model: Any, source: str) -> dict[str, Any]:
    """Names and colours of the classes: of the checkpoint, or those that the config states."""
    meta = content.get('meta') if isinstance(content, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    about = {str(key).lower(): value for key, value in (meta.get('dataset_meta') or meta).items()}
    about = about if about.get('classes') else metainfo
    classes = about.get('classes')
    if not isinstance(classes, list | tuple) or not classes:
        key = 'test_dataloader.dataset.metainfo.classes'
        raise ValueError(f'{source} names no classes: add them as --cfg-options {key}="(A, B)"')
    counts = (getattr(module, 'num_classes', None) for module in model.modules())
    count = max((n for n in counts if isinstance(n, int)), default=0)
    if count > len(classes):
        known = f'{source} names {len(classes)} classes, but its network has {count}'
        raise ValueError(f'{known}: it was trained with a wrong num_classes')
    palette = about.get('palette')
    if not isinstance(palette, list | tuple) or len(palette) < len(classes):
        palette = np.random.RandomState(42).randint(0, 256, (len(classes), 3))
    colours = [tuple(map(int, colour)) for colour in palette[: len(classes)]]
    return {'classes': tuple(map(str, classes)), 'palette': colours}
