"""Short synthetic clips with captions, enough to try the toolkit without a download."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.data.custom_metadata import ItemInfo

Wave = NDArray[np.float64]  # (samples, 2)
RATE = 22_050
SECONDS = 4.0
_NOTES = {"C": 261.63, "D": 293.66, "E": 329.63, "F": 349.23, "G": 392.0, "A": 440.0}
_TEMPOS = {"slow": 75, "medium": 100, "fast": 140}


class Clip(NamedTuple):
    name: str
    caption: str
    tags: ItemInfo
    wave: Wave


def write_example_clips(folder: str | Path, per_class: int = 6, seed: int = 0) -> list[Path]:
    """Write clips (.flac), their sidecars (.json) and a table `metadata.jsonl`; return the audio files.

    The same arguments produce the same bytes.
    """
    folder = Path(folder)
    paths, rows = [], []
    for clip in example_clips(per_class, seed):
        path = folder / clip.name.split("_")[0] / f"{clip.name}.flac"
        with atomic_path(path) as temporary:
            sf.write(temporary, clip.wave, RATE, subtype="PCM_16", format="FLAC")
        about = {"prompt": clip.caption, **clip.tags, "seconds_total": SECONDS}
        write_text(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
        rows.append({"audio_path": path.relative_to(folder).as_posix(), "text": clip.caption, "duration": SECONDS})
        paths.append(path)
    write_text(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return paths


def example_clips(per_class: int = 6, seed: int = 0) -> list[Clip]:
    """Return `per_class` clips each of drums, bass, chords, rain and bells."""
    makers: dict[str, Callable[[np.random.Generator], tuple[str, ItemInfo, Wave]]] = {
        "drums": _drums,
        "bass": _bass,
        "chords": _chords,
        "rain": _rain,
        "bells": _bells,
    }
    clips = []
    for offset, (name, make) in enumerate(makers.items()):
        for index in range(per_class):
            caption, tags, wave = make(np.random.default_rng((seed, offset, index)))
            peak = np.abs(wave).max()
            clips.append(Clip(f"{name}_{index:02d}", caption, {"sound": name, **tags}, 0.8 * wave / peak))
    return clips


def _time(seconds: float = SECONDS) -> NDArray[np.float64]:
    return np.arange(int(seconds * RATE)) / RATE


def _choose(rng: np.random.Generator, options: ItemInfo) -> tuple[str, Any]:
    name = str(rng.choice(list(options)))
    return name, options[name]


def _place(into: Wave, sound: NDArray[np.float64], second: float, pan: float = 0.5) -> None:
    start = int(second * RATE)
    length = min(len(sound), len(into) - start)
    if length > 0:
        into[start : start + length] += sound[:length, None] * np.array([1 - pan, pan]) * 2


def _drums(rng: np.random.Generator) -> tuple[str, ItemInfo, Wave]:
    speed, tempo = _choose(rng, _TEMPOS)
    wave, beat = np.zeros((len(_time()), 2)), 60 / tempo
    t = _time(0.3)
    kick = np.sin(2 * np.pi * (45 * t + 12 * (1 - np.exp(-30 * t)))) * np.exp(-12 * t)
    for step in range(int(SECONDS / beat * 2) + 1):
        noise = rng.standard_normal(len(t))
        second = step * beat / 2
        _place(wave, 0.25 * np.diff(noise, prepend=0) * np.exp(-60 * t), second, 0.6)
        if step % 4 == 0:
            _place(wave, kick, second)
        elif step % 4 == 2:
            _place(wave, 0.5 * noise * np.exp(-25 * t), second, 0.45)
    return f"{speed} drum loop with kick, snare and hi-hat at {tempo} bpm", {"bpm": tempo}, wave


def _bass(rng: np.random.Generator) -> tuple[str, ItemInfo, Wave]:
    speed, tempo = _choose(rng, _TEMPOS)
    key, root = _choose(rng, _NOTES)
    wave, beat = np.zeros((len(_time()), 2)), 60 / tempo
    for step in range(int(SECONDS / beat) + 1):
        t = _time(beat)
        pitch = root / 8 * 2 ** (rng.choice([0, 3, 5, 7]) / 12)
        tone = np.asarray(sum(np.sin(2 * np.pi * pitch * k * t) / k**1.5 for k in range(1, 6)))
        _place(wave, tone * np.exp(-2 * t) * np.minimum(1, t * 200), step * beat)
    return f"{speed} bass line in {key}, deep and round, {tempo} bpm", {"bpm": tempo, "key": key}, wave


def _chords(rng: np.random.Generator) -> tuple[str, ItemInfo, Wave]:
    key, root = _choose(rng, _NOTES)
    mode, third = _choose(rng, {"major": 4, "minor": 3})
    wave, t = np.zeros((len(_time()), 2)), _time(SECONDS / 2)
    envelope = np.minimum(1, 4 * t) * np.exp(-rng.uniform(0.5, 1.1) * t)
    spread = rng.uniform(0.001, 0.004)
    for index, shift in enumerate((0, 5)):
        for voice, interval in enumerate((0, third, 7, 12)):
            pitch = root * 2 ** ((interval + shift) / 12)
            for pan, detune in ((0.2, 1 - spread), (0.8, 1 + spread)):
                tone = np.sin(2 * np.pi * pitch * detune * t) + 0.3 * np.sin(4 * np.pi * pitch * detune * t)
                _place(wave, tone * envelope / (voice + 2), index * SECONDS / 2, pan)
    return f"warm sustained {mode} chords in {key} on a soft synthesiser", {"key": f"{key} {mode}"}, wave


def _rain(rng: np.random.Generator) -> tuple[str, ItemInfo, Wave]:
    strength, drops = _choose(rng, {"light": 60, "steady": 160, "heavy": 400})
    noise = rng.standard_normal((len(_time()), 2))
    wave = 0.15 * (noise - 0.7 * np.roll(noise, 1, axis=0))
    for _ in range(drops):
        t = _time(0.02)
        drop = np.sin(2 * np.pi * rng.uniform(2000, 6000) * t) * np.exp(-300 * t)
        _place(wave, drop * rng.uniform(0.1, 0.5), rng.uniform(0, SECONDS), rng.uniform(0, 1))
    return f"{strength} rain falling, field recording", {"strength": strength}, wave


def _bells(rng: np.random.Generator) -> tuple[str, ItemInfo, Wave]:
    key, root = _choose(rng, _NOTES)
    wave, t = np.zeros((len(_time()), 2)), _time(2.5)
    partials = ((0.5, 0.6, 0.9), (1.0, 1.0, 1.2), (1.19, 0.5, 2.0), (2.0, 0.6, 2.2), (2.74, 0.3, 3.5), (4.1, 0.2, 5.0))
    for strike in range(4):
        pitch = 2 * root * 2 ** (rng.choice([0, 2, 4, 7, 9]) / 12)
        tone = np.asarray(
            sum(level * np.sin(2 * np.pi * pitch * r * t) * np.exp(-decay * t) for r, level, decay in partials)
        )
        _place(wave, tone, strike * 0.8 + rng.uniform(0, 0.1), rng.uniform(0.2, 0.8))
    return f"bright bells ringing in {key}", {"key": key}, wave
