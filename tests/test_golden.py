"""The generator of reference outputs, on a network that the test builds itself."""

import json

import numpy as np
import pytest

import golden

#: ConvMixer from the paper's Figure 2, with the names that the authors' ``nn.Sequential`` gives.
CONVMIXER = """
from torch import nn


class SkipConnection(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.fn = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.fn(x)


def activate(conv):
    return conv, nn.GELU(), nn.BatchNorm2d(conv.out_channels)


def ConvMixer(dim, depth, kernel_size, patch_size):
    network = nn.Sequential(*activate(nn.Conv2d(3, dim, patch_size, patch_size)))
    for _ in range(depth):
        depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        pointwise = nn.Conv2d(dim, dim, 1)
        mixer = SkipConnection(*activate(depthwise))
        network.append(nn.Sequential(mixer, *activate(pointwise)))
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, 1000)
    return network.extend(head)
"""


def test_files_are_made_again(tmp_path):
    (tmp_path / 'convmixer.py').write_text(CONVMIXER)
    name = 'convmixer_768_32'
    golden.main(['--make', name, '--from', str(tmp_path), '--out', str(tmp_path)])
    assert (tmp_path / f'{name}.json').read_text() == (golden.DATA / f'{name}.json').read_text()
    made, stored = (np.load(folder / f'{name}.npz') for folder in (tmp_path, golden.DATA))
    assert made.files == stored.files
    for key in stored.files:
        assert made[key].dtype == stored[key].dtype
        assert np.linalg.norm(made[key] - stored[key]) <= 1e-5 * np.linalg.norm(stored[key])


@pytest.mark.parametrize('name', golden.SOURCES)
def test_sources_describe_the_stored_files(name):
    source = golden.SOURCES[name]
    meta = json.loads((golden.DATA / f'{name}.json').read_text())
    keys = meta.pop('keys')
    assert meta == source.meta
    assert len(np.load(golden.DATA / f'{name}.npz').files) == 4 * len(source.taps)
    for tap in source.taps:
        assert [key for key in keys if key.startswith(f'{tap}.')], tap


def test_wrong_checkout_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'models\.py .*checkout of allenai/container'):
        golden.make_reference('container_light', tmp_path)
