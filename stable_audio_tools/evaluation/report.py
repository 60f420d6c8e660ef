"""Results as tables, and as one HTML page with its plots inside it."""

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_audio_tools.evaluation.results import Result, software

_WIDTH, _HEIGHT, _LEFT = 520, 220, 60
_COLOURS = ("#4f127b", "#b5367a", "#e98a3b", "#2a788e", "#5ec962")
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
    "td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:left;font-variant-numeric:tabular-nums}"
    "svg{max-width:100%;height:auto}"
)


def rows_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One flat row per result."""
    return [
        {
            "embedder": result.subject["embedder"],
            "reference": result.subject["reference"],
            "generated": result.subject["name"],
            **result.scores,
            "files": result.subject.get("files"),
            "vectors": result.subject["vectors"],
            "failed": len(_failures(result)),
            "seed": result.setup["seed"],
        }
        for result in results
    ]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per row; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def songs_csv(result: Result) -> str:
    """The distance of each song, largest first."""
    return as_csv([{"path": name, "score": score} for name, score in result.details["per_song"].items()])


def as_html(results: Sequence[Result]) -> str:
    """The page: a table, a bar per result, the extrapolations, the songs, and how all was measured."""
    parts = ["<h1>Scores</h1>", _table(rows_of(results))]
    for embedder in dict.fromkeys(str(result.subject["embedder"]) for result in results):
        own = [result for result in results if result.subject["embedder"] == embedder]
        parts += [f"<h2>{html.escape(embedder)}</h2>", _bars(own)]
        parts += [_line(result) for result in own if "fad_inf" in result.details]
        parts += [_songs(result) for result in own if result.details.get("per_song")]
        identity = "".join(f"<tr><th>{html.escape(k)}<td>{html.escape(str(v))}" for k, v in _flat(own[0].setup))
        parts.append(f"<details><summary>how it was measured</summary><table>{identity}</table></details>")
    named = {failure for result in results for failure in _failures(result)}
    if named:
        items = "".join(f"<li>{html.escape(text)}" for text in sorted(named))
        parts.append(f"<h2>Files left out</h2><ul>{items}</ul>")
    versions = ", ".join(f"{name} {version}" for name, version in software().items())
    parts.append(f"<p><small>{html.escape(versions)}</small></p>")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Scores</title><style>{_STYLE}</style>"
    return f"{head}\n" + "\n".join(parts) + "\n</html>\n"


def _failures(result: Result) -> list[str]:
    """Files of both sets that have no vectors, and why."""
    sets = {subject["source"]: subject.get("failed", {}) for subject in (result.details["reference"], result.subject)}
    return [f"{source}/{name}: {why}" for source, failed in sets.items() for name, why in failed.items()]


def _flat(setup: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in setup.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(column)}" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(column))}" for column in columns) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else html.escape(str(value))


def _bars(results: Sequence[Result]) -> str:
    """The distance of each pair of sets, grouped as in the table."""
    largest = max((result.scores["fad"] or 0.0 for result in results), default=0.0) or 1.0
    references = list(dict.fromkeys(result.subject["reference"] for result in results))
    bars = []
    for index, result in enumerate(results):
        value, y = result.scores["fad"] or 0.0, 10 + 26 * index
        colour = _COLOURS[references.index(result.subject["reference"]) % len(_COLOURS)]
        label = f"{Path(result.subject['name']).name} against {Path(result.subject['reference']).name}"
        bars.append(
            f'<rect x="0" y="{y}" width="{max(1.0, _WIDTH * value / largest):.1f}" height="16" fill="{colour}"/>'
            f'<text x="{_WIDTH * value / largest + 8:.1f}" y="{y + 13}">{value:.4g} · {html.escape(label)}</text>'
        )
    return _svg("".join(bars), _WIDTH + 420, 20 + 26 * len(results))


def _line(result: Result) -> str:
    """Distances over 1 / n, and the straight line that meets n = infinity at the left."""
    found = result.details["fad_inf"]
    points = [(1 / size, distance) for size, distance in found["points"]]
    right = max(x for x, _ in points)
    ends = [found["value"], found["value"] + found["slope"] * right]
    low, high = min([*ends, *(y for _, y in points)]), max([*ends, *(y for _, y in points)])

    def at(x: float, y: float) -> str:
        height = _HEIGHT * (1 - (y - low) / ((high - low) or 1.0))
        return f"{_LEFT + (_WIDTH - _LEFT) * x / right:.1f} {height + 20:.1f}"

    def dot(x: float, y: float) -> str:
        place = at(x, y).split()
        told = f"<title>n {1 / x:.0f}: {y:.5g}</title>"
        return f'<circle cx="{place[0]}" cy="{place[1]}" r="3" fill="#b5367a">{told}</circle>'

    body = f'<path d="M{_LEFT} 20V{_HEIGHT + 20}H{_WIDTH}" stroke="#999" fill="none"/>'
    body += f'<path d="M{at(0, ends[0])}L{at(right, ends[1])}" stroke="#4f127b" fill="none"/>'
    body += "".join(dot(x, y) for x, y in points)
    body += "".join(
        f'<text x="{_LEFT - 6}" y="{float(at(0, y).split()[1]) + 4:.1f}" text-anchor="end">{y:.4g}</text>'
        for y in {low, high}
    )
    body += f'<text x="{_WIDTH}" y="{_HEIGHT + 44}" text-anchor="end">1 / {round(1 / right)}</text>'
    body += f'<text x="{_LEFT}" y="{_HEIGHT + 44}">n = ∞: {found["value"]:.5g}, R² {found["r2"]:.3f}</text>'
    title = f"{result.subject['name']} against {result.subject['reference']}: distance over 1 / n"
    return f"<h3>{html.escape(title)}</h3>" + _svg(body, _WIDTH + 40, _HEIGHT + 60)


def _songs(result: Result) -> str:
    """Every song's own distance, largest first."""
    scores: Mapping[str, float] = result.details["per_song"]
    top = max(scores.values()) or 1.0
    dots = "".join(
        f'<circle cx="{_LEFT + (_WIDTH - _LEFT) * (index + 0.5) / len(scores):.1f}" '
        f'cy="{20 + _HEIGHT * (1 - score / top):.1f}" r="3" fill="#b5367a">'
        f"<title>{html.escape(name)}: {score:.5g}</title></circle>"
        for index, (name, score) in enumerate(scores.items())
    )
    axis = f'<path d="M{_LEFT} 20V{_HEIGHT + 20}H{_WIDTH}" stroke="#999" fill="none"/>'
    axis += f'<text x="{_LEFT - 6}" y="26" text-anchor="end">{top:.4g}</text>'
    axis += f'<text x="{_LEFT}" y="{_HEIGHT + 44}">{len(scores)} songs, farthest first</text>'
    title = f"{result.subject['name']} against {result.subject['reference']}: distance of each song"
    return f"<h3>{html.escape(title)}</h3>" + _svg(axis + dots, _WIDTH + 40, _HEIGHT + 60)


def _svg(body: str, width: float, height: float) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
    return f'<svg {size} font-family="sans-serif" font-size="12">{body}</svg>'


def names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """`fad_<embedder>_ref_<set>_gen_<set>`, of letters that any file system takes; equal ones are numbered."""
    names: list[str] = []
    for row in rows:
        sets = {key: Path(str(row[key])).stem or "set" for key in ("reference", "generated")}
        text = f"fad_{row['embedder']}_ref_{sets['reference']}_gen_{sets['generated']}"
        name = plain = re.sub(r"[^\w.-]+", "-", text)
        number = 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
    return names


def log_to_tensorboard(folder: Path, step: int, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a scalar for each distance, named after its sets and its embedder."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for name, row in rows.items():
        writer.add_scalar(name, row["fad"], step)
    writer.close()
