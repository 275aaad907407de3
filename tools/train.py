"""Train a detector (mmdet) or a segmentor (mmseg); the config's default_scope says which.

python tools/train.py configs/poolformer/retinanet_poolformer-s12_fpn_1x_coco.py
torchrun --nproc_per_node 8 tools/train.py CONFIG --launcher pytorch

The second line starts one process per GPU; without a GPU, the processes share the CPU.
"""

import sys
from functools import partial
from typing import Any

from mmengine.runner import Runner

from mmpatch.engine.data import build_dataloader
from mmpatch.engine.errors import blame_config, report_errors
from mmpatch.engine.storage import find_resumption, load_to_train
from mmpatch.engine.tool import make_parser, read_config, set_precision


@report_errors()
def main() -> None:
    arguments = make_parser(__doc__ or '')
    arguments.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from a checkpoint; without PATH, from the last one in the work dir',
    )
    arguments.add_argument(
        '--amp', action='store_true', help='train in mixed precision, on a CPU in bfloat16'
    )
    arguments.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size over auto_scale_lr.base_batch_size',
    )
    args = arguments.parse_args()
    cfg = read_config(args, 'train', 'val')
    set_precision(cfg, args.amp)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            sys.exit(f'error: {args.config} has no auto_scale_lr.base_batch_size to scale from')
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto' or (cfg.get('resume') and not cfg.get('load_from')):
        args.resume = find_resumption(cfg)
        cfg.resume = bool(args.resume)
    if args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    runner: Any = None
    where = args.config + (f', with load_from={cfg.load_from},' if cfg.get('load_from') else '')
    with blame_config(
        where, lambda: runner and runner.iter > getattr(runner, 'start', runner.iter)
    ):
        runner = Runner.from_cfg(cfg)
        runner.load_checkpoint = partial(load_to_train, runner)
        runner.build_dataloader = build_dataloader
        runner.train()


if __name__ == '__main__':
    main()
