"""HTML pages of the commands: one file each, one look, no network and no scripts."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup, escape

__all__ = ["STYLE", "Markup", "escape", "html_page", "link_to", "player", "table"]

STYLE = """
:root { color-scheme: light dark; --line: #8883; --quiet: #888; --accent: #b5367a; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: middle }
th { font-weight: 600; white-space: nowrap }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tr.kept td { font-weight: 600 }
.row { display: flex; flex-wrap: wrap; gap: .8rem }
figure { margin: .4rem 0; padding: .5rem; border: 1px solid var(--line); border-radius: 6px; width: 18rem }
figure audio { width: 100% }
figcaption, .quiet { font-size: .88rem; color: var(--quiet); overflow-wrap: anywhere }
audio { height: 2.2rem; width: 16rem; vertical-align: middle }
svg, img { max-width: 100%; height: auto }
svg text { fill: currentColor }
summary { cursor: pointer }
pre { overflow-x: auto; padding: .6rem; background: #8881; border-radius: 6px }
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
