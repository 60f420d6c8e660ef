"""An HTML page with players: each query with its highest and lowest training items."""

import html
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.attribution.results import Scores, rank_items, source_of
from stable_audio_tools.core.files import write_text
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS

_BINS = 40


def write_report(scores: Scores, path: str | Path, top_k: int = 5) -> None:
    """Write one HTML file; its players refer to audio files, which must not be moved."""
    path = Path(path)
    opposite = Scores(-np.asarray(scores.values, np.float64), scores.query_ids, scores.train_ids)
    best, worst = (list(rank_items(one, top_k)) for one in (scores, opposite))
    sections = []
    for row, query in enumerate(scores.query_ids):
        cards = [_figure(path, entry.item, f"{entry.rank}. {entry.score:.4g}") for entry in best[row]]
        least = [_figure(path, entry.item, f"{-entry.score:.4g}") for entry in worst[row]]
        sections.append(
            f"<section><h2>{html.escape(Path(query).name)}</h2>{_figure(path, query, 'query')}"
            f"{_histogram(np.asarray(scores.values[row], np.float64))}<h3>highest scores</h3>"
            f"<div class=row>{''.join(cards)}</div><details><summary>lowest scores</summary>"
            f"<div class=row>{''.join(least)}</div></details></section>"
        )
    facts = "".join(f"<tr><td>{html.escape(key)}<td>{html.escape(str(value))}" for key, value in scores.about.items())
    note = "Scores compare training items for one query. They are not shares of it, and say nothing about legality."
    body = f"<h1>Attribution</h1><p>{note}</p><details><summary>settings</summary><table>{facts}</table></details>"
    write_text(path, f"{_HEAD}{body}{''.join(sections)}\n")


def _figure(page: Path, item: str, caption: str) -> str:
    player, sound = "", Path(source_of(item) or item)
    if sound.suffix.lower() in SCANNED_EXTENSIONS:
        relative = Path(os.path.relpath(sound.absolute(), page.absolute().parent)).as_posix()
        player = f'<audio controls preload=none src="{quote(relative)}"></audio>'
    name = html.escape(sound.name)
    return (
        f'<figure title="{html.escape(item)}">{player}<figcaption>{html.escape(caption)} · {name}</figcaption></figure>'
    )


def _histogram(values: NDArray[np.float64], width: int = 600, height: int = 60) -> str:
    """Draw the distribution of all scores, with square roots of counts, so that single items are visible."""
    counts, edges = np.histogram(values, bins=_BINS)
    heights = np.sqrt(counts / max(1, counts.max())) * height
    step = width / _BINS
    bars = "".join(
        f'<rect x="{index * step:.1f}" y="{height - bar:.1f}" width="{step - 1:.1f}" height="{bar:.1f}"/>'
        for index, bar in enumerate(heights)
    )
    ends = f'<text x="0" y="{height + 14}">{edges[0]:.3g}</text><text x="{width}" y="{height + 14}" text-anchor="end">'
    return f'<svg viewBox="0 0 {width} {height + 18}">{bars}{ends}{edges[-1]:.3g}</text></svg>'


_HEAD = """<!doctype html><meta charset="utf-8"><title>Attribution</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #222 }
section { border-top: 1px solid #ddd; margin-top: 2rem }
.row { display: flex; flex-wrap: wrap; gap: .8rem }
figure { margin: .4rem 0; padding: .5rem; border: 1px solid #e4e4e4; border-radius: 6px; width: 290px }
audio { width: 100% }
figcaption { font-size: .85rem; color: #555; overflow-wrap: anywhere }
svg { width: 100%; max-width: 600px; display: block }
rect { fill: #b5367a }
svg text { font: 11px system-ui, sans-serif; fill: #777 }
</style>
"""
