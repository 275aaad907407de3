"""How published files name their tensors: one table a layout, in which every key must be found."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Renaming of one published layout to the names of this package.

    Attributes:
        name: Shown in the loading report.
        marker: A key with which only files of this layout come.
        rules: Pattern of a whole key -> its new name (``re`` template), or None to drop it.
    """

    name: str
    marker: str
    rules: tuple[tuple[str, str | None], ...]

    def rename(self, key: str) -> str | None:
        """New name of a key, or None if a rule drops it.

        Raises:
            KeyError: If no rule matches the key.
        """
        for pattern, target in self.rules:
            match = re.fullmatch(pattern, key)
            if match:
                return None if target is None else match.expand(target)
        raise KeyError(key)


def _network(pattern: str, target: str, first: int, step: int = 0) -> tuple[tuple[str, str], ...]:
    """Rules for the authors' one list of stages (even) and downsamplings (odd)."""
    return tuple(
        (pattern.format(2 * i + step), target.format(i + step)) for i in range(first, 4 - step)
    )


MMPATCH = Layout('mmpatch', 'stem.conv.weight', ((r'(stem|stages|out_norms)\..+', r'\g<0>'),))

POOLFORMER = Layout(
    'sail-sg/poolformer',
    'patch_embed.proj.weight',
    (
        (r'patch_embed\.proj\.(.+)', r'stem.conv.\1'),
        *_network(
            r'network\.{}\.(\d+)\.layer_scale_(\d)', r'stages.{}.blocks.\1.layer_scale\2.scale', 0
        ),
        *_network(r'network\.{}\.(\d+)\.((?:norm|mlp).+)', r'stages.{}.blocks.\1.\2', 0),
        *_network(r'network\.{}\.proj\.(.+)', r'stages.{}.downsample.conv.\1', 0, step=1),
        *((rf'norm{2 * i}\.(.+)', rf'out_norms.{i}.\1') for i in range(4)),
        (r'(norm|head)\..+', None),
    ),
)

LAYOUTS = (MMPATCH, POOLFORMER)
