"""What stands in for ``mmcv._ext``: mmcv's compiled ops, by operators of torch and torchvision.

:mod:`mmpatch.compat.ops` loads this file under that name. ``mmcv.ops`` documents the arguments and
calls every function with tensors by position and everything else by name.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

INSTALL_COMMAND = (
    'pip uninstall mmcv-lite; pip install "setuptools<81" wheel ninja psutil; '
    'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir mmcv==2.1.0'
)
#: Arguments of RoIAlign, in torchvision's order.
ROI_SETTINGS = 'spatial_scale', 'aligned_height', 'aligned_width', 'sampling_ratio', 'aligned'


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Any other op. ``mmcv.ops`` looks all of them up when imported, so only a call may fail."""
    if name.startswith('__'):
        raise AttributeError(name)

    def op(*args: Any, **kwargs: Any) -> NoReturn:
        raise _unsupported(name)

    return op


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes (N, 4) to keep, best first: see :func:`mmcv.ops.nms`."""
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return ops.nms(boxes.float(), scores.float(), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (https://arxiv.org/abs/1704.04503): see :func:`mmcv.ops.soft_nms`.

    ``method`` 0 drops like plain NMS, 1 scales by 1 - IoU, 2 by exp(-IoU^2 / sigma). The first rows
    of ``dets`` (N, 5) receive the boxes and their new scores.

    Returns:
        (K,) int64, the boxes in the order in which they were taken.
    """
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(1)
    left = torch.arange(len(boxes))
    scores = scores.clone()
    taken: list[int] = []
    while len(left):
        best = int(left[scores[left].argmax()])
        dets[len(taken), :4], dets[len(taken), 4] = boxes[best], scores[best]
        taken.append(best)
        left = left[left != best]
        low = torch.maximum(boxes[left, :2], boxes[best, :2])
        high = torch.minimum(boxes[left, 2:], boxes[best, 2:])
        inside = (high - low + offset).clamp(min=0).prod(1)
        iou = inside / (areas[left] + areas[best] - inside)
        if method == 2:
            scores[left] *= torch.exp(-iou * iou / sigma)
        else:
            factor = torch.zeros_like(iou) if method == 0 else 1 - iou
            scores[left] *= torch.where(iou >= iou_threshold, factor, 1.0)
        left = left[scores[left] >= min_score]
    return torch.tensor(taken, dtype=torch.int64)


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, *argmax: Tensor, pool_mode: int, **settings: Any
) -> None:
    """RoIAlign (https://arxiv.org/abs/1703.06870) into ``output``: see :class:`mmcv.ops.RoIAlign`.

    Raises:
        NotImplementedError: For max pooling (``pool_mode`` 0).
    """
    if pool_mode != 1:
        raise _unsupported('roi_align with pool_mode="max"')
    maps, boxes = _to_full_precision(input, rois)
    scale, height, width, ratio, aligned = (settings[name] for name in ROI_SETTINGS)
    output.copy_(ops.roi_align(maps, boxes, (height, width), scale, ratio, aligned))


def roi_align_backward(
    grad: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, out: Tensor, **settings: Any
) -> None:
    """Gradient of :func:`roi_align_forward` into ``out`` (B, C, H, W)."""
    maps, boxes = _to_full_precision(grad, rois)
    *bins, ratio, aligned = (settings[name] for name in ROI_SETTINGS)
    backward = torch.ops.torchvision._roi_align_backward
    out.copy_(backward(maps, boxes, *bins, *out.shape, ratio, aligned))


def _to_full_precision(maps: Tensor, *others: Tensor) -> list[Tensor]:
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
    maps, points, weights = _to_full_precision(value, locations, weights)
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


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (https://arxiv.org/abs/1708.02002) into ``output``; mmdet calls it on CUDA.

    See :func:`mmcv.ops.sigmoid_focal_loss`.

    Raises:
        NotImplementedError: For class weights.
    """
    if weight.numel():
        raise _unsupported('sigmoid_focal_loss with class weights')
    classes = input.shape[1]
    one_hot = F.one_hot(target, classes + 1)[:, :classes].to(input.dtype)
    output.copy_(ops.sigmoid_focal_loss(input, one_hot, alpha, gamma))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of each entry of :func:`sigmoid_focal_loss_forward` into ``grad_input`` (N, C)."""
    with torch.enable_grad():
        logits, loss = input.detach().requires_grad_(), torch.empty_like(input)
        sigmoid_focal_loss_forward(logits, target, weight, loss, gamma, alpha)
        grad_input.copy_(torch.autograd.grad(loss.sum(), logits)[0])


def _unsupported(op: str) -> NotImplementedError:
    return NotImplementedError(
        f'mmcv op {op} needs compiled mmcv; mmpatch stands in only for nms, softnms, roi_align, '
        f'sigmoid_focal_loss and ms_deform_attn. To install it: {INSTALL_COMMAND}'
    )
