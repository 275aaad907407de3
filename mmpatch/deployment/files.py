"""Files of exported networks: how each format is written, read and run.

A format is one class. Its file carries what mmpatch knows of the network, as JSON: see
:func:`mmpatch.export`.
"""

import importlib
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmpatch.deployment.symbolic import make_openvino_extensions

KEY = 'mmpatch'
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
        names = ('batch', 'channels', 'height', 'width')
        sizes = zip(names, metadata['input_size'], strict=True)
        # Without this, sizes that were fixed in the trace are free, and give wrong outputs.
        model.reshape([-1 if name in metadata['dynamic'] else n for name, n in sizes])
        model.inputs[0].set_names({'image'})
        for output, name in zip(model.outputs, metadata['outputs'], strict=True):
            output.set_names({name})
        if calibration is not None:
            nncf = import_package('nncf', 'openvino')
            data = nncf.Dataset([x.numpy() for x in calibration])
            model = nncf.quantize(model, data, subset_size=len(calibration))
        model.set_rt_info(json.dumps(metadata), [KEY])
        openvino.save_model(model, file, compress_to_fp16=False)

    @staticmethod
    def read(file: Path) -> tuple[str | None, Run]:
        """Metadata, and a function that runs the network with as many threads as torch has.

        OpenVINO runs networks in bfloat16 by default where a CPU has it; here, only files that were
        exported for it.
        """
        import openvino

        core = openvino.Core()
        model = core.read_model(file)
        metadata = str(model.get_rt_info([KEY]).astype(str)) if model.has_rt_info([KEY]) else None
        precision = json.loads(metadata)['precision'] if metadata else 'f32'
        settings = {
            'INFERENCE_PRECISION_HINT': 'f32' if precision == 'f32' else 'bf16',
            'INFERENCE_NUM_THREADS': torch.get_num_threads(),
            'PERFORMANCE_HINT': 'LATENCY',
        }
        request = core.compile_model(model, 'CPU', settings).create_infer_request()

        def run(x: Tensor) -> list[Tensor]:
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
        torch.export.save(program, file, extra_files={f'{KEY}.json': json.dumps(metadata)})

    @staticmethod
    def read(file: Path) -> tuple[str | None, Run]:
        """Metadata, and the program as a module."""
        if any('data/aotinductor/' in name for name in zipfile.ZipFile(file).namelist()):
            return CompiledFile.read(file)
        extra = {f'{KEY}.json': ''}
        module = torch.export.load(file, extra_files=extra).module()
        return extra[f'{KEY}.json'] or None, torch.no_grad()(module)


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
        aoti_compile_and_package(program, package_path=str(file), inductor_configs=settings)

    @staticmethod
    def read(file: Path) -> tuple[str | None, Run]:
        """Metadata, and the compiled program."""
        from torch._inductor import aoti_load_package

        package: Any = aoti_load_package(str(file))
        return package.loader.get_metadata().get(KEY), torch.no_grad()(package)


FORMATS: dict[str, Any] = {cls.suffix: cls for cls in (OnnxFile, OpenVinoFile, ProgramFile)}


def find_format(file: Path) -> Any:
    """Class of a file's format, whose packages are installed.

    Raises:
        ExportError: If the suffix is none of the formats, or a package is missing.
    """
    if file.suffix not in FORMATS:
        raise ExportError(f'{file.name} has none of the suffixes {", ".join(FORMATS)}')
    found = FORMATS[file.suffix]
    for package in found.packages:
        import_package(package, found.extra)
    return found


def import_package(name: str, extra: str) -> Any:
    """Import a package of an extra of this project."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f'{error}; pip install "mmpatch[{extra}]"') from error


def read_file(file: str | Path) -> tuple[dict[str, Any], Run]:
    """Metadata of an exported file, and a function from images to its outputs.

    Raises:
        ExportError: If there is no such file, its engine is missing or cannot read it, or it was
            not written by :func:`mmpatch.export`.
    """
    path = Path(file)
    if not path.is_file():
        raise ExportError(f'there is no file {path}; mmpatch.export or tools/export.py writes it')
    found = find_format(path)
    try:
        metadata, run = found.read(path)
    except Exception as error:  # engines raise what they like
        raise ExportError(f'{path} cannot be read: {first_line(error)}') from error
    if metadata is None:
        raise ExportError(f'{path} was not written by mmpatch.export, and does not say what it is')
    return json.loads(metadata), run


def first_line(error: Exception) -> str:
    """The line of an error's message that says most."""
    lines = [line.strip(' -') for line in str(error).splitlines() if line.strip(' -')]
    telling = [line for line in lines if any(w in line for w in ('No conversion', 'Guard', 'not '))]
    return (telling or lines or [type(error).__name__])[0]
