"""An HTML page with players: each query with its highest and lowest training items."""

import html
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.attribution.results import Scores, rank_items, source_of
from stable_audio_tools.core.files import write_text
from stable_audio_tools.core.pages import Markup, html_page, player
from stable_audio_tools.data.scanning import SCANNED_EXTENSIONS

_BINS = 40
_STYLE = """
section { border-top: 1px solid var(--line); margin-top: 2rem }
section svg { width: 100%; max-width: 600px; display: block; font-size: 11px }
rect { fill: var(--accent) }
"""


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
    settings = f"<details><summary>settings</summary><table>{facts}</table></details>"
    write_text(path, html_page("Attribution", [note, Markup("".join([settings, *sections]))], _STYLE))


def _figure(page: Path, item: str, caption: str) -> str:
    sound_player, sound = "", Path(source_of(item) or item)
    if sound.suffix.lower() in SCANNED_EXTENSIONS:
        sound_player = player(sound, page.parent)
    name = html.escape(sound.name)
    text = f"<figcaption>{html.escape(caption)} · {name}</figcaption>"
    return f'<figure title="{html.escape(item)}">{sound_player}{text}</figure>'


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
