"""Time a whole RetinaNet at 800x1344 with our backbone and with others, and read its peak memory.

    python tools/analysis/benchmark_models.py --out models.json

The detector is mmdet's, the same but for the backbone: PoolFormer-S12 of mmpatch; timm's in a
wrapper; and, for orientation, PVT-Tiny and ResNet-18 of mmdet. Times are taken in turns in one
process that keeps freed memory, peaks in a process for each model and use. Weights are random, so
predictions are few: what is timed is the network.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from benchmark import describe_machine, measure
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

import mmpatch
from mmpatch.engine.memory import keep_freed_memory
from mmpatch.registry import MODELS

SIZE = 800, 1344


@MODELS.register_module()
class TimmPoolFormer(nn.Module):
    """PoolFormer-S12 of timm as a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model('poolformer_s12', features_only=True, out_indices=(1, 2, 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps of strides 8, 16 and 32."""
        return self.model(x)


PVT = {
    'type': 'mmdet.PyramidVisionTransformer',
    'num_layers': [2, 2, 2, 2],
    'out_indices': (1, 2, 3),
}
RESNET = {'type': 'mmdet.ResNet', 'depth': 18, 'out_indices': (1, 2, 3), 'norm_eval': True}
BACKBONES: dict[str, tuple[dict[str, Any] | None, list[int]]] = {
    'timm PoolFormer-S12': ({'type': 'mmpatch.TimmPoolFormer'}, [128, 320, 512]),
    'mmpatch': (None, [128, 320, 512]),
    'mmdet PVT-Tiny': (PVT, [128, 320, 512]),
    'mmdet ResNet-18': (RESNET, [128, 256, 512]),
}
USES = ('inference', 'training')


class Detector:
    """A RetinaNet and an image with five boxes."""

    def __init__(self, name: str) -> None:
        cfg = Config.fromfile(
            mmpatch.config_path('poolformer/retinanet_poolformer-s12_fpn_1x_coco.py')
        )
        backbone, channels = BACKBONES[name]
        cfg.model.backbone.init_cfg = None
        if backbone is not None:
            cfg.model.backbone = backbone
        cfg.model.neck.in_channels = channels
        self.model = MODELS.build(cfg.model)
        self.image = torch.randn(1, 3, *SIZE)
        self.sample = DetDataSample(
            metainfo={
                'img_shape': SIZE,
                'ori_shape': SIZE,
                'pad_shape': SIZE,
                'batch_input_shape': SIZE,
                'scale_factor': (1.0, 1.0),
            }
        )
        corners = torch.rand(5, 2) * torch.tensor([SIZE[1] - 400.0, SIZE[0] - 400.0])
        boxes = torch.cat([corners, corners + 50 + 300 * torch.rand(5, 2)], 1)
        self.sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(5))

    def inference(self) -> None:
        """Predictions for the image."""
        self.model.eval()
        with torch.no_grad():
            self.model(self.image, [self.sample], mode='predict')

    def training(self) -> None:
        """Losses of the image, and their gradients."""
        self.model.train()
        losses = self.model(self.image, [self.sample], mode='loss')
        sum(sum(part) if isinstance(part, list) else part for part in losses.values()).backward()


def peak(name: str, use: str) -> float:
    """MiB that a process of its own holds at most, over what it holds with the model alone."""
    command = [sys.executable, __file__, '--peak', name, use]
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def print_peak(name: str, use: str) -> None:
    detector = Detector(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        getattr(detector, use)()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--repeats', type=int, default=7, help='of each model')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--peak', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    register_all_modules(init_default_scope=True)
    if args.peak:
        print_peak(*args.peak)
        return
    peaks = {use: {name: peak(name, use) for name in BACKBONES} for use in USES}
    detectors = {name: Detector(name) for name in BACKBONES}
    found: dict[str, Any] = {}
    for use in USES:
        seconds = measure({n: getattr(d, use) for n, d in detectors.items()}, args.repeats)
        base = next(iter(seconds.values()))
        print(f'RetinaNet, {use}, 1x3x{SIZE[0]}x{SIZE[1]}')
        for name, value in seconds.items():
            print(f'  {name:20} {value:7.3f} s  {base / value:5.2f} x  {peaks[use][name]:6.0f} MiB')
        sys.stdout.flush()
        found[use] = {'seconds': seconds, 'peak_mib': peaks[use]}
    if args.out:
        result = {'threads': args.threads, **describe_machine(), 'retinanet': found}
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
