"""Weights and images behind ``tests/data``: outputs of the authors' own code.

Every tensor is a function of its published name and shape, so no weights are stored: standard
normal numbers from the CRC of the name, kernels divided by the root of their fan-in, norm weights
around 1, biases and gates around 0 with deviation 0.1, layer scales around 0.3.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / 'data'


def published(name):
    """Description of a reference and its published state dict."""
    meta = json.loads((DATA / f'{name}.json').read_text())
    state = {
        key: torch.from_numpy(np.array(value(key, shape))) for key, shape in meta['keys'].items()
    }
    return meta, state


def value(key, shape):
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    x = rng.standard_normal(tuple(shape)).astype(np.float32)
    if key.endswith('running_var'):
        return 0.5 + np.abs(x)
    if key.endswith('running_mean'):
        return 0.1 * x
    if len(shape) > 1:
        return x / np.float32(np.sqrt(np.prod(shape[1:])))
    if key.endswith(('bias', 'sa_weight')):
        return 0.1 * x
    return 0.3 + 0.1 * x if 'layer_scale' in key else 1 + 0.1 * x


def image(meta):
    """The (B, 3, H, W) input of a reference."""
    rng = np.random.RandomState(meta['seed'])
    return torch.from_numpy(rng.standard_normal(meta['input']).astype(np.float32))


def errors(name, outputs):
    """Relative errors of outputs against a reference: of means, deviations and crops."""
    reference = np.load(DATA / f'{name}.npz')
    for i, output in enumerate(outputs):
        assert tuple(reference[f'shape_{i}']) == tuple(output.shape)
        y = output.detach().numpy()
        for what, a in (
            ('mean', y.mean((0, 2, 3))),
            ('std', y.std((0, 2, 3))),
            ('crop', y[:, :8, :7, :7]),
        ):
            b = reference[f'{what}_{i}']
            yield np.linalg.norm(a - b) / np.linalg.norm(b)


def randomised(model):
    """A model in which every parameter and statistic is random: none is right by its start."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(np.array(value(name, tuple(tensor.shape)))))
    return model.eval()


def named_by_poolformers_authors(state):
    """State dict of a PoolFormer, or of a detector with one as backbone, as its authors name it."""
    rules = [(r'^(backbone\.)?stem\.conv', r'\1patch_embed.proj')]
    for i in range(4):
        rules += [
            (rf'^(backbone\.)?stages\.{i}\.blocks', rf'\1network.{2 * i}'),
            (rf'^(backbone\.)?stages\.{i}\.downsample\.conv', rf'\1network.{2 * i - 1}.proj'),
            (rf'^(backbone\.)?out_norms\.{i}', rf'\1norm{2 * i}'),
        ]
    rules.append((r'layer_scale(\d)\.scale', r'layer_scale_\1'))
    named = {}
    for key, tensor in state.items():
        for ours, theirs in rules:
            key = re.sub(ours, theirs, key)
        named[key] = tensor
    return named
