"""Draw data, train a detector and a segmentor from scratch, evaluate and visualise them.

    python tools/demo.py --seed 0

This takes about ten minutes on two CPU cores and writes ``summary.json``, ``predictions.png`` and
``curves.png`` to ``work_dirs/demo``. Every step runs one of the project's tools. The first line of
each log in that folder is its command.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib as mpl
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from pycocotools.coco import COCO

from mmpatch.engine.errors import report_errors  # importing mmpatch first stands in for mmcv

mpl.use('Agg')
import matplotlib.pyplot as plt
from mmdet.apis import inference_detector, init_detector
from mmdet.datasets import CocoDataset
from mmseg.apis import inference_model, init_model
from mmseg.datasets import ADE20KDataset

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / 'work_dirs' / 'demo'
DATA = ROOT / 'data' / 'toy'
#: Boxes with a lower score are not drawn.
SCORE = 0.5
PACKAGES = ('torch', 'torchvision', 'timm', 'mmengine', 'mmcv-lite', 'mmdet', 'mmsegmentation')


class Task(NamedTuple):
    """Config of a task, its metrics here and in the host, and the host's unit."""

    config: str
    metrics: dict[str, str]
    unit: float


TASKS = {
    'detector': Task(
        'configs/demo/retinanet_poolformer-nano_fpn_toy-coco.py',
        {'box_ap': 'coco/bbox_mAP', 'box_ap50': 'coco/bbox_mAP_50'},
        1.0,
    ),
    'segmentor': Task('configs/demo/fpn_poolformer-nano_toy-ade20k.py', {'miou': 'mIoU'}, 0.01),
}


class Phases:
    """Runs commands one after the other, shows their progress, and records their seconds."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds: dict[str, float] = {}
        self.start = time.monotonic()

    def run(
        self, name: str, command: list[str], progress: Callable[[], tuple[float, str]] | None = None
    ) -> None:
        """Run one command in the project; ``progress`` returns the share done and a text."""
        start = shown = time.monotonic()
        log = OUT / f'{name.replace(" ", "-")}.log'
        with log.open('w') as file:
            print('python', *command, file=file, flush=True)
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )
            while process.poll() is None:
                time.sleep(0.5)
                now = time.monotonic()
                if sys.stdout.isatty() or now - shown >= 10:
                    shown = now
                    share, text = progress() if progress else (0.0, '')
                    left = (now - start) * (1 / share - 1) if share else None
                    note = '' if left is None else f', {format_seconds(left)} left'
                    self.show(f'{name:28} {format_seconds(now - start)}{note}  {text}')
        seconds = time.monotonic() - start
        if process.returncode:
            tail = '\n'.join(log.read_text().splitlines()[-25:])
            sys.exit(f'\n{name} failed; the end of {log}:\n\n{tail}')
        self.show(f'{name:28} {format_seconds(seconds)} done', last=True)
        self.seconds[name] = round(seconds, 1)

    def show(self, text: str, last: bool = False) -> None:
        """Print one line; on a terminal the next one overwrites it."""
        line = f'[{len(self.seconds) + 1}/{self.count}] {text}'
        line += f'  ({format_seconds(time.monotonic() - self.start)} in all)'
        if sys.stdout.isatty():
            print(f'\r\033[K{line}', end='\n' if last else '', flush=True)
        else:
            print(line, flush=True)


def format_seconds(seconds: float) -> str:
    return f'{int(seconds) // 60}:{int(seconds) % 60:02}'


def read_scalars(name: str) -> list[dict[str, Any]]:
    """Read what the training of a task has logged so far, line by line."""
    lines: list[dict[str, Any]] = []
    for file in sorted((OUT / name).glob('*/vis_data/scalars.json')):
        # the last line may be half written
        lines += (json.loads(line) for line in file.read_text().splitlines() if line[-1:] == '}')
    return lines


def count_iterations(cfg: Config) -> int:
    loop = cfg.train_cfg
    if 'max_iters' in loop:
        return loop.max_iters
    annotations = json.loads((DATA / 'coco/annotations/instances_train2017.json').read_text())
    return loop.max_epochs * -(-len(annotations['images']) // cfg.train_dataloader.batch_size)


def save_untrained(cfg: Config, path: Path, seed: int) -> None:
    """Save the model of a config with its initial weights."""
    init_default_scope(cfg.default_scope)
    MMLogger.get_current_instance().setLevel('WARNING')  # it lists every parameter
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save({'state_dict': model.state_dict()}, path)


def evaluate_and_train(phases: Phases, name: str, seed: int) -> tuple[dict, dict]:
    """Return the metrics of the untrained and of the trained model."""
    config, metrics, unit = TASKS[name]
    cfg = Config.fromfile(ROOT / config)
    checkpoint, folder = OUT / f'{name}-untrained.pth', OUT / f'{name}-untrained'
    save_untrained(cfg, checkpoint, seed)
    test = ['tools/test.py', config, str(checkpoint), '--work-dir', str(folder)]
    phases.run(f'evaluate untrained {name}', test)
    before = json.loads(next(folder.glob('*/*.json')).read_text())
    total = count_iterations(cfg)

    def progress() -> tuple[float, str]:
        losses = [line for line in read_scalars(name) if 'loss' in line]
        losses = losses or [{'iter': 0, 'loss': 0.0}]
        done = losses[-1]['iter']
        return done / total, f'iteration {done}/{total}, loss {losses[-1]["loss"]:.3f}'

    train = ['tools/train.py', config, '--work-dir', str(OUT / name)]
    phases.run(f'train {name}', [*train, '--cfg-options', f'randomness.seed={seed}'], progress)
    first = next(iter(metrics.values()))
    after = next(line for line in reversed(read_scalars(name)) if first in line)
    # CocoMetric reports nothing for a model that finds nothing
    return tuple(
        {key: round(unit * line.get(metric, 0.0), 4) for key, metric in metrics.items()}
        for line in (before, after)
    )


# --- pictures -------------------------------------------------------------------------------------


def draw_objects(axes: plt.Axes, picture: np.ndarray, objects: list[tuple], title: str) -> None:
    """Draw boxes with class names, and scores where there are any."""
    names = CocoDataset.METAINFO['classes']
    axes.imshow(picture)
    axes.set_title(title, fontsize=10)
    taken: list[tuple[float, float]] = []
    for label, (x1, y1, x2, y2), score in objects:
        tint = plt.cm.tab10(names.index(label.removesuffix(' crowd')) % 10)
        axes.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=tint, lw=2))
        text = label if score is None else f'{label} {score:.2f}'
        style = {'color': 'white', 'fontsize': 7, 'va': 'bottom'}
        # at the bottom of the box where another label would be hidden
        hides = any(abs(x1 - x) < 40 and abs(max(y1, 9) - y) < 10 for x, y in taken)
        taken.append((x1, y2 if hides else max(y1, 9)))
        box = {'fc': tint, 'ec': 'none', 'pad': 1}
        axes.text(*taken[-1], text, bbox=box, clip_on=True, **style)


def draw_regions(axes: plt.Axes, picture: np.ndarray, label: np.ndarray, title: str) -> None:
    """Draw classes as colours over the picture, each named once, where it is widest."""
    axes.imshow(picture)
    axes.set_title(title, fontsize=10)
    classes, palette = ADE20KDataset.METAINFO['classes'], ADE20KDataset.METAINFO['palette']
    tint = np.zeros((*label.shape, 4))
    for k in np.unique(label):
        if k == 255:
            continue
        region = label == k
        tint[region] = (*np.array(palette[k]) / 255, 0.65)
        distance = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 3)
        y, x = np.unravel_index(distance.argmax(), distance.shape)
        if distance.max() > 5:
            box = {'fc': (0, 0, 0, 0.6), 'ec': 'none', 'pad': 1}
            style = {'color': 'white', 'fontsize': 7, 'ha': 'center', 'va': 'center'}
            axes.text(x, y, classes[k], bbox=box, **style)
    axes.imshow(tint)


def draw_predictions(path: Path, rows: int = 4) -> None:
    """Draw ground truth beside predictions: boxes on the left, label maps on the right."""
    figure, axes = plt.subplots(rows, 4, figsize=(15, 3.1 * rows), layout='constrained')
    coco = COCO(str(DATA / 'coco/annotations/instances_val2017.json'))
    names = CocoDataset.METAINFO['classes']
    detector = init_detector(*find_trained('detector'), device='cpu')
    full = [i for i in coco.getImgIds() if len(coco.getAnnIds(i, iscrowd=0)) >= 3]
    for row, image in zip(axes, full, strict=False):
        file = DATA / 'coco/val2017' / coco.imgs[image]['file_name']
        picture = cv2.imread(str(file))[..., ::-1]
        truth = [
            (
                coco.cats[a['category_id']]['name'] + ' crowd' * a['iscrowd'],
                (x, y, x + w, y + h),
                None,
            )
            for a in coco.loadAnns(coco.getAnnIds(image))
            for x, y, w, h in [a['bbox']]
        ]
        found = inference_detector(detector, str(file)).pred_instances
        seen = [
            (names[k], tuple(box.tolist()), float(score))
            for k, box, score in zip(found.labels, found.bboxes, found.scores, strict=True)
            if score > SCORE
        ]
        draw_objects(row[0], picture, truth, 'ground truth')
        draw_objects(row[1], picture, seen, f'RetinaNet, scores over {SCORE}')
    segmentor = init_model(*find_trained('segmentor'), device='cpu')
    files = sorted((DATA / 'ade/images/validation').glob('*.jpg'))
    label_of = {f: DATA / 'ade/annotations/validation' / f'{f.stem}.png' for f in files}
    files.sort(key=lambda f: -len(np.unique(cv2.imread(str(label_of[f]), 0))))
    for row, file in zip(axes, files, strict=False):
        picture = cv2.imread(str(file))[..., ::-1]
        truth = cv2.imread(str(label_of[file]), 0) - np.uint8(1)  # 0 is unlabelled: 255
        seen = inference_model(segmentor, str(file)).pred_sem_seg.data[0].numpy()
        draw_regions(row[2], picture, truth, 'ground truth')
        draw_regions(row[3], picture, seen, 'Semantic FPN')
    for one in axes.flat:
        one.axis('off')
    figure.savefig(path, dpi=100)


def find_trained(name: str) -> tuple[str, str]:
    """Paths of the config and of the last checkpoint of a task."""
    return str(ROOT / TASKS[name].config), (OUT / name / 'last_checkpoint').read_text().strip()


def draw_curves(path: Path) -> None:
    """Draw losses and metrics over the iterations."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout='constrained')
    for one, (name, task) in zip(axes, TASKS.items(), strict=True):
        log = read_scalars(name)
        losses = [(line['iter'], line['loss']) for line in log if 'loss' in line]
        # an evaluation counts epochs where the training does
        steps = losses[-1][0] / max(line['step'] for line in log if 'loss' not in line)
        one.plot(*zip(*losses, strict=True), color='0.5', label='loss')
        one.set(title=name, xlabel='iteration', ylabel='loss', ylim=(0, None))
        right = one.twinx()
        right.set(ylabel='metric', ylim=(0, 1))
        for key, metric in task.metrics.items():
            values = [(k['step'] * steps, task.unit * k[metric]) for k in log if metric in k]
            right.plot(*zip(*values, strict=True), 'o-', label=key)
        lines = [line for part in (one, right) for line in part.get_lines()]
        below = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.15), 'ncols': len(lines)}
        one.legend(lines, [line.get_label() for line in lines], **below)
    figure.savefig(path, dpi=100)


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the data and the training')
    seed = parser.parse_args().seed
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    print(f'mmpatch demo, seed {seed}: about ten minutes on two idle cores. Logs are in {OUT}.')
    phases = Phases(2 + 2 * len(TASKS))
    shutil.rmtree(DATA, ignore_errors=True)
    phases.run('draw data', ['tools/make_toy_data.py', '--out', str(DATA), '--seed', str(seed)])
    untrained: dict[str, float] = {}
    trained: dict[str, float] = {}
    for name in TASKS:
        before, after = evaluate_and_train(phases, name, seed)
        untrained |= before
        trained |= after
    start = time.monotonic()
    draw_predictions(OUT / 'predictions.png')
    draw_curves(OUT / 'curves.png')
    phases.show(f'{"draw pictures":28} {format_seconds(time.monotonic() - start)} done', last=True)
    phases.seconds['draw pictures'] = round(time.monotonic() - start, 1)
    summary = {
        **trained,
        'untrained': untrained,
        'seed': seed,
        'seconds': {**phases.seconds, 'total': round(sum(phases.seconds.values()), 1)},
        'versions': {'python': platform.python_version(), **{p: version(p) for p in PACKAGES}},
    }
    (OUT / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    print(f'\n{"metric":12}{"untrained":>12}{"trained":>12}')
    for key, value in trained.items():
        print(f'{key:12}{untrained[key]:12.3f}{value:12.3f}')
    print(f'\nseconds: {summary["seconds"]["total"]}')
    for name in ('predictions.png', 'curves.png', 'summary.json'):
        print((OUT / name).relative_to(ROOT))


if __name__ == '__main__':
    main()
