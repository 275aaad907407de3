"""mmpatch: MetaFormer backbones for dense prediction with OpenMMLab."""

from pathlib import Path
from typing import Any

from mmpatch.compat import install

__version__ = '0.2.0'

__all__ = ['__version__', 'config_path', 'deploy', 'export', 'list_configs', 'predict']

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
    """Predict on pictures and videos: see :func:`mmpatch.engine.predict.predict`."""
    from mmpatch.engine import predict as predicting

    return predicting.predict(config, checkpoint, inputs, **settings)


def list_configs() -> list[str]:
    """Names of the configs of this package, as :func:`config_path` and ``mmpatch::`` take them.

    Those in ``_base_``, which are whole only with a backbone, are not listed.
    """
    names = (path.relative_to(_CONFIGS).as_posix() for path in _CONFIGS.rglob('*.py'))
    return sorted(name for name in names if not name.startswith('_base_/'))


def config_path(name: str) -> str:
    """Path of one of this package's configs.

    For tools that know nothing of mmpatch, ``_base_ = [__import__('mmpatch').config_path(NAME)]``
    inherits it; after ``import mmpatch``, ``_base_ = 'mmpatch::NAME'`` does.

    Raises:
        ValueError: If there is no such config; the message lists all names.
    """
    path = _CONFIGS / name
    if path.suffix != '.py' or not path.is_file():
        raise ValueError(f'mmpatch has no config {name!r}; it has {list_configs()}')
    return str(path)
