"""Files of exported networks: how each format is written, read and run.

A format is one class. Its file carries what mmpatch knows of the network, as JSON: see
:func:`mmpatch.export`.
"""

import hashlib
import importlib
import io
import json
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmpatch.deployment.symbolic import make_openvino_extensions

KEY = 'mmpatch'
#: Dimensions of a batch of images.
AXES = ('batch', 'channels', 'height', 'width')
Run = Callable[[Tensor], Sequence[Tensor]]


class ExportError(ValueError):
    """A network cannot be exported, or a file cannot be run; the message says why, in one line."""


class OnnxFile:
    """ONNX, run by onnxruntime."""

    suffix: ClassVar[str] = '.onnx'
    packages: ClassVar[tuple[str, ...]] = ('onnx', 'onnxscript', 'onnxruntime')
    extra: ClassVar[str] = 'onnx'
    precisions: ClassVar[tuple[str, ...]] = ('f32',)

    @staticmethod
    def write(file: Path, program: Any, metadata: dict[str, Any], calibration: Any = None) -> None:
        """Write a program of torch.export."""
        names = {'input_names': ['image'], 'output_names': metadata['outputs']}
        written: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        written.model.metadata_props[KEY] = json.dumps(metadata)
        written.save(file)

    @staticmethod
    def read(file: Path) -> tuple[str | None, Run]:
        """Metadata, and a function that runs the network with as many threads as torch has."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, ['CPUExecutionProvider'])
        name = session.get_inputs()[0].name

        def run(x: Tensor) -> list[Tensor]:
            return [torch.from_numpy(out) for out in session.run(None, {name: x.numpy()})]

        return session.get_modelmeta().custom_metadata_map.get(KEY), run


@cache
def get_core() -> Any:
    """The one ``openvino.Core`` of this process, which is never closed.

    Where a CPU has AMX, each Core gives its thread another stack for signals. Two that are not
    closed in reverse order leave a stack that was freed, and the next signal that has a handler
    (SIGINT, or the SIGCHLD of a data worker) ends the process without a word. The stacks came with
    https://github.com/openvinotoolkit/openvino/pull/11894.
    """
    import openvino

    return openvino.Core()


class OpenVinoFile:
    """OpenVINO's IR: an .xml file, and a .bin file of weights beside it."""

    suffix: ClassVar[str] = '.xml'
    packages: ClassVar[tuple[str, ...]] = ('openvino',)
    extra: ClassVar[str] = 'openvino'
    precisions: ClassVar[tuple[str, ...]] = ('f32', 'bf16', 'int8')

    @staticmethod
    def write(file: Path, program: Any, metadata: dict[str, Any], calibration: Any = None) -> None:
        """Write a program of torch.export, quantised by NNCF if there are calibration images."""
        import openvino

        model = openvino.convert_model(program, extension=make_openvino_extensions())
        sizes = zip(AXES, metadata['input_size'], strict=True)
        # Without this, sizes that were fixed in the trace are free, and give wrong outputs.
        model.reshape([-1 if name in metadata['dynamic'] else n for name, n in sizes])
        model.inputs[0].set_names({'image'})
        for output, name in zip(model.outputs, metadata['outputs'], strict=True):
            output.set_names({name})
        if calibration is not None:
            nncf = import_package('nncf', 'openvino')
            data = nncf.Dataset([x.numpy() for x in calibration])
            model = nncf.quantize(model, data, subset_size=len(calibration))
        openvino.save_model(model, file, compress_to_fp16=False)
        # The .xml knows its .bin, so that the files of two exports are not mixed up.
        metadata['bin'] = hash_file(file.with_suffix('.bin'))
        model.set_rt_info(json.dumps(metadata), [KEY])
        openvino.save_model(model, file, compress_to_fp16=False)

    @staticmethod
    def read(file: Path) -> tuple[str | None, Run]:
        """Metadata, and a function that runs the network with as many threads as torch has.

        OpenVINO runs networks in bfloat16 by default where a CPU has it; here, only files that were
        exported for it.
        """
        core = get_core()
        model = core.read_model(file)
        metadata = str(model.get_rt_info([KEY]).astype(str)) if model.has_rt_info([KEY]) else None
        said = json.loads(metadata or '{}')
        precision = said.get('precision', 'f32')
        if said.get('bin') not in (None, hash_file(file.with_suffix('.bin'))):
            raise ExportError(f'{file.with_suffix(".bin").name} is of another export')
        settings = {
            'INFERENCE_PRECISION_HINT': 'f32' if precision == 'f32' else 'bf16',
            'INFERENCE_NUM_THREADS': torch.get_num_threads(),
            'PERFORMANCE_HINT': 'LATENCY',
        }
        request = core.compile_model(model, 'CPU', settings).create_infer_request()
        lock = threading.Lock()  # outputs are memory of the request

        def run(x: Tensor) -> list[Tensor]:
            with lock:
                outs = request.infer([x.numpy()], share_inputs=True, share_outputs=True)
                return [torch.from_numpy(outs[i]).clone() for i in range(len(outs))]

        return metadata, run


class ProgramFile:
    """A program of torch.export, run by torch."""

    suffix: ClassVar[str] = '.pt2'
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ''
    precisions: ClassVar[tuple[str, ...]] = ('f32', 'bf16')

    @staticmethod
    def write(file: Path, program: Any, metadata: dict[str, Any], calibration: Any = None) -> None:
        """Write a program of torch.export."""
        # Not into the file: on a full disk, torch would end the process.
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={f'{KEY}.json': json.dumps(metadata)})
        file.write_bytes(content.getvalue())

    @staticmethod
    def read(file: Path) -> tuple[str | None, Run]:
        """Metadata, and the program as a module."""
        if any('data/aotinductor/' in name for name in zipfile.ZipFile(file).namelist()):
            return CompiledFile.read(file)
        extra = {f'{KEY}.json': ''}
        module = torch.export.load(file, extra_files=extra).module()
        return extra[f'{KEY}.json'] or None, without_autocast(module)


class CompiledFile(ProgramFile):
    """A program that AOTInductor compiled, run by torch."""

    @staticmethod
    def write(file: Path, program: Any, metadata: dict[str, Any], calibration: Any = None) -> None:
        """Compile a program of torch.export."""
        from torch._inductor import aoti_compile_and_package
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:
            raise ExportError('compile=True needs a C++ compiler (g++, or CXX=...)') from error
        settings = {'aot_inductor.metadata': {KEY: json.dumps(metadata)}}
        with tempfile.TemporaryDirectory() as folder:
            part = f'{folder}/{file.name}'
            aoti_compile_and_package(program, package_path=part, inductor_configs=settings)
            shutil.copyfile(part, file)

    @staticmethod
    def read(file: Path) -> tuple[str | None, Run]:
        """Metadata, and the compiled program."""
        from torch._inductor import aoti_load_package

        package: Any = aoti_load_package(str(file))
        return package.loader.get_metadata().get(KEY), without_autocast(package)


FORMATS: dict[str, Any] = {cls.suffix: cls for cls in (OnnxFile, OpenVinoFile, ProgramFile)}


def find_format(file: Path) -> Any:
    """Class of a file's format, whose packages are installed.

    Raises:
        ExportError: If the suffix is none of the formats, or a package is missing.
    """
    if file.suffix not in FORMATS:
        raise ExportError(f'{file.name}: the suffix must be one of {", ".join(FORMATS)}')
    found = FORMATS[file.suffix]
    for package in found.packages:
        import_package(package, found.extra)
    return found


def import_package(name: str, extra: str) -> Any:
    """Import a package of an extra of this project."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f'{name} is not installed or cannot be imported: {error}; '
            f'pip install "mmpatch[{extra}]"'
        ) from error


def read_file(file: str | Path) -> tuple[dict[str, Any], Run]:
    """Metadata of an exported file, and a function from images to its outputs.

    Raises:
        ExportError: If there is no such file, its engine is missing or cannot read it, or it was
            not written by :func:`mmpatch.export`.
    """
    if not isinstance(file, str | Path) or not (path := Path(file)).is_file():
        raise ExportError(f'no such file: {file} (tools/export.py or mmpatch.export writes it)')
    found = find_format(path)
    try:
        with torch.device('cpu'):
            text, run = found.read(path)
        metadata = json.loads(text or '{}')
    except Exception as error:  # engines raise what they like
        raise ExportError(f'{path} cannot be read: {first_line(error)}') from error
    if not isinstance(metadata, dict) or metadata.get('version') != 1:
        raise ExportError(f'{path} was not written by mmpatch.export, or by a newer one')
    return metadata, partial(_run_at_known_sizes, run, metadata)


def _run_at_known_sizes(run: Run, metadata: dict[str, Any], x: Tensor) -> Sequence[Tensor]:
    """Run a network, but not at sizes that its file does not have, which engines may take."""
    for name, size, fixed in zip(AXES, x.shape, metadata['input_size'], strict=True):
        if size != fixed and name not in metadata['dynamic']:
            raise ExportError(f'{name} is fixed to {fixed}')
    return run(x)


def without_autocast(program: Run) -> Run:
    """A program of torch that computes in its own precision, without gradients."""

    def run(x: Tensor) -> Sequence[Tensor]:
        with torch.no_grad(), torch.autocast('cpu', enabled=False):
            return program(x)

    return run


def hash_file(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def first_line(error: Exception) -> str:
    """The line of an error's message that says most."""
    lines = [line.strip(' -') for line in str(error).splitlines() if line.strip(' -')]
    lines = [line for line in lines if not line.startswith('Exception from')]  # of OpenVINO
    telling = [line for line in lines if any(w in line for w in ('No conversion', 'Guard', 'not '))]
    return (telling or lines or [type(error).__name__])[0]
