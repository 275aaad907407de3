"""Configs that checkpoints carry, read without running them."""

import ast
from typing import Any

from mmengine.config import Config

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
