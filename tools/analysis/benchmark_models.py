"""Time a whole RetinaNet at 800x1344 with our backbone and with others, and read its peak memory.

    python tools/analysis/benchmark_models.py --out docs/benchmark_models.json
    python tools/analysis/benchmark_models.py --table docs/benchmark_models.json

The detector is mmdet's and differs only in the backbone: PoolFormer-S12 of mmpatch; timm's; and,
for comparison, PVT-Tiny and ResNet-18 of mmdet. For inference, backbone and neck of mmpatch's
detector are also exported to OpenVINO, for images of any size. Times are taken in turns in one
process that keeps freed memory, peaks in one process per model and use. Weights are random, so
there are few predictions: most of the time is that of the network.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmark import describe_machine, measure
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData
from networks import TOLERANCE, read_flags
from report import USES, get_precision, make_model_table, write_tables
from torch import Tensor, nn

import mmpatch
from mmpatch.engine.errors import report_errors
from mmpatch.engine.memory import keep_freed_memory
from mmpatch.registry import MODELS

SIZE = 800, 1344


TIMM = {
    'type': 'mmpatch.TimmBackbone',
    'model_name': 'poolformer_s12',
    'out_indices': (1, 2, 3),
}
PVT = {
    'type': 'mmdet.PyramidVisionTransformer',
    'num_layers': [2, 2, 2, 2],
    'out_indices': (1, 2, 3),
}
RESNET = {'type': 'mmdet.ResNet', 'depth': 18, 'out_indices': (1, 2, 3), 'norm_eval': True}
BACKBONES: dict[str, tuple[dict[str, Any] | None, list[int]]] = {
    'timm PoolFormer-S12': (TIMM, [128, 320, 512]),
    'mmpatch': (None, [128, 320, 512]),
    'mmdet PVT-Tiny': (PVT, [128, 320, 512]),
    'mmdet ResNet-18': (RESNET, [128, 256, 512]),
}
EXPORTED = {f'mmpatch exported openvino {p}': p for p in ('f32', 'bf16')}


class Detector:
    """A RetinaNet and an image with five boxes; ``folder`` has the file of an exported one."""

    def __init__(self, name: str, folder: Path) -> None:
        torch.manual_seed(0)
        cfg = Config.fromfile(
            mmpatch.config_path('poolformer/retinanet_poolformer-s12_fpn_1x_coco.py')
        )
        cfg.model.backbone.init_cfg = None
        if name in EXPORTED:
            from mmpatch.deployment import ExportedBackbone

            cfg.model.backbone = {'type': ExportedBackbone, 'file': str(folder / f'{name}.xml')}
            cfg.model.neck = None  # is in the file
        else:
            backbone, cfg.model.neck.in_channels = BACKBONES[name]
            cfg.model.backbone = backbone or cfg.model.backbone
        self.model = MODELS.build(cfg.model)
        torch.manual_seed(0)  # the same image for all
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

    def extract(self) -> tuple[Tensor, ...]:
        """Maps of the neck."""
        self.model.eval()
        with torch.no_grad():
            return tuple(self.model.extract_feat(self.image))


def export(folder: Path) -> None:
    """Write backbone and neck of mmpatch's detector, in each precision."""
    model = Detector('mmpatch', folder).model.eval()
    for name, precision in EXPORTED.items():
        graph = nn.Sequential(model.backbone, model.neck).eval()
        file = str(folder / f'{name}.xml')
        mmpatch.export(graph, file, input_size=(1, 3, *SIZE), precision=precision)


def find_errors(detectors: dict[str, Detector]) -> dict[str, float]:
    """Largest relative error of a map of each exported detector.

    Raises:
        ValueError: If a float32 one computes something else than the detector in torch.
    """
    expected = detectors['mmpatch'].extract()
    errors = {}
    for name in (name for name in EXPORTED if name in detectors):
        pairs = zip(detectors[name].extract(), expected, strict=True)
        errors[name] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        if get_precision(name) == 'f32' and not errors[name] < TOLERANCE:
            raise ValueError(f'{name}: relative error {errors[name]:.1e}')
    return errors


def peak(name: str, use: str, folder: Path, threads: int) -> float:
    """MiB that a process of its own holds at most, over what it holds after its imports."""
    command = [sys.executable, __file__, '--threads', str(threads)]
    command += ['--peak', name, use, str(folder)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(result.stdout.split()[-1])


def print_peak(name: str, use: str, folder: str) -> None:
    before = read_memory('VmRSS')
    detector = Detector(name, Path(folder))
    for _ in range(2):
        getattr(detector, use)()
    print(read_memory('VmHWM') - before)


def read_memory(key: str) -> float:
    """MiB of a line of Linux's status; ``ru_maxrss`` would start at the peak of the parent."""
    words = Path('/proc/self/status').read_text().split()
    return int(words[words.index(f'{key}:') + 1]) / 1024


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times, peaks and errors of all detectors."""
    names = [*BACKBONES, *(n for n, p in EXPORTED.items() if p == 'f32' or read_flags())]
    export(folder)
    listed = {'inference': names, 'training': list(BACKBONES)}
    peaks = {
        use: {name: peak(name, use, folder, args.threads) for name in listed[use]} for use in USES
    }
    detectors = {name: Detector(name, folder) for name in names}
    errors = {'inference': find_errors(detectors), 'training': {}}
    found = {}
    for use in USES:
        forms = {name: getattr(detectors[name], use) for name in listed[use]}
        seconds = measure(forms, args.repeats)
        found[use] = {'seconds': seconds, 'peak_mib': peaks[use], 'error': errors[use]}
    command = ' '.join(['python', 'tools/analysis/benchmark_models.py', *sys.argv[1:]])
    result = {'command': command, 'threads': args.threads, **describe_machine()}
    return {**result, 'input': (1, 3, *SIZE), 'retinanet': found}


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--repeats', type=int, default=9, help='turns of each model')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--table', type=Path, help='take a JSON file, measure nothing')
    parser.add_argument('--write', type=Path, help='page to put the tables into')
    parser.add_argument('--peak', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        result = json.loads(args.table.read_text())
    else:
        torch.set_num_threads(args.threads)
        keep_freed_memory()
        register_all_modules(init_default_scope=True)
        if args.peak:
            print_peak(*args.peak)
            return
        with tempfile.TemporaryDirectory() as folder:
            result = run(args, Path(folder))
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + '\n')
    table = make_model_table(result)
    if args.write:
        write_tables(args.write, 'benchmark_models.py', table)
    print(table)


if __name__ == '__main__':
    main()
