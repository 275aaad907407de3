"""Which tensor of a file goes where in a model, and in which shape."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatch.checkpoint.layouts import MMPATCH, Layout, layout_of
from mmpatch.layers import resample_patch_embed

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
    inputs = False
    found = set()
    if layout.classifier:
        tensors = layout.classifier(tensors)
    if layout.prepare:
        tensors = layout.prepare(tensors, _grid(model))
    for key, tensor in tensors.items():
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
            inputs |= name in INPUTS and not adapt_input and here[1:2] != there[1:2]
            continue
        if not _alike(tensor, fitted):
            report.resampled.append(f'{name} {here} -> {there}')
        matched[name] = fitted
    report.matched = list(matched)
    absent = [name for name in wanted if name not in found]
    report.new = [name for name in absent if any(part in name for part in NEW)]
    problems = {
        'keys that no rule explains': unknown,
        'keys that the model has no tensor for': surplus,
        'wrong shapes': wrong + _input_advice(wrong, inputs),
        'tensors of the backbone that the file lacks': [n for n in absent if n not in report.new],
        NOT_FINITE: [name for name, tensor in matched.items() if not tensor.isfinite().all()],
    }
    return matched, report, {what: names for what, names in problems.items() if names}


def fits(family: Any, arch: str, tensors: dict[str, Tensor], layout: Layout, **kwargs: Any) -> bool:
    """Whether a file fits a network tensor by tensor, without resampling."""
    try:
        with torch.device('meta'):
            model = family(arch, **kwargs)
        _, report, problems = match(tensors, layout, model)
    except ValueError:
        return False
    return not report.resampled and set(problems) <= {NOT_FINITE}


def rename_in_place(model: Any, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Give a backbone's part of a state dict mmpatch's names, if it has a published layout's.

    So detectors and segmentors that other code trained load as they are; keys that no rule explains
    stay, and whoever loads reports them.
    """
    part = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    layout = layout_of(part)
    if layout is None or layout is MMPATCH:
        return
    wanted = model.state_dict()
    try:
        prepared = layout.prepare(part, _grid(model)) if layout.prepare else part
    except ValueError as error:
        raise ValueError(f'{prefix}* ({layout.name} layout): {error}') from None
    for key in part:
        del state_dict[prefix + key]
    for key, tensor in prepared.items():
        try:
            name = _placed(layout.rename(key), model, wanted)
        except KeyError:
            name = key
        if name is None or _left_out(model, name):
            continue
        fitted = _fitted(name, tensor, wanted[name], model, False) if name in wanted else None
        state_dict[prefix + name] = tensor if fitted is None else fitted


def shown(names: Sequence[str], limit: int = 8) -> str:
    """The first of some names, and how many more there are."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return (', '.join(names[:limit]) or 'none') + more


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
    if _alike(tensor, like):
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


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two shapes differ in nothing but ones."""
    return [n for n in a.shape if n != 1] == [n for n in b.shape if n != 1]


def _grid(model: Any) -> tuple[int, int] | None:
    """Grid of the model's positions."""
    if model.positions is None:
        return None
    height, width = model.positions.pos_embed.shape[2:]
    return height, width


def _other_inputs(kernel: Tensor, channels: int) -> Tensor:
    """Kernel (O, I, h, w) for another number of input channels."""
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    count = kernel.shape[1]
    times = -(-channels // count)
    return kernel.repeat(1, times, 1, 1)[:, :channels] * (count / channels)


def _input_advice(wrong: list[str], inputs: bool) -> list[str]:
    if not inputs or len(wrong) != 1:
        return []
    return ['(adapt_input=True makes a stem of other input channels)']
