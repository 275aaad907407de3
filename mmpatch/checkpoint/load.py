"""Strict loading of published weights into a backbone."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit, initialize
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmpatch.checkpoint.layout import METAFORMER_LAYOUT, Layout, Tensors, find_layout, list_layouts
from mmpatch.checkpoint.match import (
    NOT_FINITE,
    Report,
    describe_problems,
    join_names,
    match_tensors,
)
from mmpatch.checkpoint.published import SCHEME, find_published, list_families, list_published
from mmpatch.compat.safe_load import HUB_FILES, download
from mmpatch.compat.weight_files import check_content, name_file, read_weights

#: Entries of a file that hold its state dict, the one to take first.
ENTRIES = ('state_dict', 'model', 'model_ema')
PREFIXES = ('module.', 'backbone.', 'net.')


def load_pretrained(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    prefix: str = '',
    adapt_input: bool = False,
) -> Report:
    """Load a published file into a backbone: every tensor, or none and an error.

    The layout is detected from the keys. The tensors may be in an entry ``state_dict``, ``model``
    or ``model_ema``, and their keys may start with ``module.``, ``backbone.`` or, in detectron2's
    ViTDet, ``backbone.net.``. Positions, kernels of patch embeddings and relative positions of
    another size are resampled. The report is logged.

    Args:
        model: A :class:`mmpatch.backbones.MetaFormer`.
        checkpoint: ``mmpatch://NAME`` (see :data:`PUBLISHED`), ``hf-hub:ORG/NAME``, a URL, a path,
            or a folder with a ``model.safetensors``.
        prefix: Prefix of the backbone's keys, if not ``backbone.``. The name of an
            entry chooses it: ``model_ema.`` takes the moving average although there is a ``model``.
        adapt_input: Whether to fit the stem to other input channels: one channel gets the sum over
            the file's channels, more repeat and rescale them.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be downloaded.
        pickle.UnpicklingError: If it holds types that could run code.
        RuntimeError: If it is damaged or no checkpoint.
        ValueError: If the name, the layout or the family is wrong, a key is unknown, a shape or a
            type differs, a tensor of the backbone is missing, or a number is not finite. The
            message lists the culprits.
    """
    source = os.fspath(checkpoint)
    family: Any = type(model)
    tensors, report = unwrap(read_checkpoint(source), source, prefix)
    layout = detect_layout(tensors, source)
    if family.LAYOUTS and layout not in (METAFORMER_LAYOUT, *family.LAYOUTS):
        owner = next(cls.__name__ for cls in list_families() if layout in cls.LAYOUTS)
        held = f'{source} holds a {owner} ({layout.name} layout)'
        raise ValueError(f'{held}, the model is a {family.__name__}')
    model.load_state_dict(fit_tensors(tensors, layout, model, report, adapt_input), strict=False)
    print_log(str(report), logger='current')
    return report


def load_init_cfg(model: Any, load: Callable[..., Report] = load_pretrained) -> bool:
    """Load the files that ``init_cfg`` names, after MMEngine's other initialisers in it.

    Args:
        model: A module of MMEngine.
        load: Called with the model and what a ``Pretrained`` says besides its type.

    Returns:
        Whether it names any; if not, nothing is done.

    Raises:
        TypeError: If it is not a dict or list of dicts.
        ValueError: If a ``Pretrained`` has no checkpoint; and see :func:`load_pretrained`.
    """
    name, cfgs = type(model).__name__, model.init_cfg or []
    pretrained: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for cfg in [cfgs] if isinstance(cfgs, dict | str) else cfgs:
        if not isinstance(cfg, dict):
            right = f"init_cfg=dict(type='Pretrained', checkpoint={cfg!r})"
            raise TypeError(f'{name}: init_cfg={cfg!r} is not a dict; write {right}')
        is_file = cfg.get('type') in ('Pretrained', PretrainedInit)
        (pretrained if is_file else others).append(cfg)
        if is_file and not cfg.get('checkpoint'):
            remedy = "names no file; add checkpoint='mmpatch://NAME', a URL or a path"
            raise ValueError(f"{name}: init_cfg=dict(type='Pretrained') {remedy}")
    if pretrained and not model.is_init:
        initialize(model, others)
        for cfg in pretrained:
            load(model, **{key: value for key, value in cfg.items() if key != 'type'})
        model._is_init = True
    return bool(pretrained)


def read_checkpoint(source: str) -> Any:
    """Content of ``mmpatch://NAME``, a URL, a path, or what else MMEngine loads from."""
    if source.startswith(SCHEME):
        entry = find_published(source)
        return read_weights(download(entry.url, sha256=entry.sha256))
    if (weights := Path(source).expanduser() / HUB_FILES[0]).is_file():
        return read_weights(weights)
    if not Path(source).expanduser().exists() and source in list_published():
        raise FileNotFoundError(f'checkpoint {source} does not exist; write {SCHEME}{source}')
    with name_file(source):  # some of MMEngine's schemes name nothing
        content = CheckpointLoader.load_checkpoint(source, 'cpu')
    check_content(content, source)
    return content


def unwrap(
    content: Any, source: str, prefix: str = '', prefixes: tuple[str, ...] = PREFIXES
) -> tuple[Tensors, Report]:
    """Tensors of the backbone without the prefixes of their keys, and a report on the others.

    Without a ``prefix``, keys lose those of ``prefixes`` that they have.
    """
    report, depth = Report(source), 0
    while entries := _list_entries(content):
        if (depth := depth + 1) > 8:  # one may contain itself
            raise ValueError(f'{source} has more than 8 entries inside one another')
        named = (entry for entry in entries if prefix.startswith(f'{entry}.'))
        entry = next(named, next((entry for entry in ENTRIES if entry in entries), None))
        if entry is None:
            break
        content = entries.pop(entry)
        report.entry, report.other_entries = entry, list(entries)
        if not any(str(key).startswith(prefix) for key in content):
            prefix = prefix.removeprefix(f'{entry}.')
    items = content.items() if isinstance(content, dict) else ()
    tensors = {key: value for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        choice = f"; choose an entry with prefix='{next(iter(entries))}.'" if entries else ''
        raise ValueError(f'{source} holds no tensors{choice}')
    if prefix and not any(key.removeprefix('module.').startswith(prefix) for key in tensors):
        keys = f'its keys are such as {join_names(list(tensors))}'
        raise ValueError(f'{source} has no key that starts with {prefix!r}; {keys}')
    for start in ('module.', prefix) if prefix else prefixes:
        if any(key.startswith(start) for key in tensors):
            report.dropped += (key for key in tensors if not key.startswith(start))
            tensors = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    return tensors, report


def detect_layout(tensors: Tensors, source: str) -> Layout:
    """Layout that the keys are of; ValueError if it is unknown."""
    if layout := find_layout(tensors):
        return layout
    known, keys = [layout.name for layout in list_layouts()], join_names(list(tensors))
    raise ValueError(f'{source}: unknown layout, with keys such as {keys}; known are {known}')


def fit_tensors(
    tensors: Tensors, layout: Layout, model: Any, report: Report, adapt_input: bool = False
) -> Tensors:
    """:func:`match_tensors`; if not all fit, ValueError with culprits and the arch that fits."""
    where = f'{report.source} ({layout.name} layout)'
    try:
        fitting, problems = match_tensors(tensors, layout, model, report, adapt_input)
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from None
    if problems:
        hint = ''
        with suppress(ValueError):
            if settings := find_arch(type(model), tensors, layout):
                hint = ', but ' + ', '.join(f'{key}={value!r}' for key, value in settings.items())
        lines = describe_problems(problems)
        raise ValueError(f'{where} does not fit this {type(model).__name__}{hint}; {lines}')
    return fitting


def find_arch(family: Any, tensors: Tensors, layout: Layout) -> dict[str, Any] | None:
    """Arguments with which a family fits a file without resampling; None if there are none."""
    named = {layout.rename(key): tensor for key, tensor in layout.convert(tensors).items()}
    for arch in family.ARCHS:
        with suppress(ValueError, LookupError):
            settings = {'arch': arch, **family.infer_settings(arch, named)}
            with torch.device('meta'):
                model = family(**settings)
            report = Report('')
            _, problems = match_tensors(tensors, layout, model, report)
            if not report.resampled and set(problems) <= {NOT_FINITE}:
                return settings
    return None


def _list_entries(content: Any) -> dict[str, dict[str, Any]]:
    """Entries of a file that hold tensors."""
    return {
        key: value
        for key, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, dict)
        and (key in ENTRIES or any(isinstance(tensor, Tensor) for tensor in value.values()))
    }
