"""Evaluate a checkpoint with the metrics of its config; save or draw its predictions.

python tools/test.py CONFIG CHECKPOINT --show-dir pictures --out predictions.pkl
"""

import sys
from functools import partial

from mmengine.config import Config
from mmengine.runner import Runner

from mmpatch.engine.data import build_dataloader
from mmpatch.engine.errors import blame_config, report_errors
from mmpatch.engine.storage import load_strictly
from mmpatch.engine.tool import make_parser, read_config


def draw(cfg: Config, folder: str) -> None:
    """Make the host's visualization hook draw every test image beside its ground truth."""
    hook = cfg.default_hooks.visualization
    hook.draw = True
    if cfg.default_scope == 'mmdet':
        hook.test_out_dir = folder  # below the work dir
    else:
        hook.interval = 1
        cfg.visualizer.save_dir = folder


@report_errors()
def main() -> None:
    arguments = make_parser(__doc__ or '')
    arguments.add_argument('checkpoint', help='file that tools/train.py wrote')
    arguments.add_argument(
        '--out', help='mmdet: .pkl of all predictions; mmseg: folder of label maps'
    )
    arguments.add_argument(
        '--show-dir', help='folder for pictures of the predictions beside the ground truth'
    )
    args = arguments.parse_args()
    cfg = read_config(args, 'test')
    cfg.load_from = args.checkpoint
    if args.show_dir:
        draw(cfg, args.show_dir)
    dump = args.out and cfg.default_scope == 'mmdet'
    if dump and not args.out.endswith(('.pkl', '.pickle')):
        sys.exit(f'error: --out {args.out}: a detector writes one .pkl file')
    if args.out and not dump:
        cfg.test_evaluator.update(output_dir=args.out, keep_results=True)
    with blame_config(args.config):
        runner = Runner.from_cfg(cfg)
    if dump:
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.load_checkpoint = partial(load_strictly, runner)
    runner.build_dataloader = build_dataloader
    runner.test()


if __name__ == '__main__':
    main()
