"""Running the project's tools as a user would, and a server of files."""

import http.server
import importlib.machinery
import importlib.util
import multiprocessing
import os
import runpy
import sys
import threading
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

ROOT = Path(__file__).parents[1]
MMCV = importlib.util.find_spec('mmcv')
#: Where the ops of mmcv are, if they are compiled; what it has imported may be the stand-in.
COMPILED_OPS = MMCV and importlib.machinery.PathFinder.find_spec(
    'mmcv._ext', MMCV.submodule_search_locations
)
needs_stand_in = pytest.mark.skipif(bool(COMPILED_OPS), reason='compiled mmcv refuses this')
#: Whether MMEngine is the fork, whose hosts differ in ways that docs/install.md names.
IS_FORK = any(distributions(name='onedl-mmengine'))
SERVER = multiprocessing.get_context('forkserver')
#: What the tools import.
PRELOADED = ['mmpatch.backbones', 'mmpatch.deployment']
PRELOADED += [f'{h}.{m}' for h in ('mmdet', 'mmseg') for m in ('apis', 'datasets', 'evaluation')]


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


def run_on_two_ranks(task, folder):
    """What ``task(rank)`` returns in two processes that are joined over gloo, by rank."""

    def run(rank):
        torch.distributed.init_process_group(
            'gloo', f'file://{folder}/store', rank=rank, world_size=2
        )
        queue.put((rank, task(rank)))
        torch.distributed.destroy_process_group()

    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    ranks = [context.Process(target=run, args=(rank,)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    results = dict(queue.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join()
    return results[0], results[1]


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


def try_tool(*words, cwd=ROOT, env=None):
    """Do what ``python WORDS`` does, in a new process that need not import torch and the hosts.

    A script is one of this project, or has an absolute path.

    Returns:
        Exit status, negative for a signal, and what was printed.
    """
    SERVER.set_forkserver_preload(PRELOADED)
    words = [str(word) for word in words]
    words[0] = words[0] if words[0] in ('-c', '-m') else str(ROOT / words[0])
    reader, writer = SERVER.Pipe(duplex=False)
    work = words, str(cwd), {**child_environment(), **(env or {})}, writer
    process = SERVER.Process(target=_run_words, args=work)
    process.start()
    writer.close()
    with reader, open(reader.fileno(), errors='replace', closefd=False) as stream:
        text = stream.read()
    process.join()
    return process.exitcode, text


def run_tool(*words, **kwargs):
    """Do the same, and return what was printed; a failure fails the test."""
    status, text = try_tool(*words, **kwargs)
    assert status == 0, f'{words}: {text[-4000:]}'
    return text


def _run_words(words, folder, environment, writer):
    os.environ.clear()
    os.environ.update(environment)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(writer.fileno(), stream.fileno())
        stream.reconfigure(line_buffering=True)  # lines of both in their order
    writer.close()
    os.chdir(folder)
    torch.set_num_threads(1)
    kind, *others = words
    sys.argv = words if kind not in ('-c', '-m') else others
    sys.path[:0] = [path for path in environment.get('PYTHONPATH', '').split(os.pathsep) if path]
    if kind == '-c':
        exec(others[0], {'__name__': '__main__'})
    elif kind == '-m':
        runpy.run_module(others[0], run_name='__main__')
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name='__main__')
