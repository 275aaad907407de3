"""Data and settings that several tests share."""

import os
import runpy
from pathlib import Path

import pytest
import torch

from support import run_tool

# No test reaches the network, nor does a process that it starts.
OFFLINE = Path(__file__).with_name('offline')
os.environ['PYTHONPATH'] = os.pathsep.join([str(OFFLINE), os.environ.get('PYTHONPATH', '')])
runpy.run_path(str(OFFLINE / 'sitecustomize.py'))

torch.set_num_threads(1)
DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request):
    """Each device that is there; `make gpu` runs the tests of 'cuda'."""
    return request.param


@pytest.fixture(scope='session')
def toy(tmp_path_factory):
    """Twelve pictures to train on and six to evaluate on, in both layouts."""
    folder = tmp_path_factory.mktemp('toy')
    run_tool('tools/make_toy_data.py', '--out', folder, '--train', 12, '--val', 6)
    return folder


@pytest.fixture
def torch_seed():
    torch.manual_seed(0)
