"""What stands in for ``mmcv._ext``: mmcv's compiled ops, by torchvision's operators.

:mod:`mmpatch.compat.ops` loads this file under that name. Signatures are those that ``mmcv.ops``
calls; arguments that are "written" receive the results.
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


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Any other op. ``mmcv.ops`` looks all of them up when imported, so only a call may fail."""
    if name.startswith('__'):
        raise AttributeError(name)

    def op(*args: Any, **kwargs: Any) -> NoReturn:
        raise _unsupported(name)

    return op


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that greedy suppression keeps, best first.

    Args:
        boxes: (N, 4) corners x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: Boxes that overlap a better one by more are dropped.
        offset: 1 if a box includes its last row and column, else 0.

    Returns:
        (K,) int64.
    """
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
    """Soft-NMS (https://arxiv.org/abs/1704.04503): overlapping boxes lose score instead of place.

    Args:
        boxes: (N, 4) corners.
        scores: (N,).
        dets: (N, 5), whose first rows receive the boxes and their new scores.
        iou_threshold: Of methods 0 and 1.
        sigma: Of method 2.
        min_score: Boxes that fall below are dropped.
        method: 0 drops like plain NMS, 1 scales by 1 - IoU, 2 by exp(-IoU^2 / sigma).
        offset: 1 if a box includes its last row and column, else 0.

    Returns:
        (K,) int64, the boxes in the order in which they were taken.
    """
    areas = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
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
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (https://arxiv.org/abs/1703.06870) into ``output``.

    Args:
        input: (B, C, H, W).
        rois: (K, 5) image index and corners.
        output: (K, C, aligned_height, aligned_width), written.
        argmax_y: Of max pooling; unused.
        argmax_x: Of max pooling; unused.
        aligned_height: Bins.
        aligned_width: Bins.
        spatial_scale: Feature pixels a pixel of the image.
        sampling_ratio: Samples a bin and side; 0 for as many as the bin has pixels.
        pool_mode: 1 averages the samples.
        aligned: Whether coordinates are shifted by half a pixel.

    Raises:
        NotImplementedError: For max pooling (``pool_mode`` 0).
    """
    if pool_mode != 1:
        raise _unsupported('roi_align with pool_mode="max"')
    size = (aligned_height, aligned_width)
    maps, boxes = _to_full_precision(input, rois)
    output.copy_(ops.roi_align(maps, boxes, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` into ``grad_input`` (B, C, H, W)."""
    grad, boxes = _to_full_precision(grad_output, rois)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad,
            boxes,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _to_full_precision(maps: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 if the maps are, else in float32: coordinates do not fit a half."""
    dtype = torch.promote_types(maps.dtype, torch.float32)
    return maps.to(dtype), rois.to(dtype)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (https://arxiv.org/abs/1708.02002) into ``output``; mmdet calls it on CUDA.

    Args:
        input: (N, C) logits.
        target: (N,) class, C for the background.
        weight: Must be empty.
        output: (N, C), written.
        gamma: Focus.
        alpha: Weight of the positives.

    Raises:
        NotImplementedError: For class weights.
    """
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of each entry of :func:`sigmoid_focal_loss_forward` into ``grad_input`` (N, C)."""
    with torch.enable_grad():
        logits = input.detach().requires_grad_()
        loss = _focal_loss(logits, target, weight, gamma, alpha).sum()
        grad_input.copy_(torch.autograd.grad(loss, logits)[0])


def _focal_loss(
    input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    if weight.numel():
        raise _unsupported('sigmoid_focal_loss with class weights')
    classes = input.shape[1]
    one_hot = F.one_hot(target, classes + 1)[:, :classes].to(input.dtype)
    return ops.sigmoid_focal_loss(input, one_hot, alpha, gamma)


def _unsupported(op: str) -> NotImplementedError:
    return NotImplementedError(
        f'mmcv op {op} needs compiled mmcv; mmpatch stands in only for nms, softnms, roi_align and '
        f'sigmoid_focal_loss. To install it: {INSTALL_COMMAND}'
    )
