"""Weights of a hub, and a backbone as a folder; nothing is downloaded."""

import json
import os
import resource
import signal
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from mmengine.runner import load_checkpoint

import mmpatch
from mmpatch.backbones import PoolFormer
from mmpatch.engine.build import build_network, read_network

from support import pretrained

TINY = {'depths': (1, 1, 1, 1), 'dims': (8, 8, 16, 16)}


@pytest.fixture
def saved(tmp_path):
    model = PoolFormer('s12', **TINY)
    mmpatch.save_pretrained(model, tmp_path / 'new/folder')
    return model, tmp_path / 'new/folder'


def make_hub(monkeypatch, folder, asked):
    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        if not (folder / file).is_file():
            raise EntryNotFoundError(f'no {file}')
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)


def load(checkpoint):
    model = PoolFormer('s12', **TINY, init_cfg=pretrained(checkpoint))
    model.init_weights()
    return model


def assert_equal(a, b):
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_a_folder_is_a_network_and_its_weights(saved):
    model, folder = saved
    written = json.loads((folder / 'config.json').read_text())
    assert written == {'type': 'mmpatch.PoolFormer', 'arch': 's12', **json.loads(json.dumps(TINY))}
    assert_equal(load(folder), model)
    cfg = read_network(str(folder))
    assert cfg.backbone.init_cfg.checkpoint == str(folder)
    assert build_network(cfg).load_file(checkpoint=str(folder)).new == []


def test_a_full_disk_leaves_the_older_files(saved):
    _, folder = saved
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            mmpatch.save_pretrained(PoolFormer('s12', **TINY), folder)
        except Exception:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_other_modules_and_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match='takes a backbone of mmpatch, not Linear'):
        mmpatch.save_pretrained(torch.nn.Linear(1, 1), tmp_path)
    model = PoolFormer('s12', **TINY, token_mixers=torch.nn.Identity)
    with pytest.raises(TypeError, match='PoolFormer has an argument without JSON'):
        mmpatch.save_pretrained(model, tmp_path)


def test_weights_of_a_hub(monkeypatch, saved):
    model, folder = saved
    asked = []
    make_hub(monkeypatch, folder, asked)
    assert_equal(load('hf-hub:me/mine@v1'), model)
    assert asked == [('me/mine', 'model.safetensors', 'v1')]
    torch.save(model.state_dict(), folder / 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()
    other = PoolFormer('s12', **TINY)
    load_checkpoint(other, 'hf-hub:me/mine')
    assert_equal(other, model)
    assert asked[1:] == [('me/mine', f'{x}', None) for x in ('model.safetensors', asked[-1][1])]


def test_missing_files_networks_and_packages_get_one_line(monkeypatch, tmp_path):
    make_hub(monkeypatch, tmp_path, [])
    with pytest.raises(FileNotFoundError, match='hf-hub:me/mine has none of the files model.safe'):
        load('hf-hub:me/mine')

    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError('offline')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fail)
    with pytest.raises(OSError, match='hf-hub:me/mine cannot be downloaded .*; fetch it elsewhere'):
        load('hf-hub:me/mine')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ImportError, match='hf-hub:me/mine: .*pip install huggingface_hub'):
        load('hf-hub:me/mine')
