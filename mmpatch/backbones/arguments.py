"""Checks and broadcasting of the arguments that networks are made from."""

from collections.abc import Sequence
from typing import Any


def broadcast_to_stages(name: str, value: Any, count: int) -> list[Any]:
    """One value for each stage from one for all or one for each; ValueError for another number."""
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise ValueError(f'{name}={value} has {len(values)} entries for {count} stages')
    return values


def broadcast_to_blocks(name: str, value: Any, depths: Sequence[int]) -> list[Any]:
    """One value for each block from one for all, for each stage or for each block, likewise."""
    blocks = sum(depths)
    values = list(value) if isinstance(value, list | tuple) else [value] * blocks
    if len(values) == len(depths):
        return [spec for spec, depth in zip(values, depths, strict=True) for _ in range(depth)]
    if len(values) == blocks:
        return values
    raise ValueError(
        f'{name} has {len(values)} entries; give one, {len(depths)} (one a stage) '
        f'or {blocks} (one a block)'
    )


def check_increasing(name: str, what: str, indices: Sequence[int], count: int) -> tuple[int, ...]:
    """Indices of 0..count - 1 that increase, or ValueError; ``what`` they index: 'stages', say."""
    given = tuple(indices)
    if any(not 0 <= i < count for i in given):
        raise ValueError(f'{name}={given} must name {what} of 0..{count - 1} ({count} {what})')
    if list(given) != sorted(set(given)):
        raise ValueError(f'{name}={given} must increase')
    return given
