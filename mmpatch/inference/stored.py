"""Configs that checkpoints carry, read without running them."""

import ast
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, TASK_UTILS, TRANSFORMS

REMEDY = 'give the config, too'


def read_stored_config(content: Any, source: str) -> Config:
    """Read the config that MMEngine saved in a checkpoint of its training.

    MMEngine saves it as Python code and runs that code to read it. Here it may assign literals and
    ``dict(...)`` and do nothing else.

    Args:
        content: Of the checkpoint.
        source: Name of the checkpoint, for errors.

    Raises:
        ValueError: If there is none, or if it is more than literals.
    """
    meta = content.get('meta') if isinstance(content, dict) else None
    text = meta.get('cfg') if isinstance(meta, dict) else None
    if not isinstance(text, str):
        raise ValueError(f'{source} holds no config of a training; {REMEDY}')
    try:
        lines: list[Any] = ast.parse(text).body
        values = {
            line.targets[0].id: ast.literal_eval(_DictCalls().visit(line.value)) for line in lines
        }
    except (AttributeError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f'the config in {source} is not plain values ({error}); {REMEDY}'
        ) from error
    return Config(values)


class _DictCalls(ast.NodeTransformer):
    """Writes ``dict(a=1)`` as ``{'a': 1}``, and ``dict({'a': 1})`` without the call."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict':
            return node  # which literal_eval refuses
        if node.args:
            return node.args[0] if len(node.args) == 1 and not node.keywords else node
        keys: list[ast.expr | None] = [ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(keys, [keyword.value for keyword in node.keywords])


def check_types(value: Any, source: str) -> None:
    """Check that the types in a stored config are names of classes that registries know.

    MMEngine takes any other name with a dot for the path of something to import and call.

    Raises:
        ValueError: Names the first that is not.
    """
    if isinstance(value, dict):
        kind = value.get('type')
        if isinstance(kind, str) and not _is_known(kind):
            raise ValueError(f'the config in {source} has type={kind!r}, no known class; {REMEDY}')
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else ():
        check_types(item, source)


def _is_known(kind: str) -> bool:
    scope, dot, name = kind.rpartition('.')
    if not dot:
        return name.isidentifier()  # evaluated by hosts, for a kind of NMS
    for root in (MODELS, TASK_UTILS, TRANSFORMS):
        if scope in root.children:
            root.children[scope].import_from_location()
            if name in root.children[scope].module_dict:
                return True
    return False
