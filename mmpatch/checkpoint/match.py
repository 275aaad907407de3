"""Which tensor of a file goes where in a model, and in which shape."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmpatch.checkpoint.layout import METAFORMER_LAYOUT, Layout, Tensors, find_layout
from mmpatch.layers import resample_patch_embed

#: Parts of the names of parameters that no published classifier has: they keep their values.
NEW_PARTS = ('out_norms.', '.rel_pos.')
#: Scales of 1 change nothing, so that a file without any fits a model that starts so.
SCALES = '.layer_scale'
NOT_FINITE = 'numbers that are not finite in'
#: Kernels that see the image, and kernels that embed patches.
INPUT_KERNELS = ('stem.conv.weight', 'stem.root.weight')
PATCH_KERNELS = ('stem.conv.weight', 'stem.proj.conv.weight')
#: Pixels of a patch's side, at most: resampling takes time and memory with their fourth power.
MAX_PATCH = 64


@dataclass
class Report:
    """What became of the tensors of a file and of the parameters of a model.

    Attributes:
        source: The file.
        layout: Name of its layout.
        entry: Entry of the file that was taken, such as 'state_dict'; empty if it has none.
        other_entries: Further entries that hold tensors, such as 'model_ema'.
        matched: Tensors of the model that took a tensor of the file.
        dropped: Keys that were not needed: classifiers, other parts of a whole model, stages or
            class tokens that the model leaves out.
        resampled: Matched tensors that have another size in the file, with both sizes.
        new: Tensors that no published file has; they keep their values.
    """

    source: str
    layout: str = ''
    entry: str = ''
    other_entries: list[str] = field(default_factory=list)
    matched: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        others = ', '.join(f'{entry!r} (prefix={entry + "."!r})' for entry in self.other_entries)
        return (
            f'{self.source} ({self.layout} layout): {len(self.matched)} tensors loaded'
            + (f' from {self.entry!r}, not from {others}' if others else '')
            + f'; resampled: {join_names(self.resampled)}; dropped: {join_names(self.dropped)}; '
            f'new: {join_names(self.new)}'
        )


def match_tensors(
    tensors: Tensors, layout: Layout, model: Any, report: Report, adapt_input: bool = False
) -> tuple[Tensors, dict[str, list[str]]]:
    """Name and shape the tensors of a file as a model's, and complete the report.

    Returns:
        Tensors by their names in the model; what is wrong -> names of the culprits.
    """
    wanted = model.state_dict()
    report.layout = layout.name
    matched: Tensors = {}
    unknown, surplus, wrong, integers = (list[str]() for _ in range(4))
    found = set()
    if layout.prepare_classifier:
        tensors = layout.prepare_classifier(tensors)
    for key, name, tensor in _place(tensors, layout, model, wanted):
        if not name:
            (report.dropped if name is None else unknown).append(key)
            if name is None and key == 'positions.pos_embed' and not model.positions.equals(tensor):
                wrong.append(f'{key} is not the sines and cosines of the model (pos_kind)')
            continue
        found.add(name)
        if name not in wanted or name in matched:
            surplus.append(key)
            continue
        like, is_weight = wanted[name], tensor.is_floating_point() or tensor.is_complex()
        here, there = tuple(tensor.shape), tuple(like.shape)
        if like.is_floating_point() and not is_weight:
            integers.append(f'{name} ({tensor.dtype})')
        elif (fitted := _fit_shape(name, tensor, like, model, adapt_input)) is None:
            wrong.append(f'{name}: {here} in the file, {there} in the model')
            of_inputs = here[:1] == there[:1] and here[1:2] != there[1:2]
            if name in INPUT_KERNELS and of_inputs and not adapt_input:
                wrong[-1] += ' (adapt_input=True fits the stem to other input channels)'
        else:
            matched[name] = fitted
            if not _is_alike(tensor, fitted):
                report.resampled.append(f'{name} {here} -> {there}')
    report.matched = list(matched)
    absent = [name for name in wanted if name not in found]
    scaled = any(SCALES in name for name in found)
    report.new = [
        name
        for name in absent
        if any(part in name for part in NEW_PARTS)
        or (SCALES in name and not scaled and _is_one(wanted[name]))
    ]
    problems = {
        'keys that no rule explains': unknown,
        'keys that the model has no tensor for': surplus,
        'wrong shapes': wrong,
        'integer or boolean tensors instead of weights': integers,
        'tensors of the backbone that the file lacks': [n for n in absent if n not in report.new],
        NOT_FINITE: [name for name, tensor in matched.items() if not tensor.isfinite().all()],
    }
    return matched, {what: names for what, names in problems.items() if names}


def rename_in_place(model: Any, state_dict: Tensors, prefix: str) -> None:
    """Rename a backbone's part of a state dict from a published layout to this package's names.

    Detectors and segmentors that other code trained then load as they are. Keys that no rule
    explains stay, and ``load_state_dict`` reports them.

    Raises:
        ValueError: If the tensors cannot be prepared.
    """
    part = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    layout = find_layout(part)
    if layout is None or layout is METAFORMER_LAYOUT:
        return
    wanted = model.state_dict()
    try:
        placed = list(_place(part, layout, model, wanted))
    except ValueError as error:
        raise ValueError(f'{prefix}* ({layout.name} layout): {error}') from None
    for key in part:
        del state_dict[prefix + key]
    for key, name, tensor in placed:
        if name is not None:
            like = wanted.get(name)
            fitted = None if like is None else _fit_shape(name, tensor, like, model, False)
            state_dict[prefix + (name or key)] = tensor if fitted is None else fitted


def join_names(names: Sequence[str], limit: int = 8) -> str:
    """Join the first names, and say how many more there are."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return (', '.join(names[:limit]) or 'none') + more


def compare_tensors(
    tensors: Tensors, wanted: Tensors, what: str = 'tensors'
) -> dict[str, list[str]]:
    """What is wrong with tensors that should be the wanted ones -> names of the culprits."""
    both = [(name, tensor, wanted[name]) for name, tensor in tensors.items() if name in wanted]
    return {
        'keys that the model has no tensor for': [name for name in tensors if name not in wanted],
        f'{what} that the file lacks': [name for name in wanted if name not in tensors],
        'wrong shapes': [
            f'{name}: {tuple(here.shape)} in the file, {tuple(there.shape)} in the model'
            for name, here, there in both
            if here.shape != there.shape
        ],
        'integer, boolean or complex tensors instead of weights': [
            f'{name} ({here.dtype})'
            for name, here, there in both
            if there.is_floating_point() and not here.is_floating_point()
        ],
        NOT_FINITE: [name for name, here, _ in both if not here.isfinite().all()],
    }


def describe_problems(problems: dict[str, list[str]]) -> str:
    """What is wrong, each with the names of its first culprits; empty if nothing is."""
    return '; '.join(f'{what}: {join_names(names)}' for what, names in problems.items() if names)


def _place(
    tensors: Tensors, layout: Layout, model: Any, wanted: Tensors
) -> Iterator[tuple[str, str | None, Tensor]]:
    """Yield keys, names in the model and tensors: None for a dropped one, '' for an unknown key."""
    grid = None if model.positions is None else model.positions.grid
    blocks = [f'stages.{i}.blocks.{j}.' for i, n in enumerate(model.depths) for j in range(n)]
    for key, tensor in layout.convert(tensors, grid).items():
        name = layout.rename(key)
        if name and name.startswith('blocks.'):  # counted through all stages
            _, number, rest = name.split('.', 2)
            name = blocks[int(number)] + rest if int(number) < len(blocks) else ''
        if name and name not in wanted:
            # the patch embedding of a hybrid, and mixers inside windows
            for part, inside in (('stem.', 'stem.proj.'), ('.token_mixer.', '.token_mixer.mixer.')):
                name = name.replace(part, inside) if name.replace(part, inside) in wanted else name
        yield key, None if name and _is_left_out(model, name) else name, tensor


def _is_left_out(model: Any, name: str) -> bool:
    """Whether a tensor belongs to a part that the model was told to leave out."""
    parts = name.split('.')
    if parts[0] == 'out_norms':
        return parts[1] not in model.out_norms
    if parts[0] == 'positions' and model.positions is not None:
        return getattr(model.positions, parts[1], name) is None
    left_out = map(str, range(len(model.stages), len(model.depths)))
    return parts[0] == 'stages' and parts[1] in left_out


def _fit_shape(name: str, tensor: Tensor, like: Tensor, model: Any, adapt: bool) -> Tensor | None:
    """Give a tensor the shape of ``like``: reshaped or resampled; None if that is impossible."""
    if _is_alike(tensor, like):
        return tensor.reshape(like.shape)  # a linear map as a 1x1 convolution, or the reverse
    if adapt and name in INPUT_KERNELS and tensor.ndim == 4 and tensor.shape[1] != like.shape[1]:
        count, channels = tensor.shape[1], like.shape[1]
        if channels == 1:
            tensor = tensor.sum(1, keepdim=True)
        else:
            tensor = tensor[:, [i % count for i in range(channels)]] * (count / channels)
    if tensor.ndim != like.ndim or tensor.shape == like.shape:
        return tensor if tensor.shape == like.shape else None
    if name in PATCH_KERNELS:
        patches = getattr(model.stem, 'proj', model.stem)
        of_patches = patches.pad and like.shape[2] == patches.stride
        if of_patches and tensor.shape[:2] == like.shape[:2] and max(tensor.shape[2:]) <= MAX_PATCH:
            tensor = resample_patch_embed(tensor, list(like.shape[2:]))
    elif 'positions.pos_embed' in name and tensor.shape[:2] == like.shape[:2]:
        tensor = model.get_submodule(name.rpartition('.')[0]).resample(tensor, like.shape[2:])
    elif '.rel_pos.' in name and tensor.shape[1:] == like.shape[1:]:
        tensor = F.interpolate(tensor.float().T[None], size=len(like), mode='linear')[0].T
    return tensor if tensor.shape == like.shape else None


def _is_one(tensor: Tensor) -> bool:
    return not tensor.is_meta and bool((tensor == 1).all())


def _is_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two shapes differ in nothing but ones."""
    return [n for n in a.shape if n != 1] == [n for n in b.shape if n != 1]
