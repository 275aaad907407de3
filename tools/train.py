"""Train a detector (mmdet) or a segmentor (mmseg); the config's default_scope says which.

python tools/train.py configs/poolformer/retinanet_poolformer-s12_fpn_1x_coco.py
torchrun --nproc_per_node 8 tools/train.py CONFIG --launcher pytorch

The second line starts one process per GPU; without a GPU, the processes share the CPU.
"""

import sys

from mmengine.runner import Runner

from mmpatch.engine.errors import report_errors
from mmpatch.engine.tool import check_resumption, make_parser, read_config, set_precision


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
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
        check_resumption(cfg)
    Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
