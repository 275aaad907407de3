"""Checkpoints are read with weights_only, and the types they need are allowed."""

import argparse
import gzip
import io
import os
import pickle
import re
import shutil
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from safetensors.torch import save_file

import mmpatch  # noqa: F401
from mmpatch.checkpoint.load import read_checkpoint
from mmpatch.compat.safe_load import download

from support import FileServer, run_on_two_ranks


def load(path):
    return CheckpointLoader.load_checkpoint(str(path), 'cpu')


def test_what_published_checkpoints_hold_loads(tmp_path):
    buffer = HistoryBuffer()
    buffer.update(1.5)
    content = {
        'state_dict': {'w': torch.ones(2)},
        'message_hub': {'log_scalars': {'loss': buffer}},
        'args': argparse.Namespace(lr=0.1, betas=(0.9, 0.999)),
        'best': np.float64(0.5),
        'epoch': np.int64(3),
        'mask': np.array([True, False]),
    }
    torch.save(content, tmp_path / 'file.pth')
    loaded = load(tmp_path / 'file.pth')
    assert loaded['message_hub']['log_scalars']['loss'].current() == 1.5
    assert loaded['args'].lr == 0.1
    assert loaded['best'] == 0.5 and loaded['epoch'] == 3
    assert loaded['mask'].tolist() == [True, False]


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def enter_zoo(monkeypatch, path, url):
    """Let MMEngine's tables of URLs and MMEngine's storage know one file."""
    monkeypatch.setenv('TORCH_HOME', str(path.parent / 'hub'))
    for table in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(mmengine_checkpoint, table, lambda: {'net': url, 'local': str(path)})
    storage = SimpleNamespace(get=lambda name: path.read_bytes())
    monkeypatch.setattr(mmengine_checkpoint, 'get_file_backend', lambda *args, **kwargs: storage)
    pavi = SimpleNamespace(name='x', download=lambda dst: shutil.copy(path, dst))
    modules = SimpleNamespace(modelcloud=SimpleNamespace(get=lambda name: pavi))
    monkeypatch.setitem(sys.modules, 'pavi', modules)


SOURCES = (
    'path',
    'url',
    'torchvision://net',
    'modelzoo://net',
    'open-mmlab://net',
    'openmmlab://net',
    'openmmlab://local',
    'mmcls://net',
    's3://net',
    'petrel://net',
    'pavi://net',
)


@pytest.mark.parametrize('source', SOURCES)
def test_foreign_code_is_refused_and_not_run(tmp_path, source, monkeypatch):
    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': Payload(f'touch {tmp_path}/ran')}, path)
    with FileServer(path.read_bytes()) as server:
        url = f'{server.url}/evil.pth'
        enter_zoo(monkeypatch, path, url)
        with pytest.raises(pickle.UnpicklingError, match=r'posix\.system') as error:
            read_checkpoint({'path': str(path), 'url': url}.get(source, source))
    assert not (tmp_path / 'ran').exists()
    assert re.search(r'(evil\.pth|://\w+) is refused.*weights_only=False', str(error.value))


@pytest.mark.parametrize('source', SOURCES[2:])
def test_damage_is_named_whatever_the_scheme(tmp_path, source, monkeypatch):
    path = tmp_path / 'net.pth'
    torch.save({'w': torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with FileServer(path.read_bytes()) as server:
        enter_zoo(monkeypatch, path, f'{server.url}/net.pth')
        with pytest.raises(RuntimeError, match=r'(net\.pth|://\w+) is damaged') as error:
            read_checkpoint(source)
    assert str(error.value).count('is damaged') == 1


def test_names_that_no_table_has_are_named(monkeypatch, tmp_path):
    enter_zoo(monkeypatch, tmp_path, '')
    for scheme in ('torchvision', 'modelzoo', 'mmcls', 'openmmlab', 'open-mmlab'):
        with pytest.raises(RuntimeError, match=f"checkpoint {scheme}://resnet .*: 'resnet'"):
            read_checkpoint(f'{scheme}://resnet')


@pytest.mark.parametrize('protocol', range(2, 6))
def test_pickles_of_arrays_load(tmp_path, protocol):
    """As detectron2 publishes its models, without torch; by the names of numpy 1, too."""
    content = {
        'model': {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'f': np.ones(3, order='F')},
        '__author__': 'Detectron2',
        'count': np.int64(3),
    }
    path = tmp_path / 'file.pkl'
    path.write_bytes(pickle.dumps(content, protocol))
    for old in (False, True):
        if old and protocol < 4:  # later protocols give the length of each name
            path.write_bytes(path.read_bytes().replace(b'numpy._core', b'numpy.core'))
        loaded = load(path)
        assert loaded['model']['w'].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert loaded['model']['f'].sum() == 3
        assert loaded['__author__'] == 'Detectron2' and loaded['count'] == 3


@pytest.mark.parametrize('protocol', range(2, 6))
def test_pickles_that_run_code_are_refused(tmp_path, protocol):
    content = {'model': {'w': np.ones(2)}, 'hook': Payload(f'touch {tmp_path}/ran')}
    (tmp_path / 'evil.pkl').write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(pickle.UnpicklingError, match=r'evil\.pkl is refused: .*posix\.system'):
        load(tmp_path / 'evil.pkl')
    assert not (tmp_path / 'ran').exists()


def test_pickles_that_are_cut_off_are_named(tmp_path):
    whole = pickle.dumps({'model': {'w': np.ones(1000)}})
    (tmp_path / 'file.pkl').write_bytes(whole[:500])
    with pytest.raises(RuntimeError, match=r'file\.pkl is damaged'):
        load(tmp_path / 'file.pkl')


def test_failed_download_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    with pytest.raises(OSError, match=r'none\.pth cannot be downloaded.*give its path'):
        load('http://127.0.0.1:9/none.pth')


def test_a_download_of_another_hash_is_not_kept(tmp_path):
    message = r'net\.pth.* is not the file that was published.*a1311'
    with FileServer(b'something') as server, pytest.raises(RuntimeError, match=message):
        download(f'{server.url}/net.pth', str(tmp_path), sha256='a1311bcf')
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('tag', ['"1"', ''])
def test_a_download_that_breaks_off_goes_on(tmp_path, tag):
    data = os.urandom(5000)
    with FileServer(data, breaks=[1000, 500], tag=tag) as server:
        assert download(f'{server.url}/a.pth', str(tmp_path), False).read_bytes() == data
    assert server.asked == ([0, 1000, 1500] if tag else [0, 0, 0])
    assert len([*tmp_path.iterdir()]) == 1


def test_a_file_that_changes_during_its_download_begins_again(tmp_path):
    with FileServer(b'a' * 5000, breaks=[1000]) as server:
        answer = server.finish_request

        def change(*args):
            answer(*args)
            server.tag, server.data = '"2"', b'b' * 4000

        server.finish_request = change
        path = download(f'{server.url}/a.pth', str(tmp_path), False)
    assert path.read_bytes() == b'b' * 4000


def test_half_a_download_is_never_kept(tmp_path):
    message = r'a\.pth cannot be downloaded \(it broke off 4 times, at last after 400 bytes'
    with FileServer(bytes(5000), breaks=[100] * 4) as server, pytest.raises(OSError, match=message):
        download(f'{server.url}/a.pth', str(tmp_path), False)
    assert not [*tmp_path.iterdir()]


def test_only_https_is_downloaded(tmp_path):
    for url in ('http://example.org/a.pth', 'ftp://localhost/a.pth', 'file:///a.pth'):
        with pytest.raises(ValueError, match=f'^{url} is not https; fetch'):
            download(url, str(tmp_path))
    with FileServer(b'here') as target:  # by another name, a machine like any other
        other = f'http://127.1:{target.server_port}/a.pth'
        with FileServer(b'', location=other) as server, pytest.raises(ValueError, match='not ht'):
            download(f'{server.url}/a.pth', str(tmp_path))


@pytest.mark.process
@pytest.mark.parametrize('working', [True, False])
def test_one_rank_downloads_and_the_others_wait(tmp_path, working):
    def fetch(rank):
        try:
            return download(f'{url}/net.pth', str(tmp_path / 'hub')).read_text()
        except OSError as error:
            return str(error)

    with FileServer(b'x') as server:
        url = server.url if working else 'http://127.0.0.1:9'
        results = run_on_two_ranks(fetch, tmp_path)
    assert len(server.asked) == working
    assert all(text == 'x' if working else 'net.pth' in text for text in results)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        load(tmp_path / 'none.pth')


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
HTML = b'\n<!DOCTYPE html><html>404</html>'
DAMAGE = {
    'cut in the numbers': (lambda whole: whole[:2000], 'is cut off'),
    'cut in the directory': (lambda whole: whole[:-30], 'is cut off'),
    'a flipped bit': (lambda whole: flip(whole, whole.index(b'\x80?') + 400), 'CRC.*data/0'),
    'empty': (lambda whole: b'', 'empty'),
    'text': (lambda whole: b'hello' * 99, "starts with b'hello"),
    'a web page': (lambda whole: HTML, 'a web page'),
    'LFS': (lambda whole: LFS, 'git lfs pull'),
    'gzip': (gzip.compress, 'gzip; unpack it'),
    'JSON': (lambda whole: b'{"weight_map": {"a": "model-00001.safetensors"}}', 'sharded'),
}


@pytest.mark.parametrize('suffix', ['.pth', '.npz', '.safetensors'])
@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_and_foreign_files_are_named(tmp_path, damage, suffix):
    path = tmp_path / f'file{suffix}'
    torch.save({'w': torch.ones(1000)}, path)
    change, culprit = DAMAGE[damage]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RuntimeError, match=rf'file{suffix} is .*{culprit}') as error:
        load(path)
    assert 'weights_only' not in str(error.value)


@pytest.mark.parametrize('length', [1, 9, 40, 100, 500, 1500])
def test_every_length_of_an_old_file_that_is_cut_off_is_named(tmp_path, length):
    path = tmp_path / 'file.pth'
    torch.save({'w': torch.ones(500)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(RuntimeError, match=r'file\.pth is') as error:
        load(path)
    assert 'weights_only' not in str(error.value)


def test_files_without_checksums_load(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'w': torch.ones(3)}, tmp_path / 'file.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert load(tmp_path / 'file.pth')['w'].sum() == 3


def test_programs_are_told_from_checkpoints(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / 'file.pth')
    with pytest.raises(RuntimeError, match=r'file\.pth.*TorchScript program; save the state dict'):
        load(tmp_path / 'file.pth')


@pytest.mark.parametrize(
    'name', ['a.pth', 'a.SAFETENSORS', 'a#b.safetensors', 'a?b.safetensors', 'a.bin', 'a']
)
def test_the_content_tells_the_format_and_not_the_name(tmp_path, name):
    save_file({'w': torch.ones(3)}, tmp_path / name)
    assert load(tmp_path / name)['w'].sum() == 3
    with (tmp_path / name).open('wb') as file:
        np.savez(file, w=np.ones(3))
    assert load(tmp_path / name)['w'].sum() == 3


@pytest.mark.parametrize('kind', ['claims too much', 'text', 'objects'])
def test_arrays_that_are_no_numbers_are_named(tmp_path, kind):
    array = {'text': np.array(['a']), 'objects': np.array([{}]), 'claims too much': np.ones(3)}
    np.savez(tmp_path / 'file.npz', good=np.ones(2), bad=array[kind])
    if kind == 'claims too much':
        header = io.BytesIO()
        claim = {'descr': '<f4', 'fortran_order': False, 'shape': (10**12,)}
        np.lib.format.write_array_header_1_0(header, claim)
        with zipfile.ZipFile(tmp_path / 'file.npz', 'w') as archive:
            archive.writestr('bad.npy', header.getvalue() + b'0' * 64)
    with pytest.raises(RuntimeError, match=r"file\.npz.*array 'bad'"):
        load(tmp_path / 'file.npz')


CONTENTS = {
    'a list': [torch.ones(1)],
    'no state': {'state_dict': None},
    'a list of pairs': {'state_dict': [('w', torch.ones(1))]},
    'numbers for names': {'state_dict': {3: torch.ones(1)}},
    'integers': {'state_dict': {'a.weight': torch.ones(3, dtype=torch.int8)}},
    'truth values': {'a.bias': torch.ones(3).bool()},
    'complex numbers': {'a.bias': torch.ones(3) + 1j},
    'float8': {'w': torch.ones(3).to(torch.float8_e4m3fn)},
    'sparse': {'w': torch.eye(3).to_sparse()},
    'meta': {'w': torch.empty(3, device='meta')},
    'beyond float32': {'w': torch.tensor([1e300], dtype=torch.float64)},
    'beyond memory': {'w': torch.ones(1, 1).expand(600_000, 600_000)},
}


@pytest.mark.parametrize('kind', CONTENTS)
def test_what_cannot_be_weights_is_refused_on_every_route(tmp_path, kind, monkeypatch):
    torch.save(CONTENTS[kind], tmp_path / 'file.pth')
    enter_zoo(monkeypatch, tmp_path / 'file.pth', '')
    for source in (tmp_path / 'file.pth', 'openmmlab://local', 'pavi://net', 's3://net'):
        message = r'^checkpoint \S*(file\.pth|://\w+) (holds no|has)'
        with pytest.raises(ValueError, match=message):
            read_checkpoint(str(source))


def test_integers_that_are_no_weights_load(tmp_path):
    torch.save({'bn.num_batches_tracked': torch.tensor(3)}, tmp_path / 'file.pth')
    assert load(tmp_path / 'file.pth')['bn.num_batches_tracked'] == 3


def test_archives_that_unpack_to_far_more_are_refused(tmp_path):
    archive = zipfile.ZipFile(tmp_path / 'file.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open('w.npy', 'w', force_zip64=True) as record:
        for _ in range(35):
            record.write(bytes(2**26))
    with pytest.raises(RuntimeError, match=r'file\.npz .*: it would unpack to 2 GB'):
        load(tmp_path / 'file.npz')
