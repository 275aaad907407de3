"""Strict loading of published weights into a backbone."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpatch.checkpoint.files import read
from mmpatch.checkpoint.layouts import LAYOUTS, Layout
from mmpatch.layers import resample_patch_embed

WRAPPERS = ('state_dict', 'model', 'model_ema')
PREFIXES = ('module.', 'backbone.')
#: Parts of parameter names that published classifiers cannot have: they start as they are built.
NEW = ('out_norms.', '.rel_pos.')
NOT_FINITE = 'numbers that are not finite in'
#: Kernels that see the image, and kernels that embed patches.
INPUTS = ('stem.conv.weight', 'stem.root.weight')
PATCHES = ('stem.conv.weight', 'stem.proj.conv.weight')


@dataclass
class Report:
    """What became of the tensors of a file and of the parameters of a model.

    Attributes:
        source: The file.
        layout: Name of its layout.
        matched: Tensors of the model that took a tensor of the file.
        dropped: Keys that a rule drops (classifiers, other parts of a whole model, stages or class
            tokens that the model leaves out).
        resampled: Those matched that have another size in the file, with both sizes.
        new: Tensors of the model that no published file has, as they were built.
    """

    source: str
    layout: str
    matched: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f'{self.source} ({self.layout} layout): {len(self.matched)} tensors loaded; '
            f'resampled: {shown(self.resampled)}; dropped: {shown(self.dropped)}; '
            f'new: {shown(self.new)}'
        )


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
        prefix: A further prefix of the backbone's keys.
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
    try:
        matched, report, problems = match(tensors, layout, model, source, adapt_input)
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
    model.load_state_dict(matched, strict=False)
    report.dropped += outside
    print_log(str(report), logger='current')
    return report


def rename_in_place(model: Any, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Give a backbone's part of a state dict mmpatch's names, if it has a published layout's.

    So detectors and segmentors that other code trained load as they are; keys that no rule explains
    stay, and whoever loads reports them.
    """
    part = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    layout = next((layout for layout in LAYOUTS if layout.recognises(part)), None)
    if layout is None or layout is LAYOUTS[0]:
        return
    wanted = model.state_dict()
    for key in part:
        del state_dict[prefix + key]
    for key, tensor in (layout.prepare(part) if layout.prepare else part).items():
        try:
            name = _placed(layout.rename(key), model, wanted)
        except KeyError:
            name = key
        if name is None or _left_out(model, name):
            continue
        if name in wanted and tensor.numel() == wanted[name].numel():
            tensor = tensor.reshape(wanted[name].shape)
        state_dict[prefix + name] = tensor


def match(
    tensors: dict[str, Tensor],
    layout: Layout,
    model: Any,
    source: str = '',
    adapt_input: bool = False,
) -> tuple[dict[str, Tensor], Report, dict[str, list[str]]]:
    """Tensors by their names in the model, what became of each, and lists of what is wrong."""
    wanted = model.state_dict()
    matched: dict[str, Tensor] = {}
    report = Report(source, layout.name)
    unknown, surplus, wrong = [], [], []
    found = set()
    for key, tensor in (layout.prepare(tensors) if layout.prepare else tensors).items():
        try:
            name = _placed(layout.rename(key), model, wanted)
        except KeyError:
            unknown.append(key)
            continue
        if name is None or _left_out(model, name):
            report.dropped.append(key)
            continue
        found.add(name)
        if name not in wanted:
            surplus.append(key)
            continue
        fitted = _fitted(name, tensor, wanted[name], model, adapt_input)
        here, there = tuple(tensor.shape), tuple(wanted[name].shape)
        if fitted is None:
            wrong.append(f'{name}: {here} in the file, {there} in the model')
            continue
        if fitted.numel() != tensor.numel():
            report.resampled.append(f'{name} {here} -> {there}')
        matched[name] = fitted
    report.matched = list(matched)
    absent = [name for name in wanted if name not in found]
    report.new = [name for name in absent if any(part in name for part in NEW)]
    problems = {
        'keys that no rule explains': unknown,
        'keys that the model has no tensor for': surplus,
        'wrong shapes': wrong + _input_advice(wrong, adapt_input),
        'tensors of the backbone that the file lacks': [n for n in absent if n not in report.new],
        NOT_FINITE: [name for name, tensor in matched.items() if not tensor.isfinite().all()],
    }
    return matched, report, {what: names for what, names in problems.items() if names}


def unwrapped(content: Any, source: str, prefix: str = '') -> tuple[dict[str, Tensor], list[str]]:
    """Tensors without wrapper and prefix, and the keys of other parts of a whole model.

    Raises:
        ValueError: If there is no tensor.
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
    for start in (*PREFIXES, prefix):
        if start and any(key.startswith(start) for key in tensors):
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
    for layout in LAYOUTS:
        if layout.recognises(tensors):
            return layout
    raise ValueError(
        f'{source}: unknown layout, with keys such as {shown(list(tensors))}; '
        f'known are {[layout.name for layout in LAYOUTS]}'
    )


def fits(family: Any, arch: str, tensors: dict[str, Tensor], layout: Layout, **kwargs: Any) -> bool:
    """Whether a file fits a network tensor by tensor, without resampling."""
    try:
        with torch.device('meta'):
            model = family(arch, **kwargs)
        _, report, problems = match(tensors, layout, model)
    except ValueError:
        return False
    return not report.resampled and set(problems) <= {NOT_FINITE}


def shown(names: Sequence[str], limit: int = 8) -> str:
    """The first of some names, and how many more there are."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return (', '.join(names[:limit]) or 'none') + more


def _check_family(model: nn.Module, layout: Layout, source: str) -> None:
    families = {layout.family for layout in LAYOUTS if layout.family}
    ours = families & {cls.__name__ for cls in type(model).__mro__}
    if ours and layout.family and layout.family not in ours:
        raise ValueError(
            f'{source} holds a {layout.family} ({layout.name} layout), the model is a '
            f'{" or ".join(ours)}'
        )


def _placed(name: str | None, model: Any, wanted: dict[str, Tensor]) -> str | None:
    """Name in the model: ``blocks.N.`` counted through its stages, mixers inside their windows.

    Raises:
        KeyError: If the model has fewer blocks.
    """
    if name is None:
        return None
    if name.startswith('blocks.'):
        _, number, rest = name.split('.', 2)
        block = int(number)
        for stage, depth in enumerate(model.depths):
            if block < depth:
                name = f'stages.{stage}.blocks.{block}.{rest}'
                break
            block -= depth
        else:
            raise KeyError(name)
    if name.startswith('stem.conv.') and 'stem.proj.conv.weight' in wanted and name not in wanted:
        return name.replace('stem.conv.', 'stem.proj.conv.')
    inside = name.replace('.token_mixer.', '.token_mixer.mixer.')
    return inside if name not in wanted and inside in wanted else name


def _left_out(model: Any, name: str) -> bool:
    """Whether a tensor belongs to a part that the model was told to leave out."""
    parts = name.split('.')
    if parts[0] == 'out_norms':
        return parts[1] not in model.out_norms
    if parts[0] == 'positions' and parts[1].startswith('cls_'):
        return model.positions is not None and not model.positions.num_tokens
    return parts[0] == 'stages' and len(model.stages) <= int(parts[1]) < len(model.depths)


def _fitted(name: str, tensor: Tensor, like: Tensor, model: Any, adapt: bool) -> Tensor | None:
    """The tensor in the shape of ``like``: as it is, reshaped, or resampled; None if it cannot."""
    if tensor.shape == like.shape:
        return tensor
    if [n for n in tensor.shape if n != 1] == [n for n in like.shape if n != 1]:
        return tensor.reshape(like.shape)  # a linear map as a 1x1 convolution, or the reverse
    if adapt and name in INPUTS and tensor.ndim == 4 and tensor.shape[1] != like.shape[1]:
        tensor = _other_inputs(tensor, like.shape[1])
    if name in PATCHES:
        patches = getattr(model.stem, 'proj', model.stem)
        of_patches = patches.pad and like.shape[2] == patches.stride
        if of_patches and tensor.shape[:2] == like.shape[:2] and tensor.shape != like.shape:
            tensor = resample_patch_embed(tensor, list(like.shape[2:]))
    elif name == 'positions.pos_embed' and tensor.shape[:2] == like.shape[:2]:
        tensor = F.interpolate(
            tensor.float(),
            size=like.shape[2:],
            mode='bicubic',
            align_corners=False,
            antialias=model.positions.antialias,
        )
    elif '.rel_pos.' in name and tensor.shape[1:] == like.shape[1:]:
        tensor = F.interpolate(tensor.float().T[None], size=len(like), mode='linear')[0].T
    return tensor if tensor.shape == like.shape else None


def _other_inputs(kernel: Tensor, channels: int) -> Tensor:
    """Kernel (O, I, h, w) for another number of input channels."""
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    count = kernel.shape[1]
    times = -(-channels // count)
    return kernel.repeat(1, times, 1, 1)[:, :channels] * (count / channels)


def _input_advice(wrong: list[str], adapt: bool) -> list[str]:
    if adapt or len(wrong) != 1 or not wrong[0].startswith(INPUTS):
        return []
    return ['(adapt_input=True makes a stem of other input channels)']
