"""Predict boxes, masks or class maps with a trained detector or segmentor, and draw them.

    python tools/predict.py work_dirs/mine/epoch_12.pth photos --out found
    python tools/predict.py CONFIG CHECKPOINT aerial.png --slice 640 --overlap 0.2

The input is a picture, a folder of pictures or a video. CONFIG is a path or the name of a config of
mmpatch; without it, the config that training saved in CHECKPOINT is used. The tool writes
``predictions.json``, ``pictures`` and, for segmentors, ``class_maps``. Files that cannot be read
are listed at the end, and the exit status is then 1.
"""

import argparse
import signal
import sys

import mmpatch
from mmpatch.engine.errors import report_errors
from mmpatch.engine.memory import keep_freed_memory
from mmpatch.engine.tool import OptionAction


@report_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', help='config file, or name of a config of mmpatch')
    parser.add_argument('checkpoint', help='file that tools/train.py wrote')
    parser.add_argument('inputs', help='picture, folder of pictures, or video')
    parser.add_argument('--out', default='predictions', help='folder to write (predictions)')
    parser.add_argument(
        '--slice', type=int, metavar='PIXELS', help='side of the tiles of large pictures'
    )
    parser.add_argument(
        '--overlap',
        type=float,
        default=0.2,
        help='share that neighbouring tiles overlap, 0 to 0.9 (0.2)',
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='leave out boxes of lower scores (0.3)'
    )
    parser.add_argument('--device', help='such as cpu or cuda:1; by default a GPU if there is one')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionAction,
        metavar='KEY=VALUE',
        help='override settings of the config',
    )
    args = vars(parser.parse_intermixed_args())
    files = [args.pop(name) for name in ('config', 'checkpoint', 'inputs')]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C; a video is completed
    keep_freed_memory()
    try:
        written = mmpatch.predict(*files, progress=True, **args)
    except KeyboardInterrupt:
        sys.exit(f'\ninterrupted; what was predicted is in {args["out"]}')  # below the progress
    print(f'predicted pictures: {written.count}; the results are in {written.file}')
    if written.failed:
        sys.exit('\n'.join([f'{len(written.failed)} could not be predicted:', *written.failed]))


if __name__ == '__main__':
    main()
