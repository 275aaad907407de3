"""The rules that hold the house together, one line each."""

import ast
import subprocess
import sys

import pytest

from support import ROOT

PACKAGE = ROOT / 'mmpatch'


def imports(*places, top_level_only=False):
    """Names of the modules that the files below the given places import."""
    found = set()
    for place in places:
        path = PACKAGE / place
        for file in [path] if path.is_file() else path.rglob('*.py'):
            tree = ast.parse(file.read_text())
            for node in tree.body if top_level_only else ast.walk(tree):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add(node.module)
    return found


def under(modules, *packages):
    return {m for m in modules for p in packages if m == p or m.startswith(f'{p}.')}


BUILT = [f'mmpatch.{part}' for part in ('mixers', 'blocks', 'backbones')]
RULES = {
    'layers know no mixer, block or backbone': ('layers', BUILT),
    'mixers know no block or backbone': ('mixers', BUILT[1:]),
    'blocks know no mixer': ('blocks.py', ['mmpatch.mixers', 'mmpatch.backbones']),
    'checkpoints know no network': ('checkpoint', BUILT),
    'only the rewriting of fast forms knows backbones': (
        ('fast/functions.py', 'fast/forms.py', 'fast/deployed.py', 'stage.py'),
        BUILT[2:],
    ),
    'the registry knows nothing of mmpatch': ('registry.py', ['mmpatch']),
    'only layers import timm': (
        ('blocks.py', 'mixers', 'backbones', 'checkpoint', 'compat', 'engine'),
        ['timm'],
    ),
    'only compat knows mmcv': (
        ('layers', 'mixers', 'blocks.py', 'checkpoint', 'backbones'),
        ['mmcv'],
    ),
    'nothing draws': ('.', ['matplotlib']),
}


@pytest.mark.parametrize('rule', RULES)
def test_arrows_point_one_way(rule):
    places, forbidden = RULES[rule]
    places = (places,) if isinstance(places, str) else places
    assert not under(imports(*places), *forbidden), rule


def test_hosts_are_imported_inside_functions_only():
    assert not under(imports('.', top_level_only=True), 'mmdet', 'mmseg')


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


def test_files_are_small_and_named_for_what_they_hold():
    files = [*PACKAGE.rglob('*.py')]
    assert len(files) > 10
    assert not [f for f in files if 'util' in f.name]
    assert not [f for f in files if len(f.read_text().splitlines()) > 320]
