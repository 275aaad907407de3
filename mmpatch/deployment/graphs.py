"""Graphs: what of a model is exported, from pixels to maps, class maps or boxes.

They compute what the hosts' models compute in testing, by operations whose sizes stay symbolic in
:func:`torch.export.export`: batch, height and width of the images are free.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from mmpatch.deployment.refusals import find_kind
from mmpatch.deployment.symbolic import SymbolicSizes, copy_for_export

NEVER = -1e4  #: Logit of what is no candidate; its score is 0.


def make_graph(
    model: nn.Module,
    normalize: bool = False,
    preprocessor: nn.Module | None = None,
    input_size: Sequence[int] = (1, 3, 512, 512),
) -> 'Graph':
    """Copy of a model that can be exported, in evaluation mode.

    Args:
        model: A backbone, whose output is a tuple of maps; ``nn.Sequential(backbone, neck)``; an
            ``EncoderDecoder`` of mmseg that is tested on whole images; or a ``SingleStageDetector``
            of mmdet with anchors, sigmoid scores and ``DeltaXYWHBBoxCoder``, such as RetinaNet.
        normalize: Whether pixels in the range 0 to 255, in the channel order that the pipeline
            gives, are normalised in the graph, as ``preprocessor`` does it.
        preprocessor: By default ``model.data_preprocessor``. Segmentors and detectors pad images to
            its divisor, too.
        input_size: (B, C, H, W) of an example, at which maps are counted.

    Raises:
        ValueError: If such a model cannot be exported whole, or ``normalize`` lacks a preprocessor.
    """
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ValueError(f'make_graph takes a module, not {model!r}')
    preprocessor = preprocessor or getattr(model, 'data_preprocessor', None)
    if normalize and not hasattr(preprocessor, '_enable_normalize'):
        raise ValueError(f'{name} has no mean of pixels: normalize=True needs a preprocessor')
    kind, reason = find_kind(model, preprocessor)
    if reason:
        advice = 'export its backbone, or nn.Sequential(backbone, neck)'
        raise ValueError(f'{name} cannot be exported whole: {reason}; {advice}')
    graph = {'segmentor': SegmentorGraph, 'detector': DetectorGraph}.get(kind, Graph)
    return graph(model, normalize, preprocessor, input_size).requires_grad_(False).eval()


class Graph(nn.Module):
    """(B, 3, H, W) -> the maps of a backbone, or of a backbone with neck.

    Attributes:
        kind: 'backbone', 'pyramid', 'segmentor' or 'detector'.
        output_names: A name for each output.
    """

    kind = 'backbone'
    output_names: tuple[str, ...] = ()
    pixel_mean: Any
    pixel_std: Any

    def __init__(
        self, model: nn.Module, normalize: bool, preprocessor: Any, input_size: Sequence[int]
    ) -> None:
        super().__init__()
        hosts = isinstance(model, BaseModel)
        parts: Any = [model.backbone, getattr(model, 'neck', None)] if hosts else [model]
        self.network = copy_for_export(nn.Sequential(*(p for p in parts if p is not None)))
        self.normalize = normalize
        names = '_channel_conversion', 'channel_conversion'  # in mmdet and in mmseg
        self.known = preprocessor is not None
        self.swaps = any(getattr(preprocessor, name, False) for name in names)
        for name in ('mean', 'std'):
            value = getattr(preprocessor, name, None)  # (3, 1, 1)
            if value is None:
                setattr(self, f'pixel_{name}', None)  # torch 2.6 exports no buffer of None
            else:  # and names an operator `mean`, as a buffer must not be
                self.register_buffer(f'pixel_{name}', value.detach().clone().float())
        if hasattr(preprocessor, 'test_cfg'):  # mmseg's, which pads by this alone
            divisor = (preprocessor.test_cfg or {}).get('size_divisor')
        else:
            divisor = getattr(preprocessor, 'pad_size_divisor', None)
        self.divisor = divisor or 1
        self.pad_value = getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0))
        self.classes = (getattr(model, 'dataset_meta', None) or {}).get('classes')
        if type(self) is Graph:
            self._measure_maps(model, input_size)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps (B, C_i, H_i, W_i)."""
        with SymbolicSizes():
            return tuple(self.network(self._normalize(x)))

    def describe(self) -> dict[str, Any]:
        """What a user of the exported file must know, for JSON."""
        pixels: dict[str, Any] = {'channels': 'RGB' if self.swaps and not self.normalize else 'BGR'}
        if self.normalize:
            pixels['range'] = [0, 255]
        elif self.pixel_mean is not None:
            for name, values in (('mean', self.pixel_mean), ('std', self.pixel_std)):
                pixels[name] = [round(v, 4) for v in values.flatten().tolist()]
        about: dict[str, Any] = {'kind': self.kind, 'input': pixels if self.known else None}
        if type(self) is Graph:
            about |= {'out_channels': self.out_channels, 'out_strides': self.out_strides}
        elif self.classes is not None:
            about['classes'] = list(self.classes)
        return about

    def _normalize(self, x: Tensor) -> Tensor:
        if self.normalize and self.swaps:
            x = x[:, [2, 1, 0]]
        if not self.normalize or self.pixel_mean is None:
            return x
        return (x - self.pixel_mean) / self.pixel_std

    def _pad(self, x: Tensor) -> Tensor:
        """Normalised image with rows below and columns on the right, up to the divisor."""
        pads = 0, -x.shape[3] % self.divisor, 0, -x.shape[2] % self.divisor
        return x if self.divisor == 1 else F.pad(x, pads, value=self.pad_value)

    def _measure_maps(self, model: nn.Module, size: Sequence[int]) -> None:
        """Count the maps and ask for their channels and strides, without computing them."""
        network: Any = copy.deepcopy(self.network)  # which may keep a fake tensor
        like = next(network.parameters(), torch.empty(0))
        strides: Any = getattr(model, 'out_strides', None)
        known: dict[Any, int] = {}  # strides by sizes of maps
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            x = torch.empty(*size, dtype=like.dtype, device=like.device)
            maps = network(x)
            if isinstance(model, nn.Sequential):
                self.kind, strides = 'pyramid', getattr(model[-1], 'out_strides', None)
                inner = getattr(model[0], 'out_strides', None)
                if inner and not strides:  # of a neck that does not tell its own
                    shapes = (y.shape[2:] for y in network[0][0](x))
                    known = dict(zip(shapes, inner, strict=True))
        if not isinstance(maps, Sequence) or any(y.ndim != 4 for y in maps):
            raise ValueError(f'{type(model).__name__} does not give a tuple of maps (B, C, H, W)')
        self.output_names = tuple(f'map{i}' for i in range(len(maps)))
        self.out_channels = [y.shape[1] for y in maps]
        for y in maps:  # a pyramid goes on by halves
            stride = known.setdefault(y.shape[2:], round(size[2] / y.shape[2]))
            known.setdefault(torch.Size(-(-n // 2) for n in y.shape[2:]), 2 * stride)
        self.out_strides = list(strides or (known[y.shape[2:]] for y in maps))


class SegmentorGraph(Graph):
    """(B, 3, H, W) -> class map (B, H, W) int64, of mmseg's inference on whole images."""

    kind = 'segmentor'
    output_names = ('classes',)

    def __init__(self, model: Any, *settings: Any) -> None:
        super().__init__(model, *settings)
        self.head: Any = copy_for_export(model.decode_head)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> one (B, H, W) int64."""
        from mmseg.models.utils import resize

        padded = self._pad(self._normalize(x))
        defaults = resize.__defaults__
        resize.__defaults__ = *defaults[:-1], False  # its warning would freeze the sizes
        try:
            with SymbolicSizes():
                logits = self.head(self.network(padded))
        finally:
            resize.__defaults__ = defaults
        corners = self.head.align_corners
        logits = F.interpolate(logits, padded.shape[2:], mode='bilinear', align_corners=corners)
        if logits.shape[1] == 1:
            classes = (logits[:, 0].sigmoid() > self.head.threshold).long()
        else:
            classes = logits.argmax(1)
        for dim in (1, 2) if self.divisor > 1 else ():  # a slice would be asked if it is the whole
            classes = classes.index_select(dim, torch.arange(x.shape[dim + 1], device=x.device))
        return (classes,)


class DetectorGraph(Graph):
    """(B, 3, H, W) -> boxes (B, K, 4) in pixels, falling scores (B, K), labels (B, K) int64.

    K is ``test_cfg.max_per_img``, or the candidates of all levels if these are less. Rows in which
    nothing was found have box 0, score 0 and label -1. Steps are those of ``BaseDenseHead`` and
    ``DeltaXYWHBBoxCoder`` of mmdet.
    """

    kind = 'detector'
    output_names = ('boxes', 'scores', 'labels')
    means: Any
    stds: Any

    def __init__(self, model: Any, *settings: Any) -> None:
        super().__init__(model, *settings)
        head = model.bbox_head
        cfg, priors, coder = head.test_cfg, head.prior_generator, head.bbox_coder
        self.head = copy_for_export(head)
        self.strides = priors.strides
        for i, anchors in enumerate(priors.base_anchors):
            self.register_buffer(f'anchors{i}', anchors)
        for name in ('means', 'stds'):
            self.register_buffer(name, torch.tensor(getattr(coder, name), dtype=torch.float32))
        self.clips = coder.clip_border
        self.count, self.nms_pre = head.num_classes, cfg['nms_pre']
        self.score_thr = max(cfg.get('score_thr', 0), 0)
        self.min_size = cfg.get('min_bbox_size', -1)
        self.iou = cfg['nms']['iou_threshold']
        self.class_agnostic = cfg['nms'].get('class_agnostic', False)
        self.max_per_img = min(cfg['max_per_img'], self.nms_pre * len(self.strides))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> boxes, scores, labels."""
        with SymbolicSizes():
            maps = self.head(self.network(self._pad(self._normalize(x))))
        levels = [self._pick(i, *level) for i, level in enumerate(zip(*maps, strict=True))]
        scores, labels, deltas, anchors = (torch.cat(rows, 1) for rows in zip(*levels, strict=True))
        boxes = self._decode(anchors, deltas, x.shape[2:])
        valid = scores > self.score_thr
        if self.min_size >= 0:
            valid = valid & (boxes[..., 2:] - boxes[..., :2] > self.min_size).all(-1)
        kept = self._suppress(boxes, scores, labels, valid)
        scores, rows = torch.where(kept, scores, -1).topk(self.max_per_img, 1)
        found = scores > 0
        boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
        boxes = torch.where(found[..., None], boxes, 0)
        return boxes, scores.clamp(min=0), torch.where(found, labels.gather(1, rows), -1)

    def _pick(self, level: int, logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        """The ``nms_pre`` best pairs of anchor and class: scores, labels, deltas, anchors.

        Their anchors are among the ``nms_pre`` anchors whose best classes are best. Where a level
        has less, it is filled up with scores of 0.
        """
        height, width = logits.shape[2:]
        base: Any = getattr(self, f'anchors{level}')
        count, k = self.count, self.nms_pre
        logits = logits.permute(0, 2, 3, 1).reshape(logits.shape[0], -1, count)
        deltas = deltas.permute(0, 2, 3, 1).reshape(logits.shape[0], -1, 4)
        best, rows = F.pad(logits.amax(2), (k, 0), value=NEVER).topk(k, 1)
        rows = (rows - k).clamp(min=0)
        logits = logits.gather(1, rows[..., None].expand(-1, -1, count))
        logits = torch.where(best[..., None] > NEVER, logits, NEVER)
        logits, pairs = logits.flatten(1).topk(k, 1)
        rows = rows.gather(1, pairs // count)
        xs = torch.arange(width, device=base.device).to(base) * self.strides[level][0]
        ys = torch.arange(height, device=base.device).to(base) * self.strides[level][1]
        shifts = [xs.expand(height, width), ys[:, None].expand(height, width)] * 2
        anchors = (torch.stack(shifts, 2)[:, :, None] + base).reshape(-1, 4)[rows]
        deltas = deltas.gather(1, rows[..., None].expand(-1, -1, 4))
        return logits.float().sigmoid(), pairs % count, deltas, anchors

    def _decode(self, anchors: Tensor, deltas: Tensor, size: Sequence[int]) -> Tensor:
        """Boxes from anchors and deltas (B, n, 4), inside an image of ``size`` (H, W)."""
        deltas = deltas * self.stds + self.means
        centres, sizes = (
            (anchors[..., :2] + anchors[..., 2:]) / 2,
            anchors[..., 2:] - anchors[..., :2],
        )
        centres = centres + sizes * deltas[..., :2]
        limit = abs(math.log(16 / 1000))
        halves = sizes * deltas[..., 2:].clamp(-limit, limit).exp() / 2
        boxes = torch.stack([centres - halves, centres + halves], 2)  # (B, n, 2, xy)
        if self.clips:
            boxes = torch.stack(
                [boxes[..., 0].clamp(0, size[1]), boxes[..., 1].clamp(0, size[0])], 3
            )
        return boxes.flatten(2)

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Which of the valid (B, n) remain by non-maximum suppression in each image and class.

        Each image and class has a tile of its own, in a grid and not in a row, so that coordinates
        stay small and float32 exact.
        """
        from torchvision.ops import nms

        side = math.isqrt(self.count - 1) + 1
        if self.class_agnostic:
            labels = torch.zeros_like(labels)
        images = torch.arange(labels.shape[0], device=labels.device)[:, None]
        tiles = torch.stack([labels % side, labels // side + images * side] * 2, 2)
        boxes = boxes + tiles * (boxes.max() - boxes.min() + 1)
        # Two empty boxes more: an exported program takes no list of less than two.
        boxes = F.pad(boxes.flatten(0, 1), (0, 0, 0, 2))
        rows = F.pad(valid.flatten(), (0, 2), value=True).nonzero()[:, 0]
        kept = rows[nms(boxes[rows], F.pad(scores.flatten(), (0, 2), value=1.0)[rows], self.iou)]
        mask = torch.zeros_like(boxes[:, 0]).index_fill(0, kept, 1.0)
        return mask[:-2].view_as(scores) > 0


def measure_difference(
    kind: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], score_thr: float = 0.0
) -> float:
    """How far outputs of an engine are from those of torch.

    Of maps, the largest difference over the largest value; of class maps, the share of other
    pixels; of detections, the share of rows without partner: of the same label, its box within 0.1
    pixels, its score within 1e-3. Scores less than 1e-3 above the last one or ``score_thr`` need
    none.
    """
    if kind == 'segmentor':
        return (ours[0] != theirs[0]).float().mean().item()
    if kind != 'detector':
        pairs = zip(ours, theirs, strict=True)
        errors = [(a - b).abs().max() / b.abs().max().clamp(min=1e-30) for a, b in pairs]
        return torch.stack(errors).max().item()  # which, unlike Python's max, keeps NaN
    boxes, scores, labels = (a[:, :, None] - b[:, None] for a, b in zip(ours, theirs, strict=True))
    partners = (boxes.abs().amax(-1) < 0.1) & (scores.abs() < 1e-3) & (labels == 0)
    counted = [rows[1] > rows[1][:, -1:].clamp(min=score_thr) + 1e-3 for rows in (ours, theirs)]
    alone = (counted[0] & ~partners.any(2)).sum() + (counted[1] & ~partners.any(1)).sum()
    return alone.item() / max(sum(int(rows.sum()) for rows in counted), 1)
