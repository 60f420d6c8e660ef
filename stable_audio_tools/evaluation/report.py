"""Results as tables, and as one self-contained HTML page with plots."""

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from stable_audio_tools.core.pages import Markup, html_page
from stable_audio_tools.evaluation.results import Result, SetComparison, software

Row = dict[str, object]

_WIDTH, _HEIGHT, _LEFT = 520, 220, 60
_COLOURS = ("#4f127b", "#b5367a", "#e98a3b", "#2a788e", "#5ec962")


def rows_of(results: Sequence[Result]) -> list[Row]:
    """Flatten each result to a row."""
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


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Format rows as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def songs_csv(result: Result) -> str:
    """Format the distance of each song as CSV, largest first."""
    return as_csv([{"path": name, "score": score} for name, score in result.details["per_song"].items()])


def as_html(results: Sequence[Result], comparisons: Sequence[SetComparison] = (), extra: str = "") -> str:
    """Write the page: a table, bars with intervals, comparisons, extrapolations, songs and the setup.

    `extra` is HTML that follows the table.
    """
    parts = [_table(rows_of(results)), extra]
    if comparisons:
        parts += [
            "<h2>Comparisons</h2>",
            "<ul>",
            *(f"<li>{html.escape(sentence(one))}" for one in comparisons),
            "</ul>",
        ]
        parts.append(_table([asdict(one) for one in comparisons]))
    for embedder in dict.fromkeys(str(result.subject["embedder"]) for result in results):
        own = [result for result in results if result.subject["embedder"] == embedder]
        parts += [f"<h2>{html.escape(embedder)}</h2>", _bars(own)]
        parts += [_line(result) for result in own if "fad_inf" in result.details]
        parts += [_songs(result) for result in own if result.details.get("per_song")]
        identity = "".join(f"<tr><th>{html.escape(k)}<td>{html.escape(str(v))}" for k, v in _flat(own[0].setup))
        parts.append(f"<details><summary>setup</summary><table>{identity}</table></details>")
    named = {failure for result in results for failure in _failures(result)}
    if named:
        items = "".join(f"<li>{html.escape(text)}" for text in sorted(named))
        parts.append(f"<h2>Skipped files</h2><ul>{items}</ul>")
    versions = ", ".join(f"{name} {version}" for name, version in software().items())
    parts.append(f"<p><small>{html.escape(versions)}</small></p>")
    return html_page("Scores", [Markup("\n".join(parts))])


def _failures(result: Result) -> list[str]:
    """List the files of both sets without vectors, with the reason."""
    sets: dict[str, Mapping[str, str]] = {
        str(one.get("source", "")): one.get("failed", {})
        for one in (result.details.get("reference", {}), result.subject)
    }
    return [f"{source}/{name}: {why}" for source, failed in sets.items() for name, why in failed.items()]


def _flat(setup: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in setup.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    def cell(value: object) -> str:
        if value is None:
            return "-"
        return f"{value:.5g}" if isinstance(value, float) else html.escape(str(value))

    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(column)}" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell(row.get(column))}" for column in columns) for row in rows)
    return f'<div class="wide"><table><tr>{head}{body}</table></div>'


def _bars(results: Sequence[Result]) -> str:
    """Draw the distance of each pair of sets in the order of the table, with its interval as a line."""
    ends = [result.scores.get(key) or 0.0 for result in results for key in ("fad", "fad_high")]
    largest = max(ends, default=0.0) or 1.0
    references = list(dict.fromkeys(result.subject["reference"] for result in results))
    bars = []
    for index, result in enumerate(results):
        value, y = result.scores["fad"] or 0.0, 10 + 26 * index
        colour = _COLOURS[references.index(result.subject["reference"]) % len(_COLOURS)]
        label = f"{Path(result.subject['name']).name} against {Path(result.subject['reference']).name}"
        low, high = result.scores.get("fad_low"), result.scores.get("fad_high")
        if low is not None and high is not None:
            left, right = _WIDTH * low / largest, _WIDTH * high / largest
            bars.append(f'<path d="M{left:.1f} {y + 18}H{right:.1f}" stroke="currentColor" stroke-width="2"/>')
        bars.append(
            f'<rect x="0" y="{y}" width="{max(1.0, _WIDTH * value / largest):.1f}" height="16" fill="{colour}"/>'
            f'<text x="{max(_WIDTH * value / largest, 0) + 8:.1f}" y="{y + 13}">'
            f"{value:.4g} · {html.escape(label)}</text>"
        )
    return _svg("".join(bars), _WIDTH + 420, 20 + 26 * len(results))


def _line(result: Result) -> str:
    """Draw distances over 1 / n and the straight line, which reaches n = infinity on the left."""
    found = result.details["fad_inf"]
    points = [(1 / share, distance) for share, distance in found["points"]]
    right = max(x for x, _ in points)
    ends = [found["value"], found["value"] + found["slope"] * right]
    low, high = min([*ends, *(y for _, y in points)]), max([*ends, *(y for _, y in points)])

    def at(x: float, y: float) -> str:
        height = _HEIGHT * (1 - (y - low) / ((high - low) or 1.0))
        return f"{_LEFT + (_WIDTH - _LEFT) * x / right:.1f} {height + 20:.1f}"

    def dot(x: float, y: float) -> str:
        place = at(x, y).split()
        title = f"<title>{100 / x:.0f} % of the files: {y:.5g}</title>"
        return f'<circle cx="{place[0]}" cy="{place[1]}" r="3" fill="#b5367a">{title}</circle>'

    body = f'<path d="M{_LEFT} 20V{_HEIGHT + 20}H{_WIDTH}" stroke="#999" fill="none"/>'
    body += f'<path d="M{at(0, ends[0])}L{at(right, ends[1])}" stroke="#4f127b" fill="none"/>'
    body += "".join(dot(x, y) for x, y in points)
    body += "".join(
        f'<text x="{_LEFT - 6}" y="{float(at(0, y).split()[1]) + 4:.1f}" text-anchor="end">{y:.4g}</text>'
        for y in {low, high}
    )
    body += f'<text x="{_WIDTH}" y="{_HEIGHT + 44}" text-anchor="end">{100 / right:.0f} % of the files</text>'
    body += f'<text x="{_LEFT}" y="{_HEIGHT + 44}">n = ∞: {found["value"]:.5g}, R² {found["r2"]:.3f}</text>'
    title = f"{result.subject['name']} against {result.subject['reference']}: distance over 1 / files"
    return f"<h3>{html.escape(title)}</h3>" + _svg(body, _WIDTH + 40, _HEIGHT + 60)


def _songs(result: Result) -> str:
    """Draw the distance of every song, largest first."""
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


def sentence(comparison: SetComparison) -> str:
    """Summarise a comparison, such as "A is better than B in 93 % of 500 resamples"."""
    a, b = (
        Path(one).parent.name if Path(one).name == "audio" else Path(one).name for one in (comparison.a, comparison.b)
    )
    share = 100 * comparison.share_better
    better, worse, percent = (a, b, share) if share >= 50 else (b, a, 100 - share)
    return (
        f"{comparison.embedder}, {comparison.score}: {better} is better than {worse} in {percent:.1f} % of resamples "
        f"of {comparison.pairs} pairs (difference {comparison.difference:.4g}, 95 % interval {comparison.low:.4g} to "
        f"{comparison.high:.4g}, p = {comparison.p:.3g})"
    )


def _svg(body: str, width: float, height: float) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
    return f'<svg {size} font-family="sans-serif" font-size="12">{body}</svg>'


def names_of(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Name rows `fad_<embedder>_ref_<set>_gen_<set>` for any file system; equal names are numbered."""
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


def log_to_tensorboard(folder: Path, step: int, rows: Mapping[str, Mapping[str, object]]) -> None:
    """Write each distance as a scalar, named after its sets and its embedder."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for name, row in rows.items():
        writer.add_scalar(name, row["fad"], step)
    writer.close()
