"""Strict loading of published weights into a backbone."""

import os
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmpatch.checkpoint.layouts import LAYOUTS, Layout
from mmpatch.checkpoint.published import PUBLISHED

WRAPPERS = ('state_dict', 'model')
PREFIXES = ('module.', 'backbone.')


def load_pretrained(model: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
    """Load a published file into a backbone, every tensor or none.

    The layout is recognised from the keys. One log line says how many tensors matched, which were
    dropped (classifiers, heads of a whole model, stages that ``out_indices`` leaves out), and which
    parameters are new (output norms, which no classifier has).

    Args:
        model: A :class:`mmpatch.backbones.MetaFormer`.
        checkpoint: ``mmpatch://NAME`` (see :data:`PUBLISHED`), a URL, or a path.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the name or the layout is unknown, a key is explained by no rule, a shape
            differs, or a tensor of the backbone is missing; the message lists the culprits.
    """
    source = os.fspath(checkpoint)
    content = CheckpointLoader.load_checkpoint(_resolved(source), 'cpu')
    tensors, dropped = _unwrapped(content, source)
    layout = _recognised(tensors, source)
    matched, left_out, problems = _matched(tensors, layout, model)
    if problems:
        lines = [f'{what}: {_shown(names)}' for what, names in problems.items()]
        raise ValueError(
            f'{source} ({layout.name} layout) does not fit {type(model).__name__}; '
            + '; '.join(lines)
        )
    new = model.load_state_dict(matched, strict=False).missing_keys
    print_log(
        f'{source} ({layout.name} layout): {len(matched)} tensors loaded; '
        f'dropped: {_shown(dropped + left_out)}; new: {_shown(new)}',
        logger='current',
    )


def _matched(
    tensors: dict[str, Tensor], layout: Layout, model: nn.Module
) -> tuple[dict[str, Tensor], list[str], dict[str, list[str]]]:
    """Tensors by their names in the model, keys that are dropped, and lists of what is wrong."""
    wanted = model.state_dict()
    matched: dict[str, Tensor] = {}
    found: set[str] = set()
    dropped, unknown, surplus, wrong = [], [], [], []
    for key, tensor in tensors.items():
        try:
            name = _placed(layout.rename(key), model)
        except KeyError:
            unknown.append(key)
            continue
        if name is None or _beyond(model, name):
            dropped.append(key)
            continue
        found.add(name)
        if name not in wanted:
            surplus.append(key)
        elif tensor.shape != wanted[name].shape:
            here, there = tuple(tensor.shape), tuple(wanted[name].shape)
            wrong.append(f'{name}: {here} in the file, {there} in the model')
        else:
            matched[name] = tensor
    lacking = [name for name in wanted if name not in found and not name.startswith('out_norms.')]
    problems = {
        'keys that no rule explains': unknown,
        'keys that the model has no tensor for': surplus,
        'wrong shapes': wrong,
        'tensors of the backbone that the file lacks': lacking,
    }
    return matched, dropped, {what: names for what, names in problems.items() if names}


def _resolved(source: str) -> str:
    if not source.startswith('mmpatch://'):
        return source
    name = source.removeprefix('mmpatch://')
    if name not in PUBLISHED:
        raise ValueError(f'{source}: no published file of that name; there are {list(PUBLISHED)}')
    return PUBLISHED[name].url


def _unwrapped(content: Any, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors without wrapper and prefix, and the keys of other parts of a whole model."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = (
        {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise ValueError(f'{source} holds no tensors')
    outside: list[str] = []
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in tensors):
            outside += (key for key in tensors if not key.startswith(prefix))
            tensors = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
    return tensors, outside


def _recognised(tensors: dict[str, Tensor], source: str) -> Layout:
    for layout in LAYOUTS:
        if layout.marker in tensors:
            return layout
    raise ValueError(
        f'{source}: unknown layout, with keys such as {_shown(list(tensors))}; '
        f'known are {[layout.name for layout in LAYOUTS]}'
    )


def _placed(name: str | None, model: Any) -> str | None:
    """``blocks.N.`` counted through the network -> ``stages.I.blocks.J.`` of the model.

    Raises:
        KeyError: If the model has fewer blocks.
    """
    if name is None or not name.startswith('blocks.'):
        return name
    _, number, rest = name.split('.', 2)
    block = int(number)
    for stage, depth in enumerate(model.depths):
        if block < depth:
            return f'stages.{stage}.blocks.{block}.{rest}'
        block -= depth
    raise KeyError(name)


def _beyond(model: Any, name: str) -> bool:
    """Whether a tensor belongs to a stage, or its output norm, that the model does not build."""
    parts = name.split('.')
    if parts[0] == 'out_norms':
        return parts[1] not in model.out_norms
    return parts[0] == 'stages' and len(model.stages) <= int(parts[1]) < len(model.depths)


def _shown(names: list[str], limit: int = 8) -> str:
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return (', '.join(names[:limit]) or 'none') + more
