"""Names of this package's configs where MMEngine and the hosts read configs and build models."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine import hub
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.infer import BaseInferencer
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.utils import is_installed

SCOPE = 'mmpatch'
PREFIX = f'{SCOPE}::'
UNTRAINED = 'mmpatch has no trained detectors or segmentors'
_read_file = Config.fromfile
_find_base = Config._get_cfg_path
_load_model = BaseInferencer._load_model_from_metafile
_get_model = hub.get_model


def read_file(filename: Any, *args: Any, **kwargs: Any) -> Config:
    """``Config.fromfile``, which here takes ``mmpatch::NAME``, too. So does ``init_model``."""
    if str(filename).startswith(PREFIX):
        from mmpatch import config_path

        filename = config_path(str(filename))
    return _read_file(filename, *args, **kwargs)


def find_base(cfg_path: str, filename: str) -> tuple[str, str | None]:
    """Path of a config in ``_base_``, and the scope of its variables.

    MMEngine would look up the types in variables of ``mmpatch::NAME`` in mmpatch alone. They are
    types of the host, so there is no scope. For a base in another package, it would first parse all
    metafiles there, a third of a second in vain: they list names without ``.py``.
    """
    if cfg_path.startswith(PREFIX):
        from mmpatch import config_path

        return config_path(cfg_path), None
    scope, _, name = cfg_path.partition('::')
    package = find_spec(scope) if name and scope.isidentifier() else None
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, '.mim/configs', f'{name.removesuffix(".py")}.py')
        if file.is_file():
            return str(file), scope
    return _find_base(cfg_path, filename)


def load_model(self: BaseInferencer, model: str) -> tuple[Config, Any]:
    """Config of a name that an inferencer takes, and its weights, which mmpatch does not have.

    Types are then looked up in the host of the config, whatever ``scope`` is.
    """
    if self.scope != SCOPE and not model.startswith(PREFIX):
        return _load_model(self, model)
    cfg = read_file(PREFIX + model.removeprefix(PREFIX))
    self.scope = cfg.default_scope
    init_default_scope(self.scope)
    hint = f'without weights=FILE of your own training, {model} is untrained'
    warnings.warn(f'{UNTRAINED}: {hint}', stacklevel=2)
    return cfg, None


def get_model(cfg_path: str, pretrained: bool = False, **kwargs: Any) -> Any:
    """``mmengine.hub.get_model``, which here builds ``mmpatch::NAME`` with the config's host.

    Raises:
        ValueError: If trained weights are asked for.
    """
    if not cfg_path.startswith(PREFIX):
        return _get_model(cfg_path, pretrained, **kwargs)
    if pretrained:
        raise ValueError(f'{UNTRAINED}: leave pretrained out, and load a file of your own training')
    cfg = read_file(cfg_path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model, default_args=kwargs)


def install() -> str:
    """Let MMEngine find this package's configs by ``mmpatch::NAME``."""
    # MMEngine asks pip for the location of a package, which is wrong for editable installs. It asks
    # the import system only for names that pip does not know, such as that of a module.
    MODULE2PACKAGE[SCOPE] = 'mmpatch.registry'
    if not is_installed(MODULE2PACKAGE['mmseg']):  # its module may be that of a fork
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    Config.fromfile = staticmethod(read_file)
    Config._get_cfg_path = staticmethod(find_base)
    BaseInferencer._load_model_from_metafile = load_model
    hub.get_model = get_model
    return "mmpatch: configs can be inherited with _base_ = 'mmpatch::...'"
