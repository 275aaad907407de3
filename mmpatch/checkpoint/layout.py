"""Layouts: how files name their tensors. A table of renaming rules must explain every key."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mmpatch.checkpoint.published import list_families

Target = str | Callable[[re.Match[str]], str] | None
Tensors = dict[str, Tensor]
#: Rows and columns of a model's positions; None for a model without.
Grid = tuple[int, ...] | None


@dataclass(frozen=True)
class Layout:
    """Renaming rules from one published layout to the names of this package.

    New names are those of the model or, for isotropic networks, ``blocks.N.`` with N counted
    through all stages. A family lists its layouts in ``LAYOUTS``.

    Attributes:
        name: Shown in the loading report.
        marker: Pattern of a key that only files of this layout have.
        rules: Pattern of a whole key -> its new name, as an ``re`` template or a function of the
            match, or None to drop the tensor. The first rule that matches counts.
        prepare: Converts the tensors before the rules, where renaming is not enough; takes the
            grid of the model's positions, too.
        prepare_classifier: Converts a file that may come from a classifier, before that.
    """

    name: str
    marker: str
    rules: tuple[tuple[str, Target], ...]
    prepare: Callable[[Tensors, Grid], Tensors] | None = None
    prepare_classifier: Callable[[Tensors], Tensors] | None = None

    def convert(self, tensors: Tensors, grid: Grid = None) -> Tensors:
        """Apply ``prepare``, if there is one; ValueError if the tensors have wrong shapes."""
        try:
            return self.prepare(tensors, grid) if self.prepare else tensors
        except (RuntimeError, LookupError) as error:
            raise ValueError(f'tensors of wrong shapes: {error}') from error

    def rename(self, key: str) -> str | None:
        """New name of a key; None if a rule drops it, '' if no rule matches."""
        for pattern, target in self.rules:
            if match := re.fullmatch(pattern, key):
                return match.expand(target) if isinstance(target, str) else target and target(match)
        return ''


def renumber(template: str, divide: int = 1, shift: int = 0) -> Callable[[re.Match[str]], str]:
    """Target of a rule whose ``{}`` is the first group, a number: shifted, then divided."""
    return lambda match: match.expand(template.format((int(match[1]) + shift) // divide))


#: State dicts of this package, and of timm's MetaFormer, which uses the same names.
METAFORMER_LAYOUT = Layout(
    'mmpatch or timm MetaFormer',
    r'stages\.0\.blocks\.0\..+',
    ((r'(stem|positions|stages|out_norms)\..+', r'\g<0>'), (r'head\..+', None)),
)


def list_layouts() -> list[Layout]:
    """That of the package, and those of all families."""
    return [METAFORMER_LAYOUT, *(layout for family in list_families() for layout in family.LAYOUTS)]


def find_layout(tensors: Tensors) -> Layout | None:
    """The layout that the keys are of; None if it is unknown."""
    found = (x for x in list_layouts() if any(re.fullmatch(x.marker, key) for key in tensors))
    return next(found, None)
