"""Hook of mkdocs: files of the project outside docs/ that its pages link to join the site."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'(\]\()([^)\s#:]+)(#[^)]*)?(\))')
#: Roles of Sphinx in docstrings, which Markdown does not know: their text is code already.
ROLE = re.compile(r':(?:func|class|meth|mod|attr|data):(?=<code>~?)')


def find_linked(page: Path) -> set[str]:
    """Paths from the root of the project of the files that a page links to."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    found = (page.parent / match[2] for match in LINK.finditer(text))
    paths = (Path(posixpath.normpath(path)) for path in found)
    return {p.relative_to(ROOT).as_posix() for p in paths if p.is_file() and ROOT in p.parents}


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to, and what these link to in turn."""
    todo = [Path(file.abs_src_path) for file in files.documentation_pages()]
    seen: set[str] = set()
    while todo:
        page = todo.pop()
        for name in find_linked(page) - seen:
            seen.add(name)
            if not name.startswith('docs/'):
                files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
                todo += [ROOT / name] if name.endswith('.md') else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links into those of the site, in which the files of docs/ stand at the root."""
    source = Path(page.file.abs_src_path).resolve()
    here = posixpath.dirname(page.file.src_uri)

    def turn(match: re.Match[str]) -> str:
        target = (source.parent / match[2]).resolve()
        if ROOT not in target.parents:
            return match[0]
        name = target.relative_to(ROOT).as_posix().removeprefix('docs/')
        return f'{match[1]}{posixpath.relpath(name, here or ".")}{match[3] or ""}{match[4]}'

    return LINK.sub(turn, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Leave the roles of Sphinx out of docstrings."""
    return ROLE.sub('', html).replace('<code>~mmpatch', '<code>mmpatch')
