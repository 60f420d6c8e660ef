"""MkDocs hook: pages from the root of the repository, and links that hold on the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = {"README.md": "index.md", **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY.md")}}
_LINK = re.compile(r"(!?)\[([^\]\[]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Leave out entries whose page is not there; a page that is in no entry is a warning, and so an error."""
    config.nav = _present(config.nav)
    return config


def _present(entry: Any) -> Any:
    if isinstance(entry, list):
        return [kept for kept in map(_present, entry) if kept]
    if isinstance(entry, dict):
        return {title: kept for title, target in entry.items() if (kept := _present(target))}
    exists = entry in FROM_ROOT.values() or (ROOT / "docs" / entry).exists()
    return entry if exists else None


def on_files(files: Files, config: Any) -> Files:
    for source, name in FROM_ROOT.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the repository has them, turned to the pages of the site; links to other files become their text."""
    root_name = {name: source for source, name in FROM_ROOT.items()}.get(page.file.src_uri)
    folder = ROOT if root_name else (ROOT / "docs" / page.file.src_uri).parent
    up = "../" * page.file.src_uri.count("/")

    def turned(match: re.Match[str]) -> str:
        picture, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = (folder / target).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return f"{picture}[{text}]({up}{path.relative_to(ROOT / 'docs').as_posix()}{anchor})"
        name = FROM_ROOT.get(path.relative_to(ROOT).as_posix()) if path.is_relative_to(ROOT) else None
        return f"[{text}]({up}{name}{anchor})" if name else text

    return _LINK.sub(turned, markdown)
