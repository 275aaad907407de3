"""Rules of the package, each as a test; lists of files come from the tree."""

import ast
import subprocess
import sys

import pytest

from support import ROOT

PACKAGE = ROOT / 'mmpatch'
FILES = sorted(
    path for path in PACKAGE.rglob('*.py') if '.mim' not in path.relative_to(PACKAGE).parts
)


def imports(*files, top_level_only=False):
    """Names of the modules that some files import."""
    found = set()
    for file in files:
        tree = ast.parse(file.read_text())
        for node in tree.body if top_level_only else ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
    return found


def part_of(file):
    """Folder below the package that a file stands in, or its own name."""
    return file.relative_to(PACKAGE).parts[0].removesuffix('.py')


def under(modules, *packages):
    return {m for m in modules for p in packages if m == p or m.startswith(f'{p}.')}


#: Arrows point down this list. What stands on one line knows only what stands above it.
ORDER = (
    ('registry',),
    ('layers', 'compat'),
    ('mixers', 'checkpoint'),
    ('blocks',),
    ('backbones',),
    ('necks', 'heads'),
    ('deployment', 'engine'),
    ('inference', 'command'),
    ('__main__',),
)
#: Packages that only the named parts may import.
OWNERS = {
    'timm': {'layers', 'backbones'},
    'mmcv': {'backbones', 'necks', 'compat', 'inference'},
    'matplotlib': set(),
    'torchvision': {'compat', 'deployment'},
}


def test_every_part_has_its_place():
    assert {part_of(file) for file in FILES} == {p for row in ORDER for p in row} | {'__init__'}


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_arrows_point_one_way(file):
    part = part_of(file)
    if part == '__init__':
        return
    row = next(i for i, parts in enumerate(ORDER) if part in parts)
    above = {p for parts in ORDER[row:] for p in parts} - {part}
    assert not under(imports(file), *(f'mmpatch.{p}' for p in above))
    assert part != 'blocks' or not under(imports(file), 'mmpatch.mixers')
    for package, owners in OWNERS.items():
        assert part in owners or not under(imports(file), package), package


def test_hosts_are_imported_inside_functions_only():
    """But where a class of ours has one of theirs as its base; functions only import that file."""
    bases = {PACKAGE / 'heads/smca_detr.py'}
    names = {f'mmpatch.heads.{file.stem}' for file in bases}
    found = imports(*set(FILES) - bases, top_level_only=True)
    assert not under(found, 'mmdet', 'mmseg', *names)


def test_modules_use_public_functions_of_torch():
    """What trains runs on every device; only compat and deployment may know private operators."""
    for file in FILES:
        if part_of(file) not in ('compat', 'deployment'):
            text = file.read_text()
            assert 'torch.ops' not in text and 'native_' not in text, file


@pytest.mark.process
@pytest.mark.parametrize('module', ['mmpatch', 'mmpatch.backbones'])
def test_import_stays_light(module):
    code = f'import {module}, sys; print(*sorted(sys.modules))'
    loaded = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    heavy = {'mmdet', 'mmseg', 'mmcv', 'matplotlib', 'pycocotools'}
    heavy |= {'timm', 'torchvision'} if module == 'mmpatch' else set()
    assert not heavy & set(loaded.stdout.split())


def test_the_package_stays_small():
    lines = {file: len(file.read_text().splitlines()) for file in FILES}
    # 4400 for blocks and families, 350 for the papers' variants, 1500 for exports, 800 for other
    # heads, networks and files, 850 for predictions, 850 for checks of data and settings, 600 for
    # runs that end early and files that are broken
    assert sum(lines.values()) < 10500
    assert max(lines.values()) < 360  # the base class, most of it the docstring of its arguments
    assert lines[PACKAGE / 'deployment/fold.py'] <= 250
    names = [file.relative_to(PACKAGE).as_posix() for file in FILES]
    assert not [name for name in names if 'util' in name or 'fast' in name]


def test_readme_is_short_and_lists_every_family():
    from mmpatch.checkpoint.published import list_families

    readme = (ROOT / 'README.md').read_text()
    assert len(readme.splitlines()) <= 90
    own = [f for f in list_families() if f.__module__.startswith('mmpatch.')]  # not of a test
    for family in own:
        assert f'`mmpatch.{family.__name__}`' in readme
        assert f'`{next(iter(family.ARCHS))}`' in readme
        assert (ROOT / 'configs' / family.__module__.split('.')[-1]).is_dir() or 'vit' in readme
