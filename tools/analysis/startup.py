"""Time imports, in fresh processes taken in turns, and the building of a RetinaNet.

python tools/analysis/startup.py
"""

import argparse
import statistics
import subprocess
import sys

CONFIG = 'poolformer/retinanet_poolformer-s12_fpn_1x_coco.py'
BUILD = f"""
import mmpatch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmpatch.registry import MODELS
register_all_modules()
import mmpatch.backbones
start = time.perf_counter()
cfg = Config.fromfile(mmpatch.config_path({CONFIG!r}))
cfg.model.backbone.init_cfg = None
MODELS.build(cfg.model)
"""
CODES = {
    'import mmengine, timm': 'import mmengine, timm',
    'import mmpatch': 'import mmpatch',
    'import mmpatch.backbones': 'import mmpatch.backbones',
    'build RetinaNet PoolFormer-S12': BUILD,
}


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CODES}
    for turn in range(8):
        for name, code in CODES.items():
            timed = f'import time\nstart = time.perf_counter()\n{code}\n'
            timed += 'print(time.perf_counter() - start)'
            result = subprocess.run(
                [sys.executable, '-c', timed], capture_output=True, text=True, check=True
            )
            if turn:  # the first one warms the disk up
                seconds[name].append(float(result.stdout.split()[-1]))
    base = statistics.median(seconds['import mmengine, timm'])
    for name, values in seconds.items():
        value = statistics.median(values)
        print(f'{name:32} {value:6.2f} s  {value / base:5.2f}')


if __name__ == '__main__':
    main()
