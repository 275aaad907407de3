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
    if isinstance(indices, int):
        raise ValueError(f'{name}={indices} is one number; write ({indices},)')
    given = tuple(indices)
    if any(not 0 <= i < count for i in given):
        hint = '; each stage is several blocks, so count stages, not blocks' * (what == 'stages')
        raise ValueError(
            f'{name}={given} must name {what} of 0..{count - 1} ({count} {what}){hint}'
        )
    if list(given) != sorted(set(given)):
        raise ValueError(f'{name}={given} must increase')
    return given


def check_drop_path_rate(name: str, rate: float) -> None:
    """ValueError unless a drop rate is in [0, 1]."""
    if not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise ValueError(f'{name}: drop_path_rate={rate!r} is not in [0, 1]')


def get_compile_settings(name: str, compile: bool | dict[str, Any]) -> dict[str, Any] | None:
    """Arguments of :func:`torch.compile`, None for not compiling; ValueError for a number, say."""
    if not isinstance(compile, bool | dict):
        raise ValueError(f"{name}: compile={compile!r} is not True, False or dict(mode='...')")
    return {} if compile is True else compile or None
