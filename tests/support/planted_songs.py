"""Made-up songs with planted copies and style twins: the ground truth of deduplication."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.data import audio_io
from stable_audio_tools.data.resampling import resample

RATE = 22_050
Wave = NDArray[np.float64]  # (samples,)
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))


@dataclass(frozen=True)
class Style:
    """What twins share: tempo, key, sound and drum loop."""

    tempo: float
    root: int
    scale: tuple[int, ...]
    partials: tuple[float, ...]
    decay: float
    drums: tuple[int, ...]

    @classmethod
    def draw(cls, seed: int) -> "Style":
        rng = np.random.default_rng((1, seed))
        return cls(
            tempo=float(rng.uniform(80, 160)),
            root=int(rng.integers(40, 52)),
            scale=_SCALES[rng.integers(2)],
            partials=tuple(rng.uniform(0.1, 1, 5) / np.arange(1, 6)),
            decay=float(rng.uniform(1.5, 6)),
            drums=tuple(rng.integers(0, 3, 8)),
        )


def compose(style: Style, seed: int, seconds: float) -> Wave:
    """A song in a style: chords and a melody of its own over the drum loop of the style."""
    rng = np.random.default_rng((2, seed))
    noise = np.random.default_rng(style.drums)
    wave, beat = np.zeros(int(seconds * RATE)), 60 / style.tempo
    hits = [_hit(kind, noise) for kind in range(3)]
    for step in range(int(seconds / beat * 2)):
        second = step * beat / 2
        _add(wave, 0.5 * hits[style.drums[step % 8]], second)
        if step % 8 == 0:
            degree = int(rng.integers(7))
            for voice in (0, 2, 4):
                _add(wave, 0.3 * _note(style, degree + voice, 4 * beat), second)
        if rng.random() < 0.7:
            length = beat * float(rng.choice([0.5, 1, 2]))
            _add(wave, 0.6 * _note(style, 14 + int(rng.integers(10)), length), second)
    return 0.5 * wave / np.abs(wave).max()


def _note(style: Style, degree: int, seconds: float) -> Wave:
    octave, place = divmod(degree, 7)
    pitch = 440 * 2 ** ((style.root + style.scale[place] + 12 * octave - 69) / 12)
    t = np.arange(int(seconds * RATE)) / RATE
    tone = sum(level * np.sin(2 * np.pi * pitch * (k + 1) * t) for k, level in enumerate(style.partials))
    return np.asarray(tone * np.exp(-style.decay * t) * np.minimum(1, 100 * t))


def _hit(kind: int, rng: np.random.Generator) -> Wave:
    t = np.arange(int(0.2 * RATE)) / RATE
    if kind == 0:
        return np.zeros(len(t))
    if kind == 1:
        return np.sin(2 * np.pi * 60 * t) * np.exp(-15 * t)
    return np.asarray(0.5 * rng.standard_normal(len(t)) * np.exp(-30 * t))


def _add(wave: Wave, sound: Wave, second: float) -> None:
    start = int(second * RATE)
    stop = min(len(wave), start + len(sound))
    wave[start:stop] += sound[: stop - start]


# ------------------------------------------------------------------ copies


Write = Callable[[Path, Wave], None]


def _save(path: Path, wave: Wave, rate: int = RATE, quality: float | None = None) -> None:
    audio_io.write(path, np.stack([wave, wave]).astype(np.float32), rate, quality=quality)


def _resampled(path: Path, wave: Wave) -> None:
    slower = resample(torch.from_numpy(wave).float(), RATE, 16_000).numpy()
    audio_io.write(path, np.stack([slower, slower]), 16_000)


COPIES: dict[str, tuple[str, Write]] = {
    "exact": (".wav", _save),
    "gain": (".wav", lambda path, wave: _save(path, 0.4 * wave)),
    "polarity": (".wav", lambda path, wave: _save(path, -wave)),
    "resampled": (".wav", _resampled),
    "mp3_best": (".mp3", lambda path, wave: _save(path, wave, quality=1.0)),
    "mp3_small": (".mp3", lambda path, wave: _save(path, wave, quality=0.1)),
    "shifted": (".wav", lambda path, wave: _save(path, np.concatenate([np.zeros(int(3.37 * RATE)), wave]))),
    "trimmed": (".wav", lambda path, wave: _save(path, wave[int(2.21 * RATE) : -int(2 * RATE)])),
}


def plant(folder: Path, songs: int, twins: int, seconds: float) -> set[frozenset[str]]:
    """Write songs, `twins` style twins of each, and all copies of every song -> pairs of names that are copies."""
    pairs: set[frozenset[str]] = set()
    for song in range(songs):
        style = Style.draw(song)
        for twin in range(twins):
            _save(folder / f"song{song}" / f"twin{twin}.wav", compose(style, 100 * song + twin + 1, seconds))
        wave = compose(style, 100 * song, seconds)
        names = [f"song{song}/original.wav"]
        _save(folder / names[0], wave)
        for kind, (suffix, write) in COPIES.items():
            names.append(f"song{song}/{kind}{suffix}")
            write(folder / names[-1], wave)
        pairs |= {frozenset(pair) for pair in combinations(names, 2)}
    return pairs
