"""Registries of mmpatch.

MMEngine imports this module, then the ``locations`` below, the first time that a config names
``type='mmpatch.X'``: no ``custom_imports`` is needed in mmdet, mmseg or any other host.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine import registry
from torch import nn

#: Of what a model and a pipeline are built.
ROOTS = registry.MODELS, registry.TASK_UTILS, registry.TRANSFORMS, registry.WEIGHT_INITIALIZERS
#: Makes a module of a given width, so that a block can be told what to mix or normalise with.
Factory = Callable[[int], nn.Module]

MODELS = registry.Registry(
    'model',
    parent=registry.MODELS,
    scope='mmpatch',
    locations=[
        'mmpatch.layers',
        'mmpatch.mixers',
        'mmpatch.backbones',
        'mmpatch.necks',
        'mmpatch.heads',
        'mmpatch.deployment',
    ],
)
_make_engine_registry = partial(registry.Registry, scope='mmpatch', locations=['mmpatch.engine'])
HOOKS = _make_engine_registry('hook', parent=registry.HOOKS)
OPTIM_WRAPPERS = _make_engine_registry('optimizer wrapper', parent=registry.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _make_engine_registry(
    'optimizer wrapper constructor', parent=registry.OPTIM_WRAPPER_CONSTRUCTORS
)


def make_factory(spec: str | dict[str, Any] | Factory | None) -> Factory:
    """Turn what a config says of a layer into a callable that makes it.

    Args:
        spec: A registered type name, a dict with ``type`` and keyword arguments, a callable that is
            returned as it is, or None for the identity. An ``nn.Module`` is refused, since every
            block that it is given to would share its parameters.

    Raises:
        TypeError: If ``spec`` is a module, or no name, dict or callable.
        KeyError: If the type is registered nowhere; the message lists the types of mmpatch.
    """
    if spec is None:
        return nn.Identity
    if isinstance(spec, nn.Module):
        raise TypeError(f'{type(spec).__name__} is a module and would be shared; give its class')
    if callable(spec):
        return spec
    if isinstance(spec, str):
        spec = {'type': spec}
    if not isinstance(spec, dict) or 'type' not in spec:
        raise TypeError(f'expected a type name, a dict with `type`, or a callable, got {spec!r}')
    kwargs = {key: value for key, value in spec.items() if key not in ('type', '_scope_')}
    cls = spec['type']
    if isinstance(cls, str):  # any other name would be imported, and called
        cls = MODELS.get(cls) if is_known(cls) else None
    if cls is None:
        raise KeyError(
            f'{spec["type"]!r} is not registered; mmpatch has {sorted(MODELS.module_dict)}'
        )
    return partial(cls, **kwargs)


def check_types(value: Any, source: str) -> None:
    """Check that the types in a config from a stranger are names that registries know.

    MMEngine takes any other name with a dot for the path of something to import and call.

    Raises:
        ValueError: Names the first that is not.
    """
    if isinstance(value, dict):
        kind = value.get('type')
        if isinstance(kind, str) and not is_known(kind):
            why = f'type={kind!r}, no known class; only a config file (.py) may name others'
            raise ValueError(f'the config in {source} has {why}')
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else ():
        check_types(item, source)


def is_known(kind: str) -> bool:
    """Whether a name is registered, with or without its scope, or is an op of mmcv.

    A class that a config imports is stored with its module: ``mmdet.models.RetinaNet``.
    """
    scope, dot, name = kind.rpartition('.')
    if not dot and hasattr(sys.modules.get('mmcv.ops'), name):
        return True  # hosts look up a kind of NMS or RoIAlign there
    for root in ROOTS:
        child = root.children.get(scope.split('.')[0])
        for part in [child or root] if dot else [root, *root.children.values()]:
            part.import_from_location()
            found = part.module_dict.get(name)
            is_class = found is not None and found is getattr(sys.modules.get(scope), name, None)
            if is_class or (found and (not dot or scope in root.children)):
                return True
    return False
