"""Running the project's tools as a user would, and a server of files."""

import http.server
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from mmengine.visualization import Visualizer
from torch.autograd.graph import saved_tensors_hooks

ROOT = Path(__file__).parents[1]


def make_segmentor_data():
    """Two pictures with class maps, as mmseg collates them."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [SegDataSample() for _ in range(2)]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 97, 130)))
        sample.set_metainfo({'img_shape': (97, 130), 'ori_shape': (97, 130)})
    return {'inputs': [torch.randint(0, 256, (3, 97, 130))] * 2, 'data_samples': samples}


def make_detector_data(with_mask):
    """Two pictures of odd sizes with boxes, and with masks on request, as mmdet collates them."""
    from mmdet.testing import demo_mm_inputs

    shapes = [(3, 97, 130), (3, 64, 90)]
    return demo_mm_inputs(2, shapes, num_items=[3, 1], num_classes=80, with_mask=with_mask)


def pretrained(path, **kwargs):
    """What a config says to load a file."""
    return {'type': 'Pretrained', 'checkpoint': str(path), **kwargs}


def relative_error(a, b):
    """||a - b|| / ||b||, in float32."""
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def kept_bytes(model, x):
    """Bytes that autograd keeps of a forward pass, parameters apart."""
    parameters, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other moves in
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(size for size, _ in kept.values())


def child_environment():
    """Environment of a child process: one thread, and the package as the tests see it."""
    return {**os.environ, 'OMP_NUM_THREADS': '1'}


class FileServer(http.server.ThreadingHTTPServer):
    """Serves a file on this machine, and may break off.

    Attributes:
        breaks: After how many bytes each of the first answers ends.
        tag: ETag of the file; only with one can an answer start in its middle.
        location: Where every address redirects to, if it does.
        asked: First byte that each request asked for.
    """

    def __init__(self, data, breaks=(), tag='"1"', location=''):
        super().__init__(('127.0.0.1', 0), _FileHandler)
        self.data, self.breaks, self.tag, self.location = data, list(breaks), tag, location
        self.asked = []
        self.url = f'http://127.0.0.1:{self.server_port}'
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *args):
        self.shutdown()
        super().__exit__(*args)


class _FileHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, start = self.server, 0
        if server.tag and self.headers.get('If-Range') == server.tag:
            start = int(self.headers['Range'].removeprefix('bytes=').removesuffix('-'))
        server.asked.append(start)
        self.send_response(302 if server.location else 206 if start else 200)
        self.send_header('Location', server.location)
        self.send_header('ETag', server.tag)
        self.send_header('Content-Length', str(len(server.data) - start))
        self.end_headers()
        end = server.breaks.pop(0) if server.breaks else len(server.data)
        self.wfile.write(server.data[start : start + end])

    def log_message(self, *_):
        pass


def call_tool(monkeypatch, script, *arguments):
    """Run a script of the project in this process, which has imported already what takes time.

    For scripts that build no runner of MMEngine, which would leave state behind.
    """
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'argv', [script, *map(str, arguments)])
        patch.setenv('LOCAL_RANK', '0')
        patch.setenv('MMPATCH_KEEP_HEAP', '0')
        patch.chdir(ROOT)
        runpy.run_path(script, run_name='__main__')


def fork_tool(folder, script, *arguments):
    """Run a script, or `-m` and a module, in a folder, in a copy of this process: no imports.

    Returns:
        Exit status, 70 for an exception, and what was printed.
    """
    log = folder / 'output'
    child = os.fork()
    if not child:
        run_words([script if script == '-m' else ROOT / script, *arguments], folder, log)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text()


def run_words(words, folder, log, **environment):
    """Do what `python WORDS` does in a folder, and end this process, which was made for it."""
    status = 70
    try:
        with open(log, 'w') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')
        os.chdir(folder)
        environment |= {'LOCAL_RANK': '0', 'MPLBACKEND': 'Agg', 'MMPATCH_KEEP_HEAP': '0'}
        os.environ |= environment
        tempfile.tempdir = str(folder)
        torch.set_num_threads(1)
        for kind in (MMLogger, Visualizer):  # those of earlier tests, of another level or host
            kind._instance_dict.clear()
        _run_words(*map(str, words))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_words(first, *others):
    if first == '-c':
        sys.argv = ['-c', *others[1:]]
        exec(others[0], {'__name__': '__main__'})
    elif first == '-m':
        sys.argv = [*others]
        runpy.run_module(others[0], run_name='__main__')
    else:
        sys.argv = [first, *others]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name='__main__')


def run_tool(*command, cwd=ROOT, check=True, env=None, **kwargs):
    """Run a script of the project as a user would; its output is in the result."""
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**child_environment(), **(env or {})},
        capture_output=True,
        text=True,
        **kwargs,
    )
    if check and result.returncode:
        raise AssertionError(result.stdout[-2000:] + result.stderr[-4000:])
    return result
