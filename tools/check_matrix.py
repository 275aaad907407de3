"""Train a small twin of every family under every task on generated data, and say what came of it.

    python tools/check_matrix.py

Each twin is the project's own config with fewer blocks and channels. It trains for some dozen
iterations on the CPU; its loss must be finite and fall; it is evaluated, saved and loaded again,
and must then give the same maps. Takes about ten minutes on two cores.
"""

import argparse
import contextlib
import io
import math
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

ROOT = Path(__file__).resolve().parents[1]
SCALE = (144, 120)
WIDTH = 64

#: Family -> task -> config, and what makes its backbone small.
CONFIGS = {
    'poolformer': {
        'retinanet': 'retinanet_poolformer-s12_fpn_1x_coco',
        'mask-rcnn': 'mask-rcnn_poolformer-s12_fpn_1x_coco',
        'detr': 'detr_poolformer-s12_8xb2-50e_coco',
        'semantic-fpn': 'fpn_poolformer-s12_8xb4-40k_ade20k-512x512',
    },
    'container': {
        'retinanet': 'retinanet_container-light_fpn_1x_coco',
        'mask-rcnn': 'mask-rcnn_container-light_fpn_1x_coco',
        'detr': 'detr_container-light_8xb2-50e_coco',
        'semantic-fpn': 'fpn_container-light_8xb4-40k_ade20k-512x512',
    },
    'convmixer': {
        'retinanet': 'retinanet_convmixer-768-32_sfp-native_1x_coco',
        'mask-rcnn': 'mask-rcnn_convmixer-768-32-p8_sfp_1x_coco',
        'detr': 'detr_convmixer-1024-20-p16_8xb2-50e_coco',
        'semantic-fpn': 'fpn_convmixer-1024-20_8xb4-40k_ade20k-504x504',
    },
    'vit': {
        'retinanet': 'retinanet_deit-s_sfp_1x_coco',
        'mask-rcnn': 'mask-rcnn_vit-b-mae_sfp_16xb4-lsj-100e_coco',
        'detr': 'detr_deit-s_8xb2-50e_coco',
        'semantic-fpn': 'fpn_deit-s_8xb2-80k_ade20k-512x512',
    },
}
PYRAMID = {'depths': (1, 1, 2, 1), 'dims': (32, 64, 96, 128)}
ISOTROPIC = {'depths': (1, 1, 1, 1), 'dims': 96}
BACKBONES: dict[str, dict[str, Any]] = {
    'poolformer': {**PYRAMID, 'layer_scale': None},
    'container': {**PYRAMID, 'norm_cfg': {'type': 'BN'}, 'norm_eval': False},
    'convmixer': {**ISOTROPIC, 'norm_cfg': {'type': 'BN'}, 'norm_eval': False},
    'vit': {**ISOTROPIC, 'arch': 'tiny', 'pretrain_img_size': 128},
}
HEADS: dict[str, dict[str, Any]] = {
    'retinanet': {
        'bbox_head': {'in_channels': WIDTH, 'feat_channels': WIDTH, 'stacked_convs': 1},
    },
    'mask-rcnn': {
        'rpn_head': {'in_channels': WIDTH, 'feat_channels': WIDTH},
        'roi_head': {
            'bbox_roi_extractor': {'out_channels': WIDTH},
            'bbox_head': {'in_channels': WIDTH, 'fc_out_channels': 128},
            'mask_roi_extractor': {'out_channels': WIDTH},
            'mask_head': {'in_channels': WIDTH, 'conv_out_channels': WIDTH, 'num_convs': 1},
        },
        'train_cfg': {
            'rpn_proposal': {'nms_pre': 200, 'max_per_img': 100},
            'rcnn': {'sampler': {'num': 64}},
        },
        'test_cfg': {'rpn': {'nms_pre': 200, 'max_per_img': 100}},
    },
    'detr': {
        'num_queries': 30,
        'positional_encoding': {'num_feats': WIDTH // 2},
        'bbox_head': {'embed_dims': WIDTH},
        'test_cfg': {'max_per_img': 30},
    },
    'semantic-fpn': {
        'data_preprocessor': {'size': SCALE[::-1]},
        'decode_head': {'in_channels': [WIDTH] * 4, 'channels': WIDTH},
    },
}
METRICS = {
    'retinanet': 'coco/bbox_mAP',
    'mask-rcnn': 'coco/segm_mAP',
    'detr': 'coco/bbox_mAP',
    'semantic-fpn': 'mIoU',
}

CELL = '{before:.2f} -> {after:.2f}; {metric:.3f}; {millions:.2f} M; {seconds:.0f} s'


class Watch(Hook):
    """Keeps the loss of every iteration and the metrics of the evaluation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Keep the loss."""
        self.losses.append(outputs['loss'].item())

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the metrics."""
        self.metrics = dict(metrics or {})


def twin(family: str, task: str, data: Path, iterations: int) -> Config:
    """Config of a small twin: the family's own for the task, smaller, on generated data."""
    cfg = Config.fromfile(mmpatch.config_path(f'{family}/{CONFIGS[family][task]}.py'))
    small = dict(BACKBONES[family])
    if 'window_size' in cfg.model.backbone:
        small['window_size'] = 4
    if 'img_size' in cfg.model.backbone:
        small['img_size'] = 128
    neck = {'out_channels': WIDTH}
    cfg.merge_from_dict({'model': {'backbone': small, 'neck': neck, **HEADS[task]}})
    cfg.model.backbone.init_cfg = None
    if task == 'detr':
        for part in (cfg.model.encoder, cfg.model.decoder):
            part.num_layers = 2
            for name in ('self_attn_cfg', 'cross_attn_cfg', 'ffn_cfg'):
                if name in part.layer_cfg:
                    part.layer_cfg[name].embed_dims = WIDTH
    if 'bbox_head' in cfg.model.get('roi_head', {}):
        head = cfg.model.roi_head.bbox_head
        if 'conv_out_channels' in head:
            head.conv_out_channels = WIDTH
    preprocessor = cfg.model.data_preprocessor
    if 'pad_size_divisor' in preprocessor:
        preprocessor.pad_size_divisor = min(preprocessor.pad_size_divisor, 64)
    with torch.device('meta'):
        channels = list(MODELS.build(cfg.model.backbone).out_channels)
    single = cfg.model.neck.in_channels
    cfg.model.neck.in_channels = channels[0] if isinstance(single, int) else channels
    _train_on(cfg, task, data)
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


def _train_on(cfg: Config, task: str, data: Path) -> None:
    """Generated data, read in this process, at a small size."""
    seg = task == 'semantic-fpn'
    load = {'type': 'LoadImageFromFile'}
    resize = {'type': 'Resize', 'scale': SCALE, 'keep_ratio': not seg}
    labels: dict[str, Any] = {'type': 'LoadAnnotations'}
    labels |= (
        {'reduce_zero_label': True}
        if seg
        else {'with_bbox': True, 'with_mask': task == 'mask-rcnn'}
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


def check(cfg: Config, work_dir: Path, task: str) -> dict[str, Any]:
    """Train, evaluate, save, load again.

    Raises:
        AssertionError: If the loss is not finite or does not fall, or the loaded model differs.
    """
    start = time.monotonic()
    watch = Watch()
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    runner = Runner.from_cfg(cfg)
    runner.register_hook(watch)
    model = runner.train().eval()
    before, after = (sum(part) / len(part) for part in (watch.losses[:5], watch.losses[-5:]))
    assert all(map(math.isfinite, watch.losses)), f'loss is not finite: {watch.losses}'
    assert after < before, f'loss did not fall: {before:.3f} -> {after:.3f}'
    again = MODELS.build(cfg.model).eval()
    file = next(work_dir.glob('iter_*.pth'))
    load_checkpoint(again, str(file), strict=True, logger='silent')
    x = torch.randn(1, 3, SCALE[1], SCALE[0])
    with torch.no_grad():
        pairs = zip(model.extract_feat(x), again.extract_feat(x), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), 'the loaded model gives other maps'
    return {
        'before': before,
        'after': after,
        'metric': watch.metrics.get(METRICS[task], 0.0),
        'millions': sum(p.numel() for p in model.parameters()) / 1e6,
        'seconds': time.monotonic() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--iterations', type=int, default=60, help='of each training')
    parser.add_argument('--families', nargs='+', choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument('--tasks', nargs='+', choices=METRICS, default=list(METRICS))
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    for line in mmpatch.install():
        print(line)
    import mmdet.utils
    import mmseg.utils

    mmdet.utils.register_all_modules(init_default_scope=False)
    mmseg.utils.register_all_modules(init_default_scope=False)
    HOOKS.register_module(module=Watch)
    start = time.monotonic()
    failed = []
    table = {task: [''] * len(args.families) for task in args.tasks}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / 'data'
        command = [sys.executable, str(ROOT / 'tools/make_toy_data.py'), '--out', str(data)]
        subprocess.run([*command, '--train', '48', '--val', '8'], check=True, capture_output=True)
        for i, family in enumerate(args.families):
            for task in args.tasks:
                name = f'{family} {task}'
                try:
                    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
                        cfg = twin(family, task, data, args.iterations)
                        found = check(cfg, Path(folder) / name.replace(' ', '-'), task)
                except Exception as error:  # one failure must not hide the others
                    failed.append(name)
                    print(f'{name:26} FAILED: {type(error).__name__}: {error}', flush=True)
                    table[task][i] = 'FAILED'
                    continue
                table[task][i] = CELL.format(**found)
                print(f'{name:26} {table[task][i]}', flush=True)
    print('\nloss before -> after; box AP, mask AP, box AP, or mIoU in %; parameters; seconds\n')
    print('| | ' + ' | '.join(args.families) + ' |')
    print('|---' * (len(args.families) + 1) + '|')
    for task, cells in table.items():
        print(f'| {task} | ' + ' | '.join(cells) + ' |')
    print(f'\n{time.monotonic() - start:.0f} seconds')
    if failed:
        sys.exit(f'{len(failed)} of the twins failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
