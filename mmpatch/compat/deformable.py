"""Deformable attention and convolutions, as ``mmcv._ext`` has them.

mmcv gives convolutions the tensors to write to, and buffers that torchvision's operator does not
need. Offsets and masks have torchvision's layout.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401 makes torch.ops.torchvision
from torch import Tensor

#: Settings of deformable convolutions of both versions, in torchvision's order.
V1_SETTINGS = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
V2_SETTINGS = (
    *('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w'),
    *('group', 'deformable_group'),
)


def to_full_precision(maps: Tensor, *others: Tensor) -> list[Tensor]:
    """All in float64 if the maps are, else in float32: coordinates do not fit a half."""
    dtype = torch.promote_types(maps.dtype, torch.float32)
    return [tensor.to(dtype) for tensor in (maps, *others)]


def ms_deform_attn_forward(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (https://arxiv.org/abs/2010.04159, eq. 3).

    See :class:`mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction`.

    Args:
        value: (B, places of all levels, heads, channels of a head).
        shapes: (levels, 2), height and width of each.
        starts: (levels,), the first place of each.
        locations: (B, queries, heads, levels, points, 2) as x, y; 0 to 1 is the map.
        weights: (B, queries, heads, levels, points).
        im2col_step: Images that the compiled op takes at a time; without influence on the result.

    Returns:
        (B, queries, heads * channels of a head), of the type of ``value``.
    """
    maps, points, weights = to_full_precision(value, locations, weights)
    points, weights = (x.transpose(1, 2).flatten(0, 1) for x in (2 * points - 1, weights))
    out = torch.zeros((), dtype=maps.dtype, device=maps.device)
    levels = zip(shapes.tolist(), starts.tolist(), strict=True)
    for i, ((height, width), start) in enumerate(levels):
        level = maps[:, start : start + height * width].permute(0, 2, 3, 1).flatten(0, 1)
        level = level.unflatten(2, (height, width))
        found = F.grid_sample(level, points[:, :, i], align_corners=False)
        out = out + (found * weights[:, None, :, i]).sum(3)  # (B * heads, channels, queries)
    out = out.unflatten(0, (len(value), -1)).flatten(1, 2)
    return out.transpose(1, 2).contiguous().to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of :func:`ms_deform_attn_forward` into the last three tensors."""
    with torch.enable_grad():
        inputs = value, locations, weights = tuple(
            x.detach().requires_grad_() for x in (value, locations, weights)
        )
        out = ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step)
        found = torch.autograd.grad(out, inputs, grad)
    for into, gradient in zip((grad_value, grad_locations, grad_weights), found, strict=True):
        into.copy_(gradient)


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *buffers: Tensor, **settings: int
) -> None:
    """Deformable convolution (https://arxiv.org/abs/1703.06211) into ``output``.

    See :class:`mmcv.ops.DeformConv2d`.
    """
    given = _list_arguments((input, weight, offset), None, None, V1_SETTINGS, settings)
    output.copy_(torch.ops.torchvision.deform_conv2d(*given))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    *buffers: Tensor,
    **settings: int,
) -> None:
    """Gradients of :func:`deform_conv_forward` into ``grad_input`` and ``grad_offset``."""
    given = _list_arguments((input, weight, offset), None, None, V1_SETTINGS, settings)
    found = _differentiate(grad, given)
    grad_input.copy_(found[0])
    grad_offset.copy_(found[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad: Tensor,
    grad_weight: Tensor,
    *buffers: Tensor,
    scale: float,
    **settings: int,
) -> None:
    """``scale`` times the gradient of :func:`deform_conv_forward` into ``grad_weight``."""
    # The weight, which is not given, has no part in its own gradient; its shape has.
    given = _list_arguments((input, grad_weight, offset), None, None, V1_SETTINGS, settings)
    found = _differentiate(grad, given)
    grad_weight.copy_(scale * found[1])


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """Modulated deformable convolution (https://arxiv.org/abs/1811.11168) into ``output``.

    See :class:`mmcv.ops.ModulatedDeformConv2d`. mmdet's DyHead gives offsets and masks of a larger
    map than the output. Like mmcv, which published weights were trained with, this then reads
    what comes first in the memory of each image.
    """
    offset, mask = (_read_maps(x, output.shape[2:]) for x in (offset, mask))
    given = _list_arguments((input, weight, offset), mask, bias, V2_SETTINGS, settings)
    output.copy_(torch.ops.torchvision.deform_conv2d(*given))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad: Tensor,
    **settings: int,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward` into the five tensors before ``grad``."""
    offset, mask = (_read_maps(x, grad.shape[2:]) for x in (offset, mask))
    given = _list_arguments((input, weight, offset), mask, bias, V2_SETTINGS, settings)
    found = _differentiate(grad, given)
    grad_input.copy_(found[0])
    grad_weight.copy_(found[1])
    for tensor, gradient in ((grad_offset, found[2]), (grad_mask, found[3])):
        unread = tensor[0].numel() - gradient[0].numel()
        tensor.copy_(F.pad(gradient.flatten(1), (0, unread)).view(tensor.shape))
    if len(bias):
        grad_bias.copy_(found[4])


def _read_maps(tensor: Tensor, size: torch.Size) -> Tensor:
    """Maps (B, C, *size) out of the first numbers of each image of (B, C, H, W)."""
    shape = tensor.shape[1], *size
    return tensor.flatten(1)[:, : math.prod(shape)].unflatten(1, shape)


def _list_arguments(
    tensors: tuple[Tensor, ...],
    mask: Tensor | None,
    bias: Tensor | None,
    names: tuple[str, ...],
    settings: dict[str, int],
) -> list[Any]:
    """Arguments of torchvision's operator, which wants a mask and a bias even if unused."""
    maps, weight, _ = tensors
    scales = maps.new_zeros(len(maps), 1) if mask is None else mask
    shift = maps.new_zeros(len(weight)) if bias is None or not len(bias) else bias
    given = to_full_precision(*tensors, scales, shift)
    return [*given, *(settings[name] for name in names), mask is not None]


def _differentiate(grad: Tensor, given: list[Any]) -> list[Tensor]:
    """Gradients of the five tensors that :func:`_list_arguments` made."""
    found = torch.ops.torchvision._deform_conv2d_backward(grad.to(given[0].dtype), *given)
    _, weight, offset, _, _, *settings = given
    # Where a point is exactly one pixel off the map, as by zero offsets with padding, the gradient
    # has a step: torchvision takes the side of the map, mmcv the side without gradient.
    points, slopes = (x.unflatten(1, (-1, *weight.shape[2:], 2)) for x in (offset, found[2]))
    for axis in (0, 1):
        stride, padding, dilation = settings[axis:6:2]
        taps, steps = (torch.arange(points.shape[i + axis], device=grad.device) for i in (2, 5))
        place = (taps * dilation - padding)[:, None] + steps * stride
        for other in (1 - axis, 3 - axis):  # to (kernel rows, kernel columns, rows, columns)
            place = place.unsqueeze(other)
        off = points[:, :, :, :, axis] + place == -1
        slopes[:, :, :, :, axis].masked_fill_(off, 0)
    return found
