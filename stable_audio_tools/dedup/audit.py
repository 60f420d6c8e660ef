"""A page to listen to: every group of copies with players, so that an ear can check what a number decided."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from stable_audio_tools.core.files import write_text
from stable_audio_tools.dedup.copies import Copy, CopyGroup
from stable_audio_tools.dedup.tracks import Track

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 0 0 2rem; }
td, th { border-bottom: 1px solid #8884; padding: .35rem .6rem; text-align: left; }
tr.kept td { font-weight: 600; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
audio { height: 2rem; width: 18rem; vertical-align: middle; }
:root { color-scheme: light dark; }
"""
_HEAD = "<tr><th>file</th><th>listen</th><th>length</th><th>similarity</th><th>aligned</th><th>offset</th></tr>"


def write_audit(path: Path, groups: Sequence[CopyGroup], summary: str, most: int) -> None:
    """The `most` groups that are the least certain, the doubtful ones first."""
    shown = sorted(groups, key=_certainty)[:most]
    told = summary if len(shown) == len(groups) else f"{summary}; the {len(shown)} least certain groups are shown"
    body = "\n".join(_table(number, group, path.parent) for number, group in enumerate(shown, 1))
    write_text(
        path,
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Copies in a data set</title>\n'
        f"<style>{_STYLE}</style>\n<h1>Copies in a data set</h1>\n<p>{escape(told)}</p>\n{body}\n</html>\n",
    )


def _certainty(group: CopyGroup) -> float:
    return min(copy.similarity if copy.aligned is None else copy.aligned.score for copy in group.copies)


def _table(number: int, group: CopyGroup, folder: Path) -> str:
    rows = [_row(group.kept, None, folder), *(_row(copy.dropped, copy, folder) for copy in group.copies)]
    return f"<h2>CopyGroup {number}</h2>\n<table>\n{_HEAD}\n" + "\n".join(rows) + "\n</table>"


def _row(track: Track, copy: Copy | None, folder: Path) -> str:
    # Players of a page that was opened from disk follow paths relative to it.
    link = quote(os.path.relpath(track.path, folder.absolute()).replace(os.sep, "/"), errors="surrogateescape")
    numbers = ["kept", "", ""]
    if copy is not None:
        numbers[0] = f"{copy.similarity:.4f}"
        if copy.aligned is not None:
            numbers[1:] = [f"{copy.aligned.score:.3f}", f"{copy.aligned.offset_seconds:+.1f} s"]
    cells = "".join(f'<td class="number">{text}</td>' for text in (f"{track.seconds:.1f} s", *numbers))
    name = escape(track.qualified.encode("utf-8", "replace").decode())
    player = f'<audio controls preload="none" src="{escape(link)}"></audio>'
    return f'<tr class="{"kept" if copy is None else "copy"}"><td>{name}</td><td>{player}</td>{cells}</tr>'
