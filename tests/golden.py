"""Reference outputs of the authors' own code, and the weights and images behind them.

``tests/data/NAME.npz`` holds, for every output, its shape, the mean and standard deviation of each
channel, and a crop. ``NAME.json`` holds the input and the published names and shapes of weights. No
weights are stored, because every tensor is a function of its published name and shape: standard
normal numbers seeded with the CRC of the name. Kernels are divided by the root of their fan-in;
norm weights lie around 1, layer scales around 0.3, biases and gates around 0 with deviation 0.1.

Make the files of a reference again from a checkout of the authors' repository:

    python tests/golden.py --make poolformer_s12 --from PATH_TO_CHECKOUT
"""

import argparse
import importlib
import json
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

DATA = Path(__file__).parent / 'data'


@dataclass(frozen=True)
class Source:
    """Code of a reference.

    Attributes:
        repository: Where it is published.
        file: Its path in the repository.
        build: Model from the imported file.
        taps: Modules of the model whose outputs are recorded, in order.
        meta: Input and description, as they stand in the JSON file.
    """

    repository: str
    file: str
    build: Callable[[ModuleType], nn.Module]
    taps: tuple[str, ...]
    meta: dict


def build_convmixer(code):
    """ConvMixer-768/32 as its weights were trained: the file always builds GELU."""
    model = code.ConvMixer(768, 32, kernel_size=7, patch_size=7)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GELU):
                setattr(module, name, nn.ReLU())
    return model


SOURCES = {
    'poolformer_s12': Source(
        'sail-sg/poolformer',
        'models/poolformer.py',
        lambda code: code.poolformer_s12(),
        ('network.0', 'network.2', 'network.4', 'network.6', 'norm'),
        {
            'input': [2, 3, 224, 256],
            'seed': 21,
            'outputs': 'after stage 1, 2, 3, 4 (no output norm), then the final GroupNorm of the '
            'classifier',
        },
    ),
    **{
        f'metaformer_{kind}_s12': Source(
            'sail-sg/poolformer',
            'models/metaformer.py',
            lambda code, kind=kind: getattr(code, f'metaformer_{kind}_s12_224')(),
            taps,
            {
                'input': [2, 3, 224, 224],
                'seed': seed,
                'outputs': 'after stage 1, 2, 3, 4 (no output norm), then the final norm of the '
                'classifier',
            },
        )
        for kind, seed, taps in (
            ('ppaa', 31, ('network.0', 'network.2', 'network.5', 'network.7', 'norm')),
            ('pppf', 32, ('network.0', 'network.2', 'network.4', 'network.6', 'norm')),
        )
    },
    'container_light': Source(
        'allenai/container',
        'models.py',
        lambda code: code.container_v1_light(),
        ('blocks1.2', 'blocks2.3', 'blocks3.7', 'blocks4.2', 'norm'),
        {
            'input': [2, 3, 224, 224],
            'seed': 11,
            'outputs': 'after stage 1, 2, 3, 4 (no output norm), then the final BatchNorm of '
            'stage 4',
        },
    ),
    'convmixer_768_32': Source(
        'locuslab/convmixer',
        'convmixer.py',
        build_convmixer,
        ('10', '18', '26', '34'),  # the blocks are 3 to 34
        {
            'input': [1, 3, 224, 224],
            'seed': 31,
            'activation': 'ReLU',
            'kernel_size': 7,
            'patch_size': 7,
            'outputs': 'after each quarter of the blocks',
        },
    ),
}


def make_reference(name, checkout, folder=DATA):
    """Run the authors' code and write ``NAME.npz`` and ``NAME.json``.

    Args:
        name: One of ``SOURCES``.
        checkout: Folder of the authors' repository.
        folder: Where the files go.

    Raises:
        FileNotFoundError: If the checkout lacks the file of the model.
    """
    source = SOURCES[name]
    file = Path(checkout) / source.file
    if not file.is_file():
        raise FileNotFoundError(f'{file} does not exist: give a checkout of {source.repository}')
    model = randomize(source.build(import_file(file)))
    keys = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    meta = {**source.meta, 'keys': keys}
    outputs = {}
    for tap in source.taps:
        model.get_submodule(tap).register_forward_hook(
            lambda module, args, output, tap=tap: outputs.update({tap: output})
        )
    with torch.no_grad():
        model(image(meta))
    arrays = {
        f'{what}_{i}': array
        for i, tap in enumerate(source.taps)
        for what, array in summarize(outputs[tap]).items()
    }
    np.savez_compressed(Path(folder) / f'{name}.npz', **arrays)
    (Path(folder) / f'{name}.json').write_text(json.dumps(meta, indent=0))


def import_file(file):
    """Import a file of the authors', written for timm 0.4; it may import others of its folder."""
    import timm.layers

    sys.modules.setdefault('timm.models.layers.helpers', timm.layers.helpers)
    for name in [name for name in sys.modules if name.startswith('published_code')]:
        del sys.modules[name]
    package = sys.modules['published_code'] = ModuleType('published_code')
    package.__path__ = [str(file.parent)]
    return importlib.import_module(f'published_code.{file.stem}')


def summarize(output):
    """What is stored of a (B, C, H, W) output."""
    y = output.detach().numpy()
    return {
        'shape': np.array(y.shape),
        'mean': y.mean((0, 2, 3)),
        'std': y.std((0, 2, 3)),
        'crop': y[:, :8, :7, :7],
    }


def load_reference(name):
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


def measure_errors(name, outputs):
    """Relative errors of outputs against a reference: of means, deviations and crops."""
    reference = np.load(DATA / f'{name}.npz')
    for i, output in enumerate(outputs):
        found = summarize(output)
        assert tuple(reference[f'shape_{i}']) == tuple(found.pop('shape'))
        for what, a in found.items():
            b = reference[f'{what}_{i}']
            yield np.linalg.norm(a - b) / np.linalg.norm(b)


def randomize(model):
    """A model in which every parameter and statistic is random: none is right by its start."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(np.array(value(name, tuple(tensor.shape)))))
    return model.eval()


def rename_to_published(state):
    """State dict of a PoolFormer, or of a detector with one as backbone, as its authors name it."""
    rules = [(r'^(backbone\.)?stem\.conv', r'\1patch_embed.proj')]
    entry = 0
    for i in range(4):
        stage = rf'^(backbone\.)?stages\.{i}\.'
        rules.append((rf'{stage}downsample\.conv', rf'\1network.{entry - 1}.proj'))
        if any(key.endswith(f'stages.{i}.positions.pos_embed') for key in state):
            rules.append((rf'{stage}positions', rf'\1network.{entry}'))
            entry += 1
        rules.append((rf'{stage}blocks', rf'\1network.{entry}'))
        rules.append((rf'^(backbone\.)?out_norms\.{i}', rf'\1norm{2 * i}'))
        entry += 2
    rules += [(r'layer_scale(\d)\.scale', r'layer_scale_\1'), (r'mixer\.fc1', 'mixer.fc')]
    named = {}
    for key, tensor in state.items():
        for ours, theirs in rules:
            key = re.sub(ours, theirs, key)
        named[key] = tensor
    return named


def main(args=None):
    parser = argparse.ArgumentParser(description='Make the files of a reference.')
    parser.add_argument('--make', choices=SOURCES, required=True, metavar='NAME', dest='name')
    parser.add_argument('--from', required=True, metavar='CHECKOUT', dest='checkout')
    parser.add_argument('--out', default=DATA, type=Path, metavar='FOLDER', dest='folder')
    make_reference(**vars(parser.parse_args(args)))


if __name__ == '__main__':
    main()
