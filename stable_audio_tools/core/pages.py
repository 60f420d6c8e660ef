"""HTML pages of the commands: one file each, one look, no network and no scripts."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup, escape

__all__ = ["STYLE", "Markup", "escape", "html_page", "link_to", "player", "table"]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5d6678; --paper: #f6f5f2; --card: #fff; --line: #e3e1dc;
  --accent: #c2410c }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e7e2; --soft: #a3a8b3; --paper: #14161b; --card: #1c1f26; --line: #2c303a; --accent: #fb923c } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; max-width: 1120px; margin: 0 auto;
  padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--paper) }
h1 { font-size: 2rem; line-height: 1.15; margin: 0 0 .6rem; letter-spacing: -.02em }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .2rem; letter-spacing: -.01em }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .2rem }
p, li, figcaption, small { color: var(--soft) }
a, summary { color: var(--accent) }
summary { cursor: pointer }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: middle }
th { white-space: nowrap }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tr.kept td { font-weight: 600 }
.row { display: flex; flex-wrap: wrap; gap: .8rem }
figure { margin: .4rem 0; padding: .7rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; width: 18rem; max-width: 100% }
figure audio { width: 100% }
figcaption { font-size: .9rem; overflow-wrap: anywhere }
audio { height: 34px; width: 13.5rem; max-width: 100%; vertical-align: middle }
svg, img { max-width: 100%; height: auto }
svg text { fill: var(--soft) }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem;
  overflow-x: auto; font-size: .85rem }
"""


def html_page(title: str, body: Iterable[Markup | str], style: str = "") -> str:
    """Return a page; strings that are not `Markup` are escaped and become paragraphs."""
    parts = Markup("\n").join(part if isinstance(part, Markup) else Markup("<p>{}</p>").format(part) for part in body)
    return (
        Markup(
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            "<title>{title}</title>\n<style>{style}</style>\n<h1>{title}</h1>\n{parts}\n</html>\n"
        )
        .format(title=title, style=Markup(STYLE + style), parts=parts)
        .encode("utf-8", "replace")
        .decode()
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table; numbers are aligned to the right, and text is escaped."""
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in columns)
    lines = (Markup("<tr>{}</tr>").format(Markup("").join(map(_cell, row))) for row in rows)
    return Markup('<div class="wide"><table>\n<tr>{}</tr>\n{}\n</table></div>').format(head, Markup("\n").join(lines))


def _cell(value: object) -> Markup:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Markup("<td>{}</td>").format("" if value is None else value)
    return Markup('<td class="number">{}</td>').format(value if isinstance(value, int) else f"{value:.4g}")


def player(file: str | Path, folder: Path, start: float | None = None, end: float | None = None) -> Markup:
    """Return a player of a file for a page in `folder`, limited to a passage in seconds if there is one."""
    passage = "" if start is None else f"#t={start:g}" if end is None else f"#t={start:g},{end:g}"
    return Markup('<audio controls preload="none" src="{}"></audio>').format(link_to(file, folder) + passage)


def link_to(file: str | Path, folder: Path) -> str:
    """Return the address of a file relative to the page's folder, as a page opened from disk needs it."""
    path = os.path.relpath(Path(file).absolute(), folder.absolute())
    return quote(path.replace(os.sep, "/"), errors="surrogateescape")
