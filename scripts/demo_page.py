"""The page of the demo: the results of each step as audio and pictures, with its commands."""

import csv
import html
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo_figures import CLASSES, OUT, Figure, generated

from stable_audio_tools.data import audio_io
from stable_audio_tools.data.pictures import spectrogram_image

Points = list[tuple[int, float]]


def write_page(root: Path, done: Sequence[Any], figures: Sequence[Figure]) -> Path:
    out = root / OUT
    parts = [
        _hero(sum(one.seconds for one in done), figures),
        _section(
            "generated",
            "Generated clips",
            "Each pair is generated for the same word from different noise. After minutes of training these are "
            "sketches: the kinds of sound differ, and more steps improve them. None of them is a clip of the dataset.",
            "".join(_generated(root, name) for name in CLASSES),
            done,
        ),
        _section(
            "clips",
            "Training clips",
            "Thirty clips of four seconds with captions, five kinds of sound. One of each kind:",
            "".join(_clip(root, name) for name in CLASSES),
            done,
        ),
        _section(
            "vae",
            "First stage: an autoencoder",
            "It learns to write a second of stereo sound as 172 columns of 32 numbers, and to read them back. "
            "These clips were held out; the left of each pair is the original.",
            "".join(_pair(root, name) for name in CLASSES) + _chart("Spectral distance in training", _vae_curves(out)),
            done,
        ),
        _section(
            "dit",
            "Second stage: a diffusion transformer",
            "It learns to turn noise into such columns, conditioned on a word for the kind of sound.",
            _chart("Loss, in training and on held-out clips", _dit_curves(out)),
            done,
        ),
    ]
    page = out / "index.html"
    page.write_text(f"{_HEAD}<main>{''.join(parts)}</main></html>\n", encoding="utf-8")
    return page


# ------------------------------------------------------------------ parts of the page


def _hero(seconds: float, figures: Sequence[Figure]) -> str:
    took = f"in {seconds // 60:.0f} minutes {seconds % 60:.0f} seconds, " if seconds else ""
    tiles = "".join(
        f"<div class=tile><div class=numbers><s>{figure.before}</s><b>{figure.after}</b></div>"
        f"<div>{html.escape(figure.name)}</div></div>"
        for figure in figures
    )
    return (
        "<header><h1>From thirty clips to a model that plays them</h1>"
        f"<p class=lead>Computed on this machine {took}on the CPU, from random weights, by the commands below.</p>"
        f"<div class=tiles>{tiles}</div></header>"
    )


def _section(key: str, title: str, text: str, body: str, done: Sequence[Any]) -> str:
    steps = "".join(
        f"<li>{html.escape(one.step.title)}{f' <i>{one.seconds:.0f} s</i>' if one.seconds else ''}"
        f"<pre>{html.escape(_wrapped(one.step.command))}</pre></li>"
        for one in done
        if one.step.section == key
    )
    return (
        f"<section><h2>{title}</h2><p>{html.escape(text)}</p><div class=row>{body}</div>"
        f"<details><summary>The commands</summary><ul>{steps}</ul></details></section>"
    )


def _wrapped(command: str) -> str:
    """Each flag on its own line."""
    made, words = "", shlex.split(command)
    for word in words:
        made += (" \\\n    " if word.startswith("--") else " ") + shlex.quote(word)
    return made.strip()


def _generated(root: Path, name: str) -> str:
    cards = "".join(_player(root, path) for path in generated(root, name))
    return f"<figure class='{name} two'><figcaption><b>{name}</b></figcaption><div class=pair>{cards}</div></figure>"


def _clip(root: Path, name: str) -> str:
    path = sorted((root / "example" / "clips" / name).glob("*.flac"))[0]
    caption = json.loads(path.with_suffix(".json").read_text())["prompt"]
    return f"<figure class={name}>{_player(root, path)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _pair(root: Path, name: str) -> str:
    original = sorted((root / "example" / "held_out" / name).glob("*.flac"))[0]
    made = root / OUT / "reconstructed" / name / f"{original.stem}.wav"
    caption = json.loads(original.with_suffix(".json").read_text())["prompt"]
    return (
        f"<figure class='{name} two'><div class=pair>{_player(root, original)}{_player(root, made)}</div>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _player(root: Path, path: Path) -> str:
    """A spectrogram with controls below; the page carries the audio, so that it can be sent to someone."""
    out = root / OUT
    kept = out / "page" / path.relative_to(root).as_posix().replace("/", "_")
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(path.read_bytes())
    audio, rate = audio_io.read(path)
    picture = kept.with_suffix(".png")
    spectrogram_image(audio, rate, height=160, width=480).save(picture)
    image, source = (html.escape(f"page/{file.name}") for file in (picture, kept))
    return f"<div><img src='{image}' alt='spectrogram'><audio controls preload=metadata src='{source}'></audio></div>"


# ------------------------------------------------------------------ curves


def _vae_curves(out: Path) -> dict[str, Points]:
    return {"training": _smooth(_logged(out, "vae", "train/mrstft_loss"))}


def _dit_curves(out: Path) -> dict[str, Points]:
    return {
        "training": _smooth(_logged(out, "dit", "train/loss")),
        "held out": _logged(out, "dit", "val/avg_loss"),
    }


def _logged(out: Path, run: str, key: str) -> Points:
    """A logged value by steps done, of the newest run of that name."""
    path = max((out / "runs" / run).glob("*/metrics/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with path.open() as stream:
        return [(int(row["step"]) + 1, float(row[key])) for row in csv.DictReader(stream) if row.get(key)]


def _smooth(points: Points, width: int = 5) -> Points:
    """Means over neighbours, fewer at the ends."""
    made = []
    for index, (step, _) in enumerate(points):
        reach = min(width // 2, index, len(points) - 1 - index)
        near = points[index - reach : index + reach + 1]
        made.append((step, sum(value for _, value in near) / len(near)))
    return made


def _chart(title: str, curves: dict[str, Points], width: int = 900, height: int = 260) -> str:
    left, bottom, right = 48, 34, 16
    every = [point for points in curves.values() for point in points]
    last, high = max(step for step, _ in every), max(value for _, value in every)
    low = min(value for _, value in every)
    low, high = max(0.0, low - 0.1 * (high - low)), high + 0.05 * (high - low)

    def place(step: float, value: float) -> tuple[float, float]:
        across = left + (width - left - right) * step / max(last, 1)
        return across, 10 + (height - bottom - 10) * (1 - (value - low) / max(high - low, 1e-9))

    marks = []
    for part in range(5):
        value, step = low + (high - low) * part / 4, last * part / 4
        (_, y), (x, _) = place(0, value), place(step, low)
        marks.append(
            f"<line x1={left} x2={width - right} y1={y:.1f} y2={y:.1f} />"
            f"<text x={left - 8} y={y + 4:.1f} text-anchor=end>{value:.2f}</text>"
            f"<text x={x:.1f} y={height - 12} text-anchor=middle>{step:.0f}</text>"
        )
    lines = []
    for number, points in enumerate(curves.values()):
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        lines.append(f"<polyline class=c{number} points='{path}' />")
    names = ", ".join(f"<span class=c{number}>{name}</span>" for number, name in enumerate(curves))
    return (
        f"<figure class=wide><figcaption><b>{html.escape(title)}</b>, by step: {names}</figcaption>"
        f"<svg viewBox='0 0 {width} {height}'>{''.join(marks)}{''.join(lines)}</svg></figure>"
    )


_HEAD = """<!doctype html><html lang=en><meta charset="utf-8"><title>stable_audio_tools: the demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { --ink: #1d2433; --soft: #5d6678; --paper: #f6f5f2; --card: #fff; --line: #e3e1dc; --accent: #c2410c }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e7e2; --soft: #a3a8b3; --paper: #14161b; --card: #1c1f26; --line: #2c303a; --accent: #fb923c } }
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--paper) }
main { max-width: 1120px; margin: 0 auto; padding: 3rem 1.25rem 4rem }
h1 { font-size: 2.3rem; line-height: 1.15; margin: 0 0 .6rem; letter-spacing: -.02em }
h2 { font-size: 1.45rem; margin: 3.2rem 0 .2rem; letter-spacing: -.01em }
p { color: var(--soft); margin: .2rem 0 1rem; max-width: 46rem }
.lead { font-size: 1.15rem }
.tiles, .row { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)) }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.2rem;
  color: var(--soft) }
.numbers { font-size: 1.1rem } .numbers s { text-decoration: none; margin-right: .8rem }
.numbers s::after { content: " \\2192" } .numbers b { font-size: 1.9rem; color: var(--accent) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .9rem;
  border-top: 4px solid var(--tint, var(--line)) }
figure.two { grid-column: span 2 } figure.wide { grid-column: 1 / -1 }
@media (max-width: 640px) { figure.two { grid-column: span 1 } }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem }
img { width: 100%; display: block; border-radius: 6px }
audio { width: 100%; height: 34px; margin-top: .5rem }
figcaption { color: var(--soft); font-size: .92rem; margin: .2rem 0 .4rem } figcaption b { color: var(--ink) }
.drums { --tint: #c2410c } .bass { --tint: #7c3aed } .chords { --tint: #0f766e } .rain { --tint: #2563eb }
.bells { --tint: #b45309 }
svg { width: 100%; font: 12px system-ui, sans-serif } svg text { fill: var(--soft) } svg line { stroke: var(--line) }
polyline { fill: none; stroke-width: 2.5; stroke-linejoin: round } polyline.c0 { stroke: #94a3b8 }
polyline.c1 { stroke: var(--accent) } span.c0 { color: #94a3b8 } span.c1, span.c0:only-of-type {
  color: var(--accent) } polyline.c0:only-of-type { stroke: var(--accent) }
details { margin-top: 1rem } summary { cursor: pointer; color: var(--accent) }
ul { list-style: none; padding: 0 } li { margin: .8rem 0 } li i { color: var(--soft) }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem;
  overflow-x: auto; font-size: .85rem; margin: .3rem 0 }
</style>
"""
