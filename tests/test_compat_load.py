"""Checkpoints are read with weights_only, and the types they need are allowed."""

import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

import mmpatch  # noqa: F401
from mmpatch.compat.safe_load import load_from_http


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


@pytest.mark.parametrize('loader', [load, lambda path: load_from_http(path.as_uri())])
def test_foreign_code_is_refused_and_not_run(tmp_path, loader, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': Payload(f'touch {tmp_path}/ran')}, path)
    with pytest.raises(
        pickle.UnpicklingError, match=r'evil\.pth is refused.*posix\.system'
    ) as error:
        loader(path)
    assert 'weights_only=False' in str(error.value)
    assert not (tmp_path / 'ran').exists()


def test_failed_download_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    with pytest.raises(OSError, match=r'none\.pth cannot be downloaded.*give its path'):
        load_from_http((tmp_path / 'none.pth').as_uri())


def test_damaged_and_missing_files_are_named(tmp_path):
    torch.save({'w': torch.ones(1000)}, tmp_path / 'whole.pth')
    cut = tmp_path / 'cut.pth'
    cut.write_bytes((tmp_path / 'whole.pth').read_bytes()[:2000])
    with pytest.raises(RuntimeError, match=r'cut\.pth is damaged'):
        load(cut)
    (tmp_path / 'page.pth').write_text('<html>404</html>')
    with pytest.raises((RuntimeError, pickle.UnpicklingError), match=r'page\.pth'):
        load(tmp_path / 'page.pth')
    (tmp_path / 'empty.pth').touch()
    with pytest.raises(RuntimeError, match=r'empty\.pth is damaged'):
        load(tmp_path / 'empty.pth')
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        load(tmp_path / 'none.pth')
