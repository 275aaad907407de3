"""Operations whose traces would be bound to sizes of their example, and others in their place."""

import copy
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode


class SymbolicSizes(TorchFunctionMode):
    """Context in which poolings keep their sizes symbolic in :func:`torch.export.export`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call another function for poolings, and any other as it is."""
        if func is F.adaptive_avg_pool2d:
            return pool_to_grid(*args, **kwargs or {})
        if func is F.max_pool2d:
            args, kwargs = cut_for_pooling(*args, **kwargs or {}), {}
        return func(*args, **kwargs or {})


def pool_to_grid(x: Tensor, output_size: Any) -> Tensor:
    """``F.adaptive_avg_pool2d`` as two products: ONNX has none of dynamic sizes."""
    for dim, cells in zip((2, 3), _pair(output_size), strict=True):
        cell, size = torch.arange(cells, device=x.device)[:, None], x.shape[dim]
        place = torch.arange(size, device=x.device)
        starts, ends = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
        inside = ((place >= starts) & (place < ends)).to(x.dtype)
        weights = inside / inside.sum(1, keepdim=True)
        x = weights @ x if dim == 2 else x @ weights.mT
    return x


def cut_for_pooling(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Any, ...]:
    """Arguments of the same ``max_pool2d`` on an input that ends where its last window ends.

    Without it an exported program accepts only sizes with the remainder of the example's.
    """
    stride = stride or kernel_size
    axes = zip(*map(_pair, (kernel_size, stride, padding, dilation)), strict=True)
    for dim, (k, s, p, d) in zip((2, 3), axes, strict=True):
        window, length = d * (k - 1) + 1, x.shape[dim] + 2 * p
        if ceil_mode and window < p + s:
            raise ValueError(f'max_pool2d of kernel {k}, stride {s} with ceil_mode: no export')
        used = (length - window + (s - 1 if ceil_mode else 0)) // s * s + window
        exact = ceil_mode or p >= s - 1  # then padding alone gives this length
        pads = p, used - length + p if exact else p
        if exact or p:
            x = F.pad(x, pads if dim == 3 else (0, 0, *pads), value=-math.inf)
        if not exact:  # a slice would be asked whether it is the whole
            x = x.index_select(dim, torch.arange(used, device=x.device))
    return x, kernel_size, stride, 0, dilation


def copy_for_export(network: nn.Module) -> nn.Module:
    """Copy in evaluation mode, with ``Upsample`` of mmseg, which calls int(), replaced."""
    network = nn.ModuleList([copy.deepcopy(network)])
    for parent in list(network.modules()):
        children: list[tuple[str, Any]] = list(parent.named_children())
        for name, layer in children:
            if type(layer).__name__ == 'Upsample' and type(layer).__module__.startswith('mmseg.'):
                settings = layer.size, layer.scale_factor, layer.mode, layer.align_corners
                whole = all(f == int(f) for f in _pair(layer.scale_factor or 1))
                setattr(parent, name, nn.Upsample(*settings, None if whole else True))
    return network.eval()[0]


def make_openvino_extensions() -> list[Any]:
    """What ``openvino.convert_model(program, extension=...)`` lacks: NMS, quotients of sizes."""
    from openvino import opset13 as ops
    from openvino.frontend.pytorch import ConversionExtension

    def convert_nms(context: Any) -> list[Any]:
        boxes, scores, iou = (context.get_input(i) for i in range(3))
        zero, one, two = (ops.constant(i, np.int64) for i in range(3))
        scores = ops.unsqueeze(ops.unsqueeze(scores, zero), zero)
        settings = ops.constant(2**31 - 1, np.int64), ops.convert(iou, 'f32')
        rows = ops.non_max_suppression(ops.unsqueeze(boxes, zero), scores, *settings)
        return ops.gather(ops.convert(rows.output(0), 'i64'), two, one).outputs()

    def convert_remainder(context: Any) -> list[Any]:
        return ops.floor_mod(*(ops.convert(context.get_input(i), 'i64') for i in (0, 1))).outputs()

    def convert_quotient(context: Any) -> list[Any]:
        return ops.divide(*(ops.convert(context.get_input(i), 'f32') for i in (0, 1))).outputs()

    rules = {
        'torchvision.nms.default': convert_nms,
        '<built-in function mod>': convert_remainder,
        '<built-in function truediv>': convert_quotient,
    }
    return [ConversionExtension(name, rule) for name, rule in rules.items()]
