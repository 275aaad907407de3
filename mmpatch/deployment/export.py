"""Export of trained networks to ONNX, OpenVINO and torch.export, checked before they are kept."""

import copy
import errno
import hashlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpatch.backbones import MetaFormer
from mmpatch.deployment.files import (
    AXES,
    CompiledFile,
    ExportError,
    ProgramFile,
    Run,
    find_format,
    first_line,
    import_package,
    read_file,
)
from mmpatch.deployment.fold import deploy
from mmpatch.deployment.folded import TokenAttention
from mmpatch.deployment.forms import use_engine_forms
from mmpatch.deployment.graphs import make_graph, measure_difference
from mmpatch.mixers import Windowed

#: Dimensions of an image batch that may be free in a file.
DIMS = {name: i for i, name in enumerate(AXES) if name != 'channels'}
#: Largest difference from torch with which a file is kept: see :func:`measure_difference`.
TOLERANCES = {'f32': 1e-4, 'bf16': 0.1, 'int8': 0.5}


def export(
    model: nn.Module,
    file: str | Path,
    *,
    input_size: Sequence[int] = (2, 3, 512, 512),
    dynamic: Sequence[str] = ('batch', 'height', 'width'),
    fold: bool = True,
    precision: str = 'f32',
    calibration: Iterable[Tensor] | None = None,
    normalize: bool = False,
    preprocessor: nn.Module | None = None,
    compile: bool = False,
) -> dict[str, Any]:
    """Write a network to a file for an engine, if the engine computes what torch computes.

    The file is run at three sizes, or on three batches of the fixed size, and kept only if
    its outputs differ from torch's by at most 1e-4 of the largest value (0.1 in bfloat16; 0.5 in
    int8, on images of the calibration). An existing file of that name is replaced only then.

    Args:
        model: In evaluation mode: a backbone; ``nn.Sequential(backbone, neck)``; a whole segmentor
            of mmseg; or a whole detector of mmdet with one stage, anchors and sigmoid scores, such
            as RetinaNet. Outputs are maps, one class map (B, H, W), or boxes (B, K, 4), scores and
            labels (B, K).
        file: Its suffix says the format: .onnx for onnxruntime and others, .xml for OpenVINO, .pt2
            for torch.export.
        input_size: (B, C, H, W) of an example; fixed dimensions keep these sizes.
        dynamic: Which of 'batch', 'height' and 'width' may vary when the file is run.
        fold: Whether blocks are folded (:func:`mmpatch.deploy`), and written in the forms that are
            fast in the engine.
        precision: 'f32'; 'bf16' (OpenVINO, .pt2); 'int8' (OpenVINO, quantised by NNCF).
        calibration: For int8, images (B, C, H, W) as the file takes them.
        normalize: Whether the file takes pixels from 0 to 255 and normalises them itself.
        preprocessor: Data preprocessor whose mean and std are used; by default the model's own.
        compile: For .pt2, whether AOTInductor compiles the program, for CPUs like this one. It
            needs a C++ compiler and some minutes.

    Returns:
        The metadata in the file: ``kind``, ``outputs``, ``out_channels``, ``out_strides``,
        ``input`` (the range and the channels it takes), ``input_size``, ``dynamic``, ``precision``
        and more; and ``error``, the largest difference that was measured.

    Raises:
        ExportError: If an engine is missing, cannot express the network or computes something else,
            if arguments do not fit, or if the model is in training mode. No file is left then.
    """
    path, size = Path(file), tuple(input_size) if isinstance(input_size, list | tuple) else ()
    calibration = None if calibration is None else list(calibration)
    found = _check_arguments(model, path, size, dynamic, precision, calibration)
    if compile and found is not ProgramFile:
        raise ExportError(f'compile=True is for .pt2 files, not {path.name}')
    found = CompiledFile if compile else found
    images = None if calibration is None else [x.detach().float().cpu() for x in calibration]
    try:
        original = copy.deepcopy(model).cpu().float()
        reference = make_graph(original, normalize, preprocessor, size)
        is_folded = fold and any(isinstance(module, MetaFormer) for module in original.modules())
        network = deploy(original) if is_folded else original
        if found.suffix != '.pt2':
            network = use_engine_forms(network, found.suffix, better=fold)
        graph = make_graph(network, normalize, preprocessor, size)
    except Exception as error:  # a model may hold anything
        raise ExportError(first_line(error)) from error
    _check_windows(original, dynamic)
    if reference.kind == 'detector' and precision != 'f32':
        raise ExportError(
            f'boxes need float32: export the backbone with neck in {precision}, and let '
            'ExportedBackbone run it under the head'
        )
    traced = _BFloat16(graph) if found.suffix == '.pt2' and precision == 'bf16' else graph
    described = reference.describe()
    metadata = {
        'version': 1,
        'model': type(model).__name__,
        'outputs': list(reference.output_names),
        'input_size': list(size),
        'dynamic': list(dynamic),
        'precision': precision,
        'torch': torch.__version__,
        'weights': digest(_get_backbone(model).state_dict().values()),
        **described,
    }
    # A quantised network is made for images like those of the calibration.
    batches = images[:3] if images else _make_batches(size, dynamic, normalize)
    program = _trace(traced, _get_example(size, dynamic), dynamic)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.stem}-') as folder:
            part = Path(folder) / path.name
            _write(found, part, program, metadata, images)
            _, run = read_file(part)
            compared = [_compare(run, x, reference) for x in batches]
            difference = torch.tensor(compared)[:, 0].max().item()  # keeps NaN, unlike max()
            limit = TOLERANCES[precision]
            if not difference <= limit:
                raise ExportError(
                    f'{path.name} differs from torch by {difference:.1e}, more than {limit}, so it '
                    f'is not kept; try {"dynamic=() or " if dynamic else ""}another format'
                )
            for written in sorted(Path(folder).iterdir(), key=lambda other: other == part):
                os.replace(written, path.with_name(written.name))
    except OSError as error:
        raise ExportError(f'{path} cannot be written: {error}') from error
    line = f'mmpatch.export: {path}, {precision}, differs from torch by {difference:.1e} at most'
    print_log(f'{line}; input: {described["input"]}', logger='current')
    if not any(has_results for _, has_results in compared):
        why = 'torch found nothing in pictures of noise, so no box was compared'
        print_log(f'{path}: {why}; compare predictions on your own', 'current', logging.WARNING)
    return {**metadata, 'error': difference}


def digest(tensors: Iterable[Tensor]) -> str:
    """Digest of weights, whatever their names, order, precision and device."""
    exact = (t.detach().cpu().to(torch.float64).contiguous() for t in tensors)
    parts = (hashlib.sha256(t.numpy().tobytes()) for t in exact)
    return hashlib.sha256(b''.join(sorted(part.digest() for part in parts))).hexdigest()


class _BFloat16(nn.Module):
    """A graph that computes in bfloat16, between float32."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.network = graph.bfloat16()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outs = self.network(x.bfloat16())
        return tuple(y.float() if y.is_floating_point() else y for y in outs)


def _check_arguments(
    model: Any,
    path: Path,
    size: tuple[int, ...],
    dynamic: Sequence[str],
    precision: str,
    images: Any,
) -> Any:
    """Format of the file, if all arguments fit each other."""
    if not isinstance(model, nn.Module):
        raise ExportError(f'export takes a module, not {model!r}')
    if model.training:
        raise ExportError(f'{type(model).__name__} is in training mode; call eval() first')
    found = find_format(path)
    if path.is_dir():
        raise ExportError(f'{path} is a folder')
    if not path.parent.is_dir():
        raise ExportError(f'there is no folder {path.parent} to write {path.name} into')
    if not isinstance(dynamic, list | tuple) or not set(dynamic) <= set(DIMS):
        raise ExportError(f'dynamic={dynamic!r}: choose from {tuple(DIMS)}, or () for none')
    if len(size) != 4 or any(not isinstance(n, int) or n < 1 for n in size):
        raise ExportError('input_size must be four positive integers (B, C, H, W)')
    if precision not in found.precisions:
        raise ExportError(
            f'precision={precision!r}: {found.suffix} files have {", ".join(found.precisions)}'
        )
    if (precision == 'int8') != (images is not None):
        raise ExportError('calibration images are required for int8 and not allowed otherwise')
    if images is not None:
        import_package('nncf', 'openvino')
        fixed = [(i, n) for i, n in enumerate(size) if AXES[i] not in dynamic]
        fit = [
            isinstance(x, Tensor) and x.ndim == 4 and all(x.shape[i] == n for i, n in fixed)
            for x in images
        ]
        if not fit or not all(fit):
            raise ExportError(
                'calibration takes one or more images (B, C, H, W) that fit '
                f'input_size={size} with dynamic={tuple(dynamic)}'
            )
    return found


def _check_windows(model: nn.Module, dynamic: Sequence[str]) -> None:
    free = [name for name in dynamic if name != 'batch']
    mixers = [module for module in model.modules() if isinstance(module, Windowed | TokenAttention)]
    if free and any(mixer.window_size is not None for mixer in mixers):
        raise ExportError(
            f'{" and ".join(free)} must be fixed, since the number of attention windows depends on '
            "the size: use dynamic=('batch',) or ()"
        )


def _get_backbone(model: Any) -> nn.Module:
    return model[0] if isinstance(model, nn.Sequential) else getattr(model, 'backbone', model)


def _get_example(size: tuple[int, ...], dynamic: Sequence[str]) -> Tensor:
    """Example to trace: free dimensions are odd and not 1, so that none looks special."""
    batch, channels, height, width = size
    batch = max(batch, 2) if 'batch' in dynamic else batch
    if 'height' in dynamic:
        height = max(height - 1 + height % 2, 1)
    if 'width' in dynamic:
        width = max(width - 3 + width % 2, 1)
    return torch.zeros(batch, channels, height, width, dtype=torch.float32, device='cpu')


def _make_batches(size: tuple[int, ...], dynamic: Sequence[str], pixels: bool) -> list[Tensor]:
    """Three batches of noise, of three sizes where sizes are free."""
    batch, channels, height, width = size
    generator = torch.Generator().manual_seed(0)
    shapes = [size]
    for count, rows, columns in ((1, 0.75, 0.66), (batch + 1, 0.6, 0.8)):
        shape = (
            count if 'batch' in dynamic else batch,
            channels,
            int(height * rows) + 1 if 'height' in dynamic else height,
            int(width * columns) + 1 if 'width' in dynamic else width,
        )
        shapes.append(shape)
    cpu: Any = {'generator': generator, 'dtype': torch.float32, 'device': 'cpu'}
    batches = [torch.randn(shape, **cpu) for shape in shapes]
    return [(x * 60 + 120).clamp(0, 255) for x in batches] if pixels else batches


def _trace(graph: nn.Module, example: Tensor, dynamic: Sequence[str]) -> Any:
    free = {DIMS[name]: torch.export.Dim.DYNAMIC for name in dynamic}
    try:
        with torch.no_grad(), torch.autocast('cpu', enabled=False):
            return torch.export.export(
                graph.eval(), (example,), dynamic_shapes=(free or None,), strict=False
            )
    except Exception as error:  # torch.export raises many kinds
        raise ExportError(
            f'torch cannot export this network with dynamic={tuple(dynamic)}: {first_line(error)}'
        ) from error


def _write(found: Any, part: Path, program: Any, metadata: Any, images: Any) -> None:
    try:
        found.write(part, program, metadata, images)
    except (OSError, ExportError):
        raise
    except Exception as error:  # converters raise what they like
        if shutil.disk_usage(part.parent).free < 2**16:
            raise OSError(errno.ENOSPC, 'No space left on device') from error
        name = found.packages[0] if found.packages else 'torch'
        raise ExportError(f'{name} cannot express this network: {first_line(error)}') from error


def _compare(run: Run, x: Tensor, reference: Any) -> tuple[float, bool]:
    """Difference from torch, and whether there was something to compare."""
    with torch.no_grad(), torch.autocast('cpu', enabled=False):
        expected = reference(x)
    try:
        outs = run(x)
    except Exception as error:  # engines raise what they like
        shape = 'x'.join(map(str, x.shape))
        raise ExportError(f'the file does not run at {shape}: {first_line(error)}') from error
    if [out.shape for out in outs] != [out.shape for out in expected]:
        return math.inf, True
    threshold = getattr(reference, 'score_thr', 0.0)
    has_results = reference.kind != 'detector' or bool((expected[1] > threshold).any())
    return measure_difference(reference.kind, outs, expected, threshold), has_results
