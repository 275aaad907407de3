"""Export a model of mmdet or mmseg, or parts of it, for an engine, and check it against torch.

    python tools/export.py CONFIG CHECKPOINT --to openvino
    python tools/export.py CONFIG CHECKPOINT --to onnx --part pyramid --dynamic batch

The tool writes a whole detector or segmentor, its backbone with the neck (pyramid), or its backbone
alone. The file is kept if the engine's outputs match torch's at three sizes. Without CHECKPOINT,
the weights are initialised as the config says.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

import mmpatch
from mmpatch.deployment import ExportError
from mmpatch.deployment.export import DIMS
from mmpatch.engine.errors import report_errors
from mmpatch.engine.tool import make_parser, read_config

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'pt2': '.pt2'}


def build(cfg: Config, checkpoint: str | None) -> Any:
    """Build the model of a config, with weights, in evaluation mode."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    if checkpoint is None:
        print('no CHECKPOINT: the weights are what the config initialises')
        model.init_weights()
        return model.eval()
    try:
        content = load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    except RuntimeError as error:
        reason = ' '.join(str(error).split())
        raise ExportError(f'{checkpoint} does not fit the config: {reason[:200]}') from error
    meta = content.get('meta') or {}
    about = meta.get('dataset_meta') or {}
    model.dataset_meta = {str(key).lower(): value for key, value in about.items()}
    return model.eval()


def get_part(model: Any, part: str) -> nn.Module:
    """Get what is exported of a model."""
    if part == 'model':
        return model
    if part == 'backbone':
        return model.backbone
    if getattr(model, 'neck', None) is None:
        raise ExportError('the model has no neck: use --part backbone')
    return nn.Sequential(model.backbone, model.neck).eval()


def load_calibration(cfg: Config, model: Any, count: int, args: Any) -> list[Tensor]:
    """Training images as the file will take them, from the pipeline of the tests."""
    dataset = cfg.train_dataloader.dataset
    while 'dataset' in dataset:  # of a RepeatDataset, say
        dataset = dataset.dataset
    pipeline = cfg.test_dataloader.dataset.pipeline
    images = DATASETS.build({**dataset, 'pipeline': pipeline})
    if len(images) < count:
        raise ExportError(f'--calibrate {count}: there are {len(images)} training images')
    found = []
    for i in range(count):
        sample = images[i * len(images) // count]
        batch = {'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]}
        x = batch['inputs'][0][None].float()
        if not args.normalize:
            x = model.data_preprocessor(batch, False)['inputs']
        size = [
            n if name in args.dynamic else fixed
            for name, n, fixed in zip(
                ('height', 'width'), x.shape[2:], args.input_size[1:], strict=True
            )
        ]
        x = F.interpolate(x, size, mode='bilinear') if size != list(x.shape[2:]) else x
        found.append(x if 'batch' in args.dynamic else x.expand(args.input_size[0], -1, -1, -1))
    return found


def describe_use(args: Any, file: Path, metadata: dict[str, Any]) -> str:
    """Say what the file takes and what runs it."""
    lines = [f'input: {metadata["input"]}', f'outputs: {", ".join(metadata["outputs"])}']
    if args.part != 'model' and not args.normalize:
        options = [
            'model.backbone._delete_=True',
            'model.backbone.type=mmpatch.ExportedBackbone',
            f'model.backbone.file={file}',
            *(['model.neck=None'] if args.part == 'pyramid' else []),
        ]
        lines += ['to evaluate it, with your own --cfg-options:']
        files = shlex.join([args.config, args.checkpoint or 'CHECKPOINT'])
        lines += [f'  mmpatch test {files} \\']
        lines += [f'    --cfg-options {shlex.join(options)}']
    if args.to == 'onnx':
        batch, height, width = args.input_size
        least = [1 if n in args.dynamic else s for n, s in zip(DIMS, args.input_size, strict=True)]
        least = [least[0], *(32 if n == 1 else n for n in least[1:])]
        shapes = f'image:{batch}x3x{height}x{width}'
        free = f'--minShapes=image:{least[0]}x3x{least[1]}x{least[2]} ' if args.dynamic else ''
        free += f'--optShapes={shapes} --maxShapes={shapes} ' if args.dynamic else ''
        lines += ['for TensorRT (not run here):']
        engine = f'{file.stem}.engine'
        paths = [shlex.quote(f'--{k}={v}') for k, v in (('onnx', file), ('saveEngine', engine))]
        lines += [f'  trtexec {paths[0]} {free}--fp16 {paths[1]}']
    return '\n'.join(lines)


@report_errors()
def main() -> None:
    parser = make_parser(__doc__ or '')
    parser.add_argument('checkpoint', nargs='?', help='file that tools/train.py wrote')
    parser.add_argument('--to', choices=SUFFIXES, required=True, help='format of the file')
    parser.add_argument(
        '--part',
        choices=['model', 'pyramid', 'backbone'],
        default='model',
        help='the whole model (default), backbone with neck, or backbone',
    )
    parser.add_argument('--out', type=Path, help='output file (WORK_DIR/CONFIG_PART.SUFFIX)')
    parser.add_argument(
        '--input-size',
        nargs=3,
        type=int,
        default=[2, 512, 512],
        metavar=('BATCH', 'H', 'W'),
        help='size of the example, which fixed dimensions keep (2 512 512)',
    )
    parser.add_argument(
        '--dynamic',
        nargs='*',
        choices=DIMS,
        default=list(DIMS),
        help='dimensions that may vary (all)',
    )
    parser.add_argument('--no-fold', action='store_true', help='write the blocks as they are')
    parser.add_argument('--precision', choices=['f32', 'bf16', 'int8'], default='f32')
    parser.add_argument(
        '--calibrate',
        type=int,
        default=32,
        metavar='N',
        help='int8: number of training images for the calibration (32)',
    )
    parser.add_argument(
        '--normalize', action='store_true', help='the file takes pixels from 0 to 255'
    )
    parser.add_argument(
        '--compile', action='store_true', help='pt2: compile with AOTInductor; needs a C++ compiler'
    )
    args = parser.parse_args()
    if args.calibrate < 1:
        parser.error('--calibrate takes a positive number')
    cfg = read_config(args, *(['train', 'test'] if args.precision == 'int8' else []))
    file = args.out or Path(cfg.work_dir) / f'{Path(args.config).stem}_{args.part}'
    file = file if args.out else file.with_name(file.name + SUFFIXES[args.to])
    if file.suffix != SUFFIXES[args.to]:
        parser.error(f'--out {file}: --to {args.to} writes {SUFFIXES[args.to]} files')
    try:
        model = build(cfg, args.checkpoint)
        settings: dict[str, Any] = {}
        if args.precision == 'int8':
            settings['calibration'] = load_calibration(cfg, model, args.calibrate, args)
        file.parent.mkdir(parents=True, exist_ok=True)
        batch, height, width = args.input_size
        metadata = mmpatch.export(
            get_part(model, args.part),
            file,
            input_size=(batch, 3, height, width),
            dynamic=args.dynamic,
            fold=not args.no_fold,
            precision=args.precision,
            normalize=args.normalize,
            preprocessor=model.data_preprocessor,
            compile=args.compile,
            **settings,
        )
    except (ExportError, OSError, RuntimeError) as error:
        sys.exit(f'error: {" ".join(str(error).split())}')
    print(f'{file}: differs from torch by {metadata["error"]:.1e} at most')
    print(describe_use(args, file, metadata))


if __name__ == '__main__':
    main()
