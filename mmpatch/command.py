"""The command ``mmpatch``: the tools of this package and of its hosts, from any folder."""

import difflib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import mmpatch
from mmpatch.compat import ops
from mmpatch.engine.tool import HOSTS

#: Commands that run a file of ``tools``: the file, and what it does.
TOOLS = {
    'train': ('train.py', 'train a detector or a segmentor'),
    'test': ('test.py', 'evaluate a checkpoint, save or draw its predictions'),
    'predict': ('predict.py', 'find boxes, masks or class maps in photographs and videos'),
    'export': ('export.py', 'write a model for OpenVINO, onnxruntime or torch.export'),
    'flops': ('analysis/get_flops.py', 'count parameters, multiply-adds and activations'),
    'visualize': ('visualize.py', 'draw what a network sees'),
    'convert': ('convert_checkpoint.py', "rename the tensors of a published file to mmpatch's"),
    'reproduce': ('reproduce.py', 'check a released detector or segmentor'),
}
#: Packages that a bug report names besides those that MMEngine collects.
PACKAGES = ('timm', 'numpy', 'mmcv', *HOSTS, 'openvino', 'onnxruntime')
FOLDER = Path(mmpatch.__file__).parent / '.mim' / 'tools'


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command: ``mmpatch NAME ARGUMENTS``.

    Args:
        arguments: Name and arguments; by default those of the process.

    Raises:
        SystemExit: If there is no such command, host or tool; the message says what there is.
    """
    name, *rest = arguments or sys.argv[1:] or ['--help']
    if name in TOOLS:
        run_file(FOLDER / TOOLS[name][0], f'mmpatch {name}', rest)
    elif {name, *(rest[:1] if name in ('run', 'env') else ())} & {'-h', '--help'}:
        print(write_help())
    elif name == 'run':
        run_tool_of_host(rest)
    elif name == 'env':
        print('\n'.join(list_environment()))
    else:
        sys.exit(f'error: mmpatch has no command {name!r}\n{write_help()}')


def write_help() -> str:
    """How to call the command, with a line for each name."""
    lines = {name: about for name, (_, about) in TOOLS.items()}
    lines['run'] = 'run a tool of mmdet or mmseg: mmpatch run mmdet|mmseg TOOL ...'
    lines['env'] = 'list versions and devices, for a bug report'
    table = [f'  {name:<11}{about}' for name, about in lines.items()]
    start = f'mmpatch {mmpatch.__version__}. Usage: mmpatch COMMAND ...; COMMAND --help says more.'
    return '\n'.join([start, *table])


def run_file(file: Path, name: str, arguments: Sequence[str]) -> None:
    """Run a file as Python runs a script, under a name that its usage shows."""
    sys.argv = [name, *arguments]  # runpy would put the file's name there
    sys.path.insert(0, str(file.parent))
    script = sys.modules['__main__'] = ModuleType('__main__')
    script.__file__ = str(file)  # by which processes that it starts find its functions
    exec(compile(file.read_bytes(), file, 'exec'), vars(script))


def run_tool_of_host(arguments: Sequence[str]) -> None:
    """Run ``HOST TOOL ARGUMENTS`` with mmpatch imported before the host.

    Args:
        arguments: The tool is a file below the host's folder of tools, with or without its suffix
            and its folder: ``test``, ``browse_dataset``, ``analysis_tools/browse_dataset.py``. Of
            two with the same name it is the one nearer to the top.

    Raises:
        SystemExit: If the host or the tool is missing, in one line.
    """
    host, tool, *rest = [*arguments, *[''] * (2 - len(arguments))]
    if host not in HOSTS:
        sys.exit(f'error: {host!r} is no host; usage: mmpatch run {"|".join(HOSTS)} TOOL ...')
    found = importlib.util.find_spec(host)
    if found is None or found.origin is None:
        sys.exit(f'error: {host} is not installed; pip install "mmpatch[{HOSTS[host]}]"')
    folder = Path(found.origin).parent / '.mim' / 'tools'
    files = sorted(folder.rglob('*.py'), key=lambda path: (len(path.parts), path))
    names = [path.relative_to(folder).with_suffix('').as_posix() for path in files]
    wanted = tool.removeprefix('tools/').removesuffix('.py')
    for name, file in zip(names, files, strict=True):
        if wanted in (name, file.stem):
            return run_file(file, f'mmpatch run {host} {file.stem}', rest)
    stems = {name.rpartition('/')[2]: name for name in reversed(names)}
    near = [stems[stem] for stem in difflib.get_close_matches(wanted, stems)]
    hint = f'did you mean {" or ".join(near)}?' if near else '\n  '.join(['it has', *sorted(names)])
    sys.exit(f'error: {host} has no tool {tool!r}; {hint}')


def list_environment() -> list[str]:
    """Versions, ops, devices and threads, a line each."""
    import torch
    from mmengine.utils.dl_utils import collect_env

    found = {
        'mmpatch': f'{mmpatch.__version__} at {Path(mmpatch.__file__).parent}',
        'configs': f'{len(mmpatch.list_configs())} in {FOLDER.with_name("configs")}',
        **collect_env(),
    }
    for name in ('PyTorch compiling details', 'MUSA available', 'numpy_random_seed'):
        found.pop(name, None)
    distributions = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        known = [package] if importlib.util.find_spec(package) else []  # Python 3.10 lists fewer
        names = set(distributions.get(package, known))
        versions = [f'{importlib.metadata.version(name)} ({name})' for name in sorted(names)]
        found[package] = ', '.join(versions) or 'not installed'
    if 'mmcv' in distributions:
        found['ops of mmcv'] = ops.describe()
    found['CPU'] = f'{_read_cpu_name()}, {os.cpu_count()} cores'
    found['threads'] = f'{torch.get_num_threads()} of torch'
    if limit := os.environ.get('OMP_NUM_THREADS'):
        found['threads'] += f', OMP_NUM_THREADS={limit}'
    found['vector instructions'] = torch.backends.cpu.get_cpu_capability()
    return [f'{name}: {value}' for name, value in found.items()]


def _read_cpu_name() -> str:
    file = Path('/proc/cpuinfo')
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()
