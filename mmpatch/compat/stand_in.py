"""What stands in for ``mmcv._ext``: mmcv's compiled ops, by operators of torch and torchvision.

:mod:`mmpatch.compat.ops` loads this file under that name. ``mmcv.ops`` documents the arguments and
calls every function with tensors by position and everything else by name.
"""

import re
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

from mmpatch.compat.deformable import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
    to_full_precision,
)

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'roi_align_backward',
    'roi_align_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softnms',
]

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
    maps, boxes = to_full_precision(input, rois)
    scale, height, width, ratio, aligned = (settings[name] for name in ROI_SETTINGS)
    output.copy_(ops.roi_align(maps, boxes, (height, width), scale, ratio, aligned))


def roi_align_backward(
    grad: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, out: Tensor, **settings: Any
) -> None:
    """Gradient of :func:`roi_align_forward` into ``out`` (B, C, H, W)."""
    maps, boxes = to_full_precision(grad, rois)
    *bins, ratio, aligned = (settings[name] for name in ROI_SETTINGS)
    backward = torch.ops.torchvision._roi_align_backward
    out.copy_(backward(maps, boxes, *bins, *out.shape, ratio, aligned))


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


def list_ops() -> list[str]:
    """Names of the ops that this module stands in for."""
    return [*dict.fromkeys(re.split('_(?:for|back)ward', name)[0] for name in __all__)]


def _unsupported(op: str) -> NotImplementedError:
    return NotImplementedError(
        f'mmcv op {op} needs compiled mmcv; mmpatch stands in only for {", ".join(list_ops())}. '
        f'To install it: {INSTALL_COMMAND}'
    )
