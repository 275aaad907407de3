"""Parameters, multiply-adds and activations of networks, by part.

A multiply-add is one of a convolution or of a product of matrices, those of attention included:
queries with keys, affinities with values, relative positions. As in published tables, norms,
activations, pooling, interpolation, sampling (RoIAlign, deformable attention) and sums count
nothing. Activations are the numbers that these convolutions and products put out, as in timm's
tables.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from mmpatch.engine.model import as_list

#: Where the stages of a backbone are, in the networks of mmpatch, mmdet, mmseg and timm.
STAGE = re.compile(
    r'(?!stem\.)(?:.+?\.)??(?:stages|layers|layer|blocks|out_norms)[._]?(\d+)(?:\.|$)'
)
#: More stages than this are the blocks of an isotropic network, which are one part.
MOST_STAGES = 8


#: Parts of a network in the order in which they run.
PARTS = (
    'stem',
    *(f'stage {i + 1}' for i in range(MOST_STAGES)),
    *('blocks', 'neck', 'head', 'auxiliary head'),
)


@dataclass
class Count:
    """What a part of a network has and computes; depthwise convolutions are counted in ``macs``."""

    parameters: int = 0
    macs: int = 0
    depthwise_macs: int = 0
    activations: int = 0

    def __add__(self, other: 'Count') -> 'Count':
        return Count(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def count(model: Any, size: tuple[int, int], with_heads: bool = True) -> dict[str, Count]:
    """Count a backbone, or a detector or segmentor, for one image.

    Two-stage detectors are counted with as many regions as ``test_cfg`` lets through: boxes of the
    first stage (``rpn.max_per_img``) and masks of the last (``rcnn.max_per_img``).

    Args:
        model: On the meta device, where nothing is computed and no memory is needed. Heads run on
            zeros on the CPU, as some look at numbers, without their convolutions and products.
        size: Rows and columns of the image.
        with_heads: Whether heads run, too; those of DINO and Mask2Former take a while.

    Returns:
        Counts of those of :data:`PARTS` that there are. The stem is all of the backbone that is in
        no stage; an auxiliary head runs in training only.
    """
    whole = hasattr(model, 'backbone')
    names = name_parts(model, 'backbone.' if whole else '')
    counter = _Counter(names[''])
    seen: set[int] = set()
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                counter.counts[names[name]].parameters += parameter.numel()
    backbone = model.backbone if whole else model
    channels = getattr(backbone, 'in_channels', 3)
    x = torch.empty(1, channels, *size, device='meta')
    model.eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # attention as products of matrices
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        for name, module in model.named_modules():
            stack.enter_context(counter.follow(module, names[name]))
        stack.enter_context(counter)
        maps = model.extract_feat(x) if whole else model(x)
        if whole and with_heads:
            _run_heads(model, x, maps)
    return {part: found for part, found in counter.counts.items() if found != Count()}


def name_parts(model: nn.Module, start: str) -> dict[str, str]:
    """Part that each module belongs to, by its name; ``start`` is that of the backbone's names."""
    names = [name for name, _ in model.named_modules()]
    inner = {name: name.removeprefix(start) for name in names if f'{name}.'.startswith(start)}
    found = {name: match for name, rest in inner.items() if (match := STAGE.match(rest))}
    numbers = {int(match[1]) for match in found.values()}
    first = min(numbers, default=0)
    parts = {}
    for name in names:
        if name in found:
            number = int(found[name][1]) - first + 1
            parts[name] = 'blocks' if len(numbers) > MOST_STAGES else f'stage {number}'
        elif name in inner:
            parts[name] = 'stem'
        else:
            top = name.split('.')[0]
            parts[name] = {'neck': 'neck', 'auxiliary_head': 'auxiliary head'}.get(top, 'head')
    return parts


class _Counter(TorchDispatchMode):
    """Counts what runs, for the part whose module runs innermost."""

    def __init__(self, outside: str) -> None:
        super().__init__()
        self.running = [outside]
        self.counts = {part: Count() for part in PARTS}

    @contextmanager
    def follow(self, module: nn.Module, part: str) -> Iterator[None]:
        """Within it, the part runs while the module does."""
        enter = module.register_forward_pre_hook(lambda *_: self.running.append(part))
        leave = module.register_forward_hook(lambda *_: self.running.pop() and None)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (formula := flop_registry.get(func._overloadpacket)) is None:
            return func(*args, **kwargs)
        shapes = tree_map(lambda x: x.to('meta') if isinstance(x, Tensor) else x, (args, kwargs))
        out = func(*shapes[0], **shapes[1])
        part = self.counts[self.running[-1]]
        macs = formula(*args, **kwargs, out_val=out) // 2
        part.macs += macs
        if 'convolution' in str(func) and 1 < args[8] == args[0].shape[1]:
            part.depthwise_macs += macs  # as many groups as channels
        part.activations += out.numel()
        device = next(x.device for x in tree_leaves(args) if isinstance(x, Tensor))
        return out if device.type == 'meta' else torch.zeros_like(out, device=device)


def _run_heads(model: Any, x: Tensor, maps: Any) -> None:
    """Run the heads of a detector or segmentor as far as their outputs, as the hosts count them."""
    maps = [torch.zeros_like(level, device='cpu') for level in maps]
    x = torch.zeros_like(x, device='cpu')
    heads = [part for name, part in model.named_children() if name not in ('backbone', 'neck')]
    model.to_empty(device='cpu', recurse=False)
    for part in heads:
        part.to_empty(device='cpu')
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.zero_()
    if hasattr(model, 'roi_head'):
        _run_stages(model, maps)
        return
    model.extract_feat = lambda _: maps
    model(x, _make_samples(model, x), mode='tensor')


def _run_stages(model: Any, maps: list[Tensor]) -> None:
    """Run the heads of a two-stage detector, the later ones on their number of regions."""
    if model.with_rpn:
        model.rpn_head(maps)
    head = model.roi_head
    rcnn, rpn = model.test_cfg.rcnn, model.test_cfg.get('rpn') or {}
    for kind, number in (('bbox', rpn.get('max_per_img', 1000)), ('mask', rcnn.max_per_img)):
        extractors = as_list(getattr(head, f'{kind}_roi_extractor', None))
        extractors = extractors or as_list(head.bbox_roi_extractor)
        for i, part in enumerate(as_list(getattr(head, f'{kind}_head', None))):
            extractor = extractors[min(i, len(extractors) - 1)]
            size = extractor.roi_layers[0].output_size
            part(maps[0].new_zeros(number, extractor.out_channels, *size))


def _make_samples(model: Any, x: Tensor) -> list[Any] | None:
    """What mmdet says of the image to heads that ask for its size; None for segmentors."""
    if hasattr(model, 'decode_head'):
        return None
    from mmdet.structures import DetDataSample

    size = tuple(x.shape[2:])
    meta = {'batch_input_shape': size, 'img_shape': size, 'pad_shape': size, 'ori_shape': size}
    return [DetDataSample(metainfo=meta)]
