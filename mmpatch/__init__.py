"""mmpatch: MetaFormer backbones for dense prediction with OpenMMLab."""

from difflib import get_close_matches
from fnmatch import filter as match_names
from pathlib import Path
from typing import Any

from mmpatch.compat import install

__version__ = '0.2.0'

__all__ = [
    '__version__',
    'config_path',
    'deploy',
    'export',
    'list_configs',
    'list_models',
    'list_weights',
    'predict',
    'save_pretrained',
]

_CONFIGS = Path(__file__).parent / '.mim' / 'configs'

install()


def deploy(model: Any) -> Any:
    """Copy a model for inference: see :func:`mmpatch.deployment.fold.deploy`."""
    from mmpatch.deployment import fold  # imported here, since it loads torchvision and timm

    return fold.deploy(model)


def export(model: Any, file: Any, **settings: Any) -> dict[str, Any]:
    """Write a network to a file for an engine: see :func:`mmpatch.deployment.export.export`."""
    from mmpatch import deployment

    return deployment.export(model, file, **settings)


def predict(config: Any, checkpoint: Any, inputs: Any, **settings: Any) -> Any:
    """Predict on pictures and videos: see :func:`mmpatch.inference.predict.predict`."""
    from mmpatch import inference

    return inference.predict(config, checkpoint, inputs, **settings)


def list_models(filter: str = '') -> list[str]:
    """Sorted names of the networks of all families, such as 'poolformer-s12'.

    The tools take them, and :func:`mmpatch.backbones.names.find_network` says what each stands for.
    ``timm.list_models`` lists what :class:`mmpatch.backbones.TimmBackbone` takes.

    Args:
        filter: Pattern of :mod:`fnmatch` such as 'vit-*', that the whole name must match.
    """
    from mmpatch.backbones import names

    return sorted(match_names(names.list_networks(), filter or '*'))


def list_weights(filter: str = '') -> list[str]:
    """Sorted names of the published files, which are loaded as ``mmpatch://NAME``.

    Args:
        filter: As in :func:`list_models`, with or without ``mmpatch://``.
    """
    from mmpatch.checkpoint.published import SCHEME, list_published

    return sorted(match_names(list_published(), filter.removeprefix(SCHEME) or '*'))


def list_configs(filter: str = '') -> list[str]:
    """Sorted names of the configs of this package, as :func:`config_path` and ``mmpatch::`` take.

    Those in ``_base_``, which are whole only with a backbone, are not listed.

    Args:
        filter: As in :func:`list_models`; '*' matches folders, too.
    """
    names = (path.relative_to(_CONFIGS).as_posix() for path in _CONFIGS.rglob('*.py'))
    whole = (name for name in names if not name.startswith('_base_/'))
    return sorted(match_names(whole, filter or '*'))


def save_pretrained(model: Any, folder: Any) -> None:
    """Write a backbone as a folder: see :func:`mmpatch.checkpoint.save.save_pretrained`."""
    from mmpatch.checkpoint import save

    save.save_pretrained(model, folder)


def config_path(name: str) -> str:
    """Path of one of this package's configs.

    For tools that know nothing of mmpatch, ``_base_ = [__import__('mmpatch').config_path(NAME)]``
    inherits it; after ``import mmpatch``, ``_base_ = 'mmpatch::NAME'`` does.

    Args:
        name: One of :func:`list_configs` or of ``_base_``, with or without its folder, ``.py`` and
            ``mmpatch::`` in front.

    Raises:
        ValueError: If there is no such config; the message names the nearest.
    """
    stem = name.removeprefix('mmpatch::').removesuffix('.py')
    if stem.startswith('_base_/') and (_CONFIGS / f'{stem}.py').is_file():
        return str(_CONFIGS / f'{stem}.py')
    configs = list_configs()
    for known in configs:
        if stem in (known.removesuffix('.py'), Path(known).stem):
            return str(_CONFIGS / known)
    near = ', '.join(get_close_matches(name, configs, cutoff=0.4)) or 'none is similar'
    lists = 'mmpatch.list_configs() lists all'
    raise ValueError(f'mmpatch has no config {name!r}; nearest: {near}. {lists}')
