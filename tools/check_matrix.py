"""Train a small version of every family for every task on generated data, and print a table.

    python tools/check_matrix.py
    python tools/check_matrix.py --tasks semantic-fpn --archs s12-ppaa s12-ppff
    python tools/check_matrix.py --by-heart

Each cell is one of the project's configs with fewer blocks and channels. It trains for 60
iterations on the CPU. Its loss must be finite and fall. It is then evaluated and saved, and the
loaded copy must give the same maps. All cells take about half an hour on two cores. ``--archs``
trains the named networks instead of the ones in the configs.

``--by-heart`` trains DETRs on eight pictures, without noise, until they overfit: the box AP on
these pictures must be at least 0.5. This shows that targets, matching and decoding fit each other,
which a falling loss does not. Each takes two to five minutes. Without ``--families``, those of
PoolFormer run.
"""

import argparse
import contextlib
import io
import math
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner, load_checkpoint

import mmpatch
from mmpatch.engine.errors import report_errors
from mmpatch.engine.memory import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
SCALE = (144, 120)
WIDTH = 64

#: Patterns of the names of configs. Not every family has all tasks.
TASKS = {
    'retinanet': 'retinanet_',
    'mask-rcnn': 'mask-rcnn_',
    'vitdet': 'mask-rcnn_vit-.*_sfp_',
    'cascade': 'cascade-mask-rcnn_',
    'detr': 'detr_',
    'deformable-detr': 'deformable-detr_',
    'smca-detr': 'smca-detr_',
    'dino': 'dino-',
    'mask2former': 'mask2former_',
    'semantic-fpn': 'fpn_',
    'semantic-fpn-taps': 'fpn_.*_tap-fpn_',
    'upernet': 'upernet_',
}
SEGMENTATION = ('semantic-fpn', 'semantic-fpn-taps', 'upernet')
#: Folders of configs; of networks of timm and the hosts, with the beginnings of their names.
FAMILIES = sorted(
    {name.split('/')[0] for name in mmpatch.list_configs()} - {'demo', 'timm', 'baselines'}
)
FAMILIES += ['timm/dinov2', 'timm/dinov3', 'baselines/r', 'baselines/pvt']
MASK_RCNN: dict[str, Any] = {
    'rpn_head': {'in_channels': WIDTH, 'feat_channels': WIDTH},
    'roi_head': {
        'bbox_roi_extractor': {'out_channels': WIDTH},
        'mask_roi_extractor': {'out_channels': WIDTH},
        'mask_head': {'in_channels': WIDTH, 'conv_out_channels': WIDTH, 'num_convs': 1},
    },
    'train_cfg': {'rpn_proposal': {'nms_pre': 200, 'max_per_img': 100}},
    'test_cfg': {'rpn': {'nms_pre': 200, 'max_per_img': 100}},
}
SEMANTIC_FPN: dict[str, Any] = {
    'data_preprocessor': {'size': SCALE[::-1]},
    'decode_head': {'in_channels': [WIDTH] * 4, 'channels': WIDTH},
}
DETRS = ('detr', 'deformable-detr', 'smca-detr', 'dino')
#: Iterations and learning rate in which each learns eight pictures by heart.
BY_HEART = {
    'detr': (600, 5e-4),
    'deformable-detr': (600, 5e-4),
    'smca-detr': (600, 5e-4),
    'dino': (100, 5e-4),
}
#: Channels of necks and heads; mmdet's DINO encodes positions in 256 whatever its settings.
WIDTHS = {task: 256 if task == 'dino' else WIDTH for task in TASKS}
HEADS: dict[str, dict[str, Any]] = {
    'retinanet': {
        'bbox_head': {'in_channels': WIDTH, 'feat_channels': WIDTH, 'stacked_convs': 1},
    },
    'mask-rcnn': MASK_RCNN,
    'vitdet': MASK_RCNN,
    'cascade': MASK_RCNN,
    **{
        task: {
            'num_queries': 30,
            'bbox_head': {'embed_dims': WIDTHS[task]},
            'test_cfg': {'max_per_img': 30},
        }
        for task in DETRS
    },
    'mask2former': {
        'panoptic_head': {'feat_channels': WIDTH, 'out_channels': WIDTH, 'num_queries': 30},
        'train_cfg': {'num_points': 1000},
        'test_cfg': {'max_per_image': 30},
        'data_preprocessor': {'batch_augments': None},
    },
    'semantic-fpn': SEMANTIC_FPN,
    'semantic-fpn-taps': SEMANTIC_FPN,
    'upernet': SEMANTIC_FPN | {'auxiliary_head': {'in_channels': WIDTH, 'channels': WIDTH}},
}
METRICS = {
    'retinanet': 'coco/bbox_mAP',
    'mask-rcnn': 'coco/segm_mAP',
    'vitdet': 'coco/segm_mAP',
    'cascade': 'coco/segm_mAP',
    'mask2former': 'coco/segm_mAP',
    **dict.fromkeys(DETRS, 'coco/bbox_mAP'),
    **dict.fromkeys(SEGMENTATION, 'mIoU'),
}

CELL = '{before:.2f} -> {after:.2f}; {metric:.3f}; {millions:.2f} M; {seconds:.0f} s'


class LossRecorder(Hook):
    """Records the loss of every iteration and the metrics of the evaluation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Record the loss."""
        self.losses.append(outputs['loss'].item())

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Record the metrics."""
        self.metrics = dict(metrics or {})


def find_family(arch: str) -> str:
    """Folder of the configs of the family that has an architecture."""
    for name in FAMILIES:
        cfg = Config.fromfile(mmpatch.config_path(find_configs(name, 'semantic-fpn')[0]))
        family: Any = MODELS.get(cfg.model.backbone.type)
        if arch in getattr(family, 'ARCHS', ()):
            return name
    sys.exit(f'error: no family has the arch {arch!r}')


def find_configs(family: str, task: str) -> list[str]:
    """Names of the family's configs for a task, the shortest first."""
    folder, _, network = family.partition('/')
    start = f'{folder}/{TASKS[task]}{network}'
    names = [name for name in mmpatch.list_configs() if re.match(start, name)]
    return sorted(names, key=lambda name: (len(name), name))


def shrink_backbone(cfg: Any) -> dict[str, Any]:
    """Settings that make a backbone small; batch norms learn, since nothing is pretrained."""
    if cfg.type == 'mmpatch.TimmBackbone':
        taps = (0, 1, 2, 3)[-len(cfg.out_indices) :]
        return {'depth': 4, 'embed_dim': 96, 'num_heads': 3, 'out_indices': taps}
    norms = {'norm_cfg': {'type': 'BN', 'requires_grad': True}, 'norm_eval': False}
    if 'ResNet' in cfg.type:
        return {'depth': 18, 'base_channels': 16, 'frozen_stages': -1, **norms}
    if cfg.type.endswith('PyramidVisionTransformer'):
        return {'num_layers': (1, 1, 2, 1), 'embed_dims': 16}
    with torch.device('meta'):
        whole = MODELS.build({**cfg, 'out_indices': (0, 1, 2, 3), 'init_cfg': None})
    widths = whole.out_channels[-4:]
    is_pyramid = len(set(widths)) > 1
    small: dict[str, Any] = {
        'depths': (1, 1, 2, 1) if is_pyramid else (1, 1, 1, 1),
        'dims': (32, 64, 96, 128) if is_pyramid else 96,
        'layer_scale': None,
    }
    if 'norm_cfg' in cfg:
        small |= norms
    small |= {key: value for key, value in (('window_size', 4), ('img_size', 128)) if key in cfg}
    return small


def set_everywhere(part: Any, values: dict[str, Any]) -> None:
    """Replace settings at any depth of a part of a config."""
    for key, value in part.items():
        if key in values:
            part[key] = values[key]
        elif isinstance(value, dict):
            set_everywhere(value, values)


def shrink_config(family: str, arch: str, task: str, data: Path, iterations: int) -> Config:
    """Config of the family for a task, with a small model, on generated data.

    ``arch`` replaces that of the config, if it is not empty.
    """
    cfg = Config.fromfile(mmpatch.config_path(find_configs(family, task)[0]))
    if arch:
        cfg.model.backbone.arch = arch
    small = shrink_backbone(cfg.model.backbone)
    cfg.merge_from_dict({'model': {'backbone': small, **HEADS[task]}})
    cfg.model.backbone.init_cfg = None
    if task in SEGMENTATION:
        cfg.model.pretrained = None
    width = WIDTHS[task]
    narrow = {'embed_dims': width, 'num_feats': width // 2, 'feedforward_channels': 256}
    narrow['num_layers'] = 2
    for name in ('encoder', 'decoder', 'positional_encoding', 'panoptic_head'):
        set_everywhere(cfg.model.get(name, {}), narrow)
    for head in as_list(cfg.model.get('roi_head', {}).get('bbox_head', [])):
        head.update(in_channels=WIDTH, fc_out_channels=128)
        if 'conv_out_channels' in head:
            head.conv_out_channels = WIDTH
    for stage in as_list((cfg.model.train_cfg or {}).get('rcnn', [])):
        stage.sampler.num = 64
    preprocessor = cfg.model.data_preprocessor
    if 'pad_size_divisor' in preprocessor:
        preprocessor.pad_size_divisor = min(preprocessor.pad_size_divisor, 64)
    with torch.no_grad(), MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        backbone = registry.build(cfg.model.backbone)
        backbone.eval()  # returns nothing in mmdet's ResNet
        channels = [x.shape[1] for x in backbone(torch.zeros(1, 3, 128, 128))]
    if task == 'mask2former':
        cfg.model.panoptic_head.in_channels = channels
    for neck in as_list(cfg.model.get('neck') or []):
        neck.in_channels = channels[0] if isinstance(neck.in_channels, int) else channels
        if 'out_channels' in neck:
            neck.out_channels = width
    set_data(cfg, task, data)
    cfg.train_cfg = {
        'type': 'IterBasedTrainLoop',
        'max_iters': iterations,
        'val_interval': iterations,
    }
    cfg.param_scheduler = []
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.optim_wrapper.optimizer = {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.05}
    cfg.optim_wrapper.clip_grad = {'max_norm': 5.0}
    cfg.default_hooks.checkpoint = {
        'type': 'CheckpointHook',
        'by_epoch': False,
        'interval': iterations,
    }
    cfg.log_processor = {'by_epoch': False}
    cfg.log_level = 'ERROR'
    cfg.randomness = {'seed': 0}
    return cfg


def as_list(value: Any) -> list[Any]:
    """One or several as a list."""
    return value if isinstance(value, list) else [value]


def set_data(cfg: Config, task: str, data: Path) -> None:
    """Have a config read generated data at a small size, in this process."""
    seg = task in SEGMENTATION
    load = {'type': 'LoadImageFromFile'}
    resize = {'type': 'Resize', 'scale': SCALE, 'keep_ratio': not seg}
    labels: dict[str, Any] = {'type': 'LoadAnnotations'}
    labels |= (
        {'reduce_zero_label': True}
        if seg
        else {'with_bbox': True, 'with_mask': METRICS[task] == 'coco/segm_mAP'}
    )
    keys = {'meta_keys': ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')}
    pack = {'type': 'PackSegInputs'} if seg else {'type': 'PackDetInputs', **keys}
    train = [load, labels, resize, {'type': 'RandomFlip', 'prob': 0.5}, {'type': pack['type']}]
    for name, pipeline in (('train', train), ('val', [load, resize, labels, pack])):
        loader = cfg[f'{name}_dataloader']
        while 'dataset' in loader.dataset:
            loader.dataset = loader.dataset.dataset
        loader.dataset.data_root = str(data / ('ade' if seg else 'coco'))
        loader.dataset.pipeline = pipeline
        loader.batch_size = 4
        loader.num_workers = 0
        loader.persistent_workers = False
    cfg.train_dataloader.sampler = {'type': 'InfiniteSampler', 'shuffle': True}
    cfg.train_dataloader.pop('batch_sampler', None)
    if not seg:
        cfg.val_evaluator.ann_file = str(data / 'coco/annotations/instances_val2017.json')
    for key in [key for key in cfg if key.startswith('test_')]:
        cfg.pop(key)


def learn_by_heart(cfg: Config, rate: float) -> None:
    """Have a config learn and find the objects of its training pictures, without any noise."""
    set_everywhere(cfg.model, {'dropout': 0.0, 'ffn_drop': 0.0})
    train, val = cfg.train_dataloader, cfg.val_dataloader
    train.batch_size = 8
    train.dataset.pipeline = [t for t in train.dataset.pipeline if t['type'] != 'RandomFlip']
    for key in ('ann_file', 'data_prefix'):
        val.dataset[key] = train.dataset[key]
    cfg.val_evaluator.ann_file = f'{train.dataset.data_root}/{train.dataset.ann_file}'
    cfg.optim_wrapper.optimizer = {'type': 'AdamW', 'lr': rate, 'weight_decay': 0.0}
    cfg.optim_wrapper.pop('paramwise_cfg', None)  # the backbone is not pretrained
    end = cfg.train_cfg.max_iters
    decay = {'type': 'MultiStepLR', 'by_epoch': False, 'milestones': [end * 4 // 5], 'gamma': 0.1}
    cfg.param_scheduler = [{'type': 'LinearLR', 'by_epoch': False, 'begin': 0, 'end': 20}, decay]


def train_and_reload(cfg: Config, work_dir: Path, task: str) -> dict[str, Any]:
    """Train and evaluate a model, and load it again from its checkpoint.

    Raises:
        AssertionError: If the loss is not finite or does not fall, or the loaded model differs.
    """
    start = time.monotonic()
    recorder = LossRecorder()
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    runner = Runner.from_cfg(cfg)
    runner.register_hook(recorder)
    model = runner.train().eval()
    before, after = (sum(part) / len(part) for part in (recorder.losses[:5], recorder.losses[-5:]))
    assert all(map(math.isfinite, recorder.losses)), f'loss is not finite: {recorder.losses}'
    assert after < before, f'loss did not fall: {before:.3f} -> {after:.3f}'
    loaded = MODELS.build(cfg.model).eval()
    file = next(work_dir.glob('iter_*.pth'))
    load_checkpoint(loaded, str(file), strict=True, logger='silent')
    x = torch.randn(1, 3, SCALE[1], SCALE[0])
    with torch.no_grad():
        pairs = zip(model.extract_feat(x), loaded.extract_feat(x), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), 'the loaded model gives other maps'
    return {
        'before': before,
        'after': after,
        'metric': recorder.metrics.get(METRICS[task], 0.0),
        'millions': sum(p.numel() for p in model.parameters()) / 1e6,
        'seconds': time.monotonic() - start,
    }


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--iterations', type=int, help='iterations of each training')
    parser.add_argument(
        '--by-heart', action='store_true', help='learn eight pictures by heart, with DETRs only'
    )
    parser.add_argument('--families', nargs='+', choices=FAMILIES)
    parser.add_argument('--archs', nargs='+', help='networks to train, of any families')
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    args = parser.parse_args()
    if args.by_heart:
        args.families = args.families or ['poolformer']
        args.tasks = [task for task in args.tasks if task in BY_HEART]
        if not args.tasks:
            parser.error(f'--by-heart takes only the tasks {", ".join(BY_HEART)}')
    warnings.simplefilter('ignore')
    for line in mmpatch.compat.install():
        print(line)
    keep_freed_memory()
    import mmdet.utils
    import mmseg.utils

    mmdet.utils.register_all_modules(init_default_scope=False)
    mmseg.utils.register_all_modules(init_default_scope=False)
    HOOKS.register_module(module=LossRecorder)
    start = time.monotonic()
    failed = []
    columns = [(family, '') for family in args.families or FAMILIES]
    if args.archs:
        columns = [(find_family(arch), arch) for arch in args.archs]
    table = {task: ['-'] * len(columns) for task in args.tasks}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / 'data'
        command = [sys.executable, str(ROOT / 'tools/make_toy_data.py'), '--out', str(data)]
        count = '8' if args.by_heart else '48'
        subprocess.run([*command, '--train', count, '--val', '8'], check=True, capture_output=True)
        for i, (family, arch) in enumerate(columns):
            for task in args.tasks:
                if not find_configs(family, task):
                    continue
                name = f'{arch or family} {task}'
                work_dir = Path(folder) / name.replace(' ', '-').replace('/', '-')
                try:
                    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
                        default, rate = BY_HEART[task] if args.by_heart else (60, 0.0)
                        cfg = shrink_config(family, arch, task, data, args.iterations or default)
                        if args.by_heart:
                            learn_by_heart(cfg, rate)
                        found = train_and_reload(cfg, work_dir, task)
                    if args.by_heart:
                        assert found['metric'] >= 0.5, f'box AP is {found["metric"]}'
                except Exception as error:  # one failure must not hide the others
                    failed.append(name)
                    print(f'{name:26} FAILED: {type(error).__name__}: {error}', flush=True)
                    table[task][i] = 'FAILED'
                    continue
                table[task][i] = CELL.format(**found)
                print(f'{name:26} {table[task][i]}', flush=True)
    print('\nloss before -> after; AP of boxes or masks, or mIoU in %; parameters; seconds\n')
    print('| | ' + ' | '.join(arch or family for family, arch in columns) + ' |')
    print('|---' * (len(columns) + 1) + '|')
    for task, cells in table.items():
        print(f'| {task} | ' + ' | '.join(cells) + ' |')
    print(f'\n{time.monotonic() - start:.0f} seconds')
    if failed:
        sys.exit(f'{len(failed)} of the cells failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
