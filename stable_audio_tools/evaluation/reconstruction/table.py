"""Metrics of a folder as a table, and their distribution as a picture."""

import csv
import html
import io
import math
import statistics
from collections.abc import Callable, Sequence

from stable_audio_tools.core.config.json_files import JsonObject

COLUMNS = {"si_sdr": "SI-SDR, dB (higher is better)", "mrstft": "STFT distance", "mel": "mel distance, dB"}
_WIDTH, _HEIGHT, _MARGIN = 300, 200, 46


def means(records: Sequence[JsonObject]) -> dict[str, float | None]:
    """Average each metric over the files that have it, except silent ones."""
    return _averages(records, statistics.fmean)


def medians(records: Sequence[JsonObject]) -> dict[str, float | None]:
    """Return the median of each metric over the files that have it, except silent ones."""
    return _averages(records, statistics.median)


def silent_files(records: Sequence[JsonObject]) -> list[str]:
    """Return the originals below -60 dB; their metrics compare noise with nothing."""
    return [str(record["source"]) for record in records if record.get("silent")]


def _averages(records: Sequence[JsonObject], average: Callable[[list[float]], float]) -> dict[str, float | None]:
    found = {name: [value for value, _ in _values(records, name)] for name in COLUMNS}
    return {name: round(average(values), 4) if values else None for name, values in found.items()}


def _values(records: Sequence[JsonObject], name: str) -> list[tuple[float, str]]:
    """Return a metric with the name of its file, in ascending order, without silent files."""
    return sorted((r[name], str(r["file"])) for r in records if r.get(name) is not None and not r.get("silent"))


def as_csv(records: Sequence[JsonObject]) -> str:
    """Format one row per file, one with the medians and a last one with the means."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "source", "seconds", *COLUMNS])
    for record in records:
        writer.writerow([record["file"], record["source"], record["seconds_made"], *(record.get(c) for c in COLUMNS)])
    total = round(math.fsum(record["seconds_made"] for record in records), 4)
    writer.writerow(["median", "", "", *medians(records).values()])
    writer.writerow(["mean", "", total, *means(records).values()])
    return text.getvalue()


def as_svg(records: Sequence[JsonObject]) -> str:
    """Draw one panel per metric: a point per file in ascending order, and a line at the mean."""
    panels = "".join(
        f'<g transform="translate({index * (_WIDTH + _MARGIN) + _MARGIN} 34)">{_panel(records, name, title)}</g>'
        for index, (name, title) in enumerate(COLUMNS.items())
    )
    width, height = len(COLUMNS) * (_WIDTH + _MARGIN) + _MARGIN, _HEIGHT + 70
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{panels}</svg>\n'
    )


def _panel(records: Sequence[JsonObject], name: str, title: str) -> str:
    found = _values(records, name)
    heading = f'<text y="-12">{html.escape(title)}</text><path d="M0 0V{_HEIGHT}H{_WIDTH}" stroke="#999" fill="none"/>'
    if not found:
        return f'{heading}<text x="20" y="40" fill="#777">none measured</text>'
    low, high, middle = found[0][0], found[-1][0], math.fsum(value for value, _ in found) / len(found)
    span = (high - low) or 1.0

    def height(value: float) -> float:
        return _HEIGHT * (1 - (value - low) / span) if high > low else _HEIGHT / 2

    points = "".join(
        f'<circle cx="{_WIDTH * (index + 0.5) / len(found):.1f}" cy="{height(value):.1f}" r="3" fill="#b5367a">'
        f"<title>{html.escape(file)}: {value:.4g}</title></circle>"
        for index, (value, file) in enumerate(found)
    )
    ticks = "".join(
        f'<text x="-4" y="{height(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>' for value in {low, high}
    )
    mean = (
        f'<path d="M0 {height(middle):.1f}H{_WIDTH}" stroke="#4f127b" stroke-dasharray="4"/>'
        f'<text x="{_WIDTH}" y="{height(middle) - 5:.1f}" text-anchor="end" fill="#4f127b">mean {middle:.4g}</text>'
    )
    label = f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 20}" text-anchor="middle">{len(found)} files</text>'
    return heading + points + ticks + mean + label
