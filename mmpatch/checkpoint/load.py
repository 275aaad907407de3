"""Strict loading of published weights into a backbone."""

import os
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmpatch.checkpoint.files import read
from mmpatch.checkpoint.layouts import LAYOUTS, Layout, layout_of
from mmpatch.checkpoint.match import Report, fits, match, shown

WRAPPERS = ('state_dict', 'model', 'model_ema')
PREFIXES = ('module.', 'backbone.')


def load_pretrained(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    prefix: str = '',
    adapt_input: bool = False,
) -> Report:
    """Load a published file into a backbone, every tensor or none.

    The layout is recognised from the keys; wrappers (``state_dict``, ``model``, ``model_ema``) and
    prefixes (``module.``, ``backbone.``) are taken off. Positions, kernels of patch embeddings and
    relative positions of another size are resampled. One log line tells all of it.

    Args:
        model: A :class:`mmpatch.backbones.MetaFormer`.
        checkpoint: ``mmpatch://NAME`` (see :data:`PUBLISHED`), a URL, or a path.
        prefix: Of the backbone's keys, where it is another than ``backbone.``.
        adapt_input: Whether a stem of other input channels is made from the file's: by the sum over
            its channels for one channel, by repeating and rescaling them for others.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If it is damaged.
        ValueError: If the name, the layout or the family is wrong, a key is explained by no rule, a
            shape differs, a tensor of the backbone is missing, or a number is not finite; the
            message lists the culprits.
    """
    source = os.fspath(checkpoint)
    tensors, outside = unwrapped(read(source), source, prefix)
    layout = recognised(tensors, source)
    _check_family(model, layout, source)
    fitting, report = matched(tensors, layout, model, source, adapt_input)
    model.load_state_dict(fitting, strict=False)
    report.dropped += outside
    print_log(str(report), logger='current')
    return report


def matched(
    tensors: dict[str, Tensor],
    layout: Layout,
    model: nn.Module,
    source: str,
    adapt_input: bool = False,
) -> tuple[dict[str, Tensor], Report]:
    """Tensors by their names in the model, and what became of each.

    Raises:
        ValueError: If anything does not fit; the message lists the culprits.
    """
    try:
        fitting, report, problems = match(tensors, layout, model, source, adapt_input)
    except ValueError as error:
        raise ValueError(f'{source} ({layout.name} layout): {error}') from None
    if problems:
        lines = [f'{what}: {shown(names)}' for what, names in problems.items()]
        family: Any = type(model)
        archs = [arch for arch in family.ARCHS if fits(family, arch, tensors, layout)]
        raise ValueError(
            f'{source} ({layout.name} layout) does not fit this {family.__name__}'
            + (f', but arch={archs[0]!r}; ' if archs else '; ')
            + '; '.join(lines)
        )
    return fitting, report


def unwrapped(content: Any, source: str, prefix: str = '') -> tuple[dict[str, Tensor], list[str]]:
    """Tensors without wrapper and prefix, and the keys of other parts of a whole model.

    Raises:
        ValueError: If there is no tensor, or none with the prefix.
    """
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
    starts = ('module.', prefix) if prefix else PREFIXES
    if prefix and not any(key.removeprefix('module.').startswith(prefix) for key in tensors):
        raise ValueError(
            f'{source} has no key that starts with {prefix!r}, but such as {shown(list(tensors))}'
        )
    for start in starts:
        if any(key.startswith(start) for key in tensors):
            outside += (key for key in tensors if not key.startswith(start))
            tensors = {
                key.removeprefix(start): value
                for key, value in tensors.items()
                if key.startswith(start)
            }
    return tensors, outside


def recognised(tensors: dict[str, Tensor], source: str) -> Layout:
    """Layout of the tensors.

    Raises:
        ValueError: If none is known that has such keys.
    """
    layout = layout_of(tensors)
    if layout is not None:
        return layout
    raise ValueError(
        f'{source}: unknown layout, with keys such as {shown(list(tensors))}; '
        f'known are {[layout.name for layout in LAYOUTS]}'
    )


def _check_family(model: nn.Module, layout: Layout, source: str) -> None:
    families = {layout.family for layout in LAYOUTS if layout.family}
    ours = families & {cls.__name__ for cls in type(model).__mro__}
    if ours and layout.family and layout.family not in ours:
        raise ValueError(
            f'{source} holds a {layout.family} ({layout.name} layout), the model is a '
            f'{" or ".join(ours)}'
        )
