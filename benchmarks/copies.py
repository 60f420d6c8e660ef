"""Measures the search for shared passages: recall per alteration, false matches, the guard, and the cost by size.

    python benchmarks/copies.py accuracy --music FOLDER     alterations of real music, and pairs that are no copies
    python benchmarks/copies.py guard --music FOLDER        copies of a part of an output
    python benchmarks/copies.py cost --tracks 1000 10000    synthetic recordings: building, disk, a query, memory

Music: any folder of recordings that differ. The figures in docs/dedup.md are of the free music of four games in Debian
(wesnoth-1.16-music, hyperrogue-music, asc-music, drascula-music), of which the first 48 different pieces were taken.
"""

import argparse
import random
import resource
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.data import audio_io
from stable_audio_tools.data.resampling import resample
from stable_audio_tools.dedup.passages import index as indexing
from stable_audio_tools.dedup.passages.guard import CopyGuard
from stable_audio_tools.dedup.passages.index import IndexedTrack, PassageIndex, read_for_landmarks
from stable_audio_tools.dedup.passages.landmarks import FRAMES_PER_SECOND, NUM_BINS, SAMPLE_RATE, Peaks, find_peaks
from stable_audio_tools.dedup.passages.search import Passage, find_passages
from stable_audio_tools.dedup.passages.settings import SearchLimits
from stable_audio_tools.dedup.tracks import Track

LIMITS = SearchLimits()
Change = Callable[[Tensor, Tensor], Tensor]  # (excerpt, other music) -> altered excerpt; mono at 11,025 Hz


# ------------------------------------------------------------------ alterations


def noise(decibels: float) -> Change:
    def change(audio: Tensor, other: Tensor) -> Tensor:
        added = torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))
        return audio + added * audio.std() * 10 ** (-decibels / 20)

    return change


def tilt(strength: float) -> Change:
    """Raise the treble (above 0) or the bass (below 0)."""
    return lambda audio, other: audio - strength * torch.nn.functional.pad(audio, (1, -1))


def band(low: float, high: float) -> Change:
    """Keep a band of frequencies in Hz."""

    def change(audio: Tensor, other: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(audio)
        frequencies = torch.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
        return torch.fft.irfft(spectrum * ((frequencies >= low) & (frequencies <= high)), len(audio))

    return change


def reverb(seconds: float, direct: float) -> Change:
    """Add a diffuse tail; `direct` is the level of the direct sound relative to it, dB."""

    def change(audio: Tensor, other: Tensor) -> Tensor:
        length = round(seconds * SAMPLE_RATE)
        tail = torch.randn(length, generator=torch.Generator().manual_seed(1))
        tail *= 10 ** (-3 * torch.arange(length) / length)
        tail *= 10 ** (-direct / 20) / tail.square().sum().sqrt()
        tail[0] += 1
        size = len(audio) + length
        return torch.fft.irfft(torch.fft.rfft(audio, size) * torch.fft.rfft(tail, size), size)[: len(audio)]

    return change


def saturate(gain: float) -> Change:
    return lambda audio, other: torch.tanh(gain * audio / audio.abs().max())


def speed(factor: float) -> Change:
    return lambda audio, other: resample(audio[None], round(10_000 * factor), 10_000)[0]


def pitch(semitones: float) -> Change:
    def change(audio: Tensor, other: Tensor) -> Tensor:
        import librosa

        return torch.from_numpy(librosa.effects.pitch_shift(audio.numpy(), sr=SAMPLE_RATE, n_steps=semitones))

    return change


def stretch(factor: float) -> Change:
    def change(audio: Tensor, other: Tensor) -> Tensor:
        import librosa

        return torch.from_numpy(librosa.effects.time_stretch(audio.numpy(), rate=factor))

    return change


def encode(format: str, quality: float) -> Change:
    """Write the audio at a quality between 0 and 1 in a lossy format, and read it again."""

    def change(audio: Tensor, other: Tensor) -> Tensor:
        import soundfile

        with tempfile.NamedTemporaryFile(suffix=f".{format}") as file:
            rate = 44_100
            wave = resample(audio[None], SAMPLE_RATE, rate)[0].clamp(-1, 1).numpy()
            soundfile.write(file.name, wave, rate, format=format.upper(), compression_level=1 - quality)
            samples, read_rate = audio_io.read(file.name)
        return resample(samples.mean(0, keepdim=True), read_rate, SAMPLE_RATE)[0]

    return change


def overlay(decibels: float) -> Change:
    """Mix other music in, at a level relative to the excerpt."""

    def change(audio: Tensor, other: Tensor) -> Tensor:
        other = other[: len(audio)]
        return audio[: len(other)] + other * audio.std() / other.std() * 10 ** (decibels / 20)

    return change


def shorten(seconds: float) -> Change:
    return lambda audio, other: audio[: round(seconds * SAMPLE_RATE)]


def surround(seconds: float) -> Change:
    """Put other music before and after the excerpt, as in a medley."""

    def change(audio: Tensor, other: Tensor) -> Tensor:
        part = other[: round(seconds * SAMPLE_RATE)]
        return torch.cat([part, audio, part])

    return change


def after_silence(seconds: float) -> Change:
    return lambda audio, other: torch.cat([torch.zeros(round(seconds * SAMPLE_RATE)), audio])


ALTERATIONS: dict[str, dict[str, Change]] = {
    "mp3": {"high": encode("mp3", 0.8), "medium": encode("mp3", 0.4), "low": encode("mp3", 0.05)},
    "ogg": {"high": encode("ogg", 0.8), "medium": encode("ogg", 0.4), "low": encode("ogg", 0.0)},
    "equaliser": {"treble 0.5": tilt(0.5), "treble 0.9": tilt(0.9), "bass 0.9": tilt(-0.9)},
    "band": {"to 4 kHz": band(0, 4000), "300 to 3400 Hz": band(300, 3400), "500 to 2000 Hz": band(500, 2000)},
    "saturation": {"2": saturate(2), "5": saturate(5), "20": saturate(20)},
    "noise": {"30 dB": noise(30), "20 dB": noise(20), "10 dB": noise(10)},
    "reverb": {"0.5 s, +3 dB": reverb(0.5, 3), "1 s, 0 dB": reverb(1, 0), "2 s, -3 dB": reverb(2, -3)},
    "speed": {"+1 %": speed(1.01), "+5 %": speed(1.05), "-5 %": speed(0.95)},
    "pitch": {"+0.3": pitch(0.3), "+0.85 (5 %)": pitch(0.85), "-1": pitch(-1)},
    "stretch": {"2 %": stretch(1.02), "5 %": stretch(1.05), "10 %": stretch(1.1)},
    "shorter": {"7 s": shorten(7), "5 s": shorten(5), "3 s": shorten(3)},
    "medley": {"5 s around": surround(5), "20 s around": surround(20), "60 s around": surround(60)},
    "other music over it": {"-12 dB": overlay(-12), "-6 dB": overlay(-6), "0 dB": overlay(0)},
    "after silence": {"10 s": after_silence(10), "70 s": after_silence(70), "300 s": after_silence(300)},
}


# ------------------------------------------------------------------ pieces


def pieces(folder: Path, count: int) -> list[Path]:
    """Return recordings of at least 45 s, shuffled by a fixed seed; of files with equal names and lengths one."""
    found: dict[tuple[str, int], Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".ogg", ".mp3", ".flac", ".wav"):
            about = audio_io.info(path)
            if about.seconds >= 45:
                found.setdefault((path.stem, round(about.seconds)), path)
    paths = sorted(found.values())
    random.Random(0).shuffle(paths)
    return paths[:count]


def build_index(paths: list[Path], folder: Path, sampling: int) -> PassageIndex:
    tracks = [
        Track("music", str(path), str(path), path.stat().st_size, path.stat().st_mtime_ns, 0, 0, "", False)
        for path in paths
    ]
    assert not [failure for failure in indexing.build(folder, tracks, sampling, 1) if failure]
    return PassageIndex(folder)


def search(index: PassageIndex, audio: Tensor) -> list[Passage]:
    return find_passages(index, find_peaks(audio), LIMITS.least_agreement, LIMITS.least_seconds)


def same_music(index: PassageIndex) -> set[frozenset[int]]:
    """Return pairs of indexed recordings that share music themselves, which are no false matches."""
    pairs = set()
    for number in range(len(index)):
        for one in find_passages(index, index.peaks(number), LIMITS.least_agreement, LIMITS.least_seconds):
            pairs.add(frozenset((number, one.track)))
    return pairs


# ------------------------------------------------------------------ measurements


def accuracy(arguments: argparse.Namespace) -> None:
    paths = pieces(arguments.music, arguments.pieces)
    folder = Path(tempfile.mkdtemp())
    index = build_index(paths, folder / "index", arguments.sampling)
    shared = same_music(index)
    recall: dict[tuple[str, str], list[bool]] = defaultdict(list)
    matches = false = 0
    seconds = 0.0
    excerpts = []
    for path in paths[: arguments.queries]:
        audio = read_for_landmarks(path)
        start = int(0.4 * len(audio))
        excerpts.append(audio[start : start + 10 * SAMPLE_RATE])
    for number, excerpt in enumerate(excerpts):
        # Music that the index does not hold: the excerpt of another piece, backwards.
        other = excerpts[(number + 7) % len(excerpts)].flip(0).repeat(6)
        for name, strengths in ALTERATIONS.items():
            for strength, change in strengths.items():
                audio = change(excerpt, other)
                began = time.process_time()
                found = search(index, audio)
                seconds += time.process_time() - began
                recall[name, strength].append(any(one.track == number for one in found))
                matches += len(found)
                false += sum(one.track != number and frozenset((number, one.track)) not in shared for one in found)
    backing_pairs = list(_backing_pairs(excerpts))
    backing = [any(one.track == number for one in search(index, audio)) for number, audio in backing_pairs]
    print(f"{len(paths)} recordings, excerpts of 10 s of {len(excerpts)}, one in {arguments.sampling} landmarks")
    print(f"limits: {LIMITS.least_seconds:g} s, agreement {LIMITS.least_agreement:g}")
    print("| alteration | strength: recall |\n|---|---|")
    for name, strengths in ALTERATIONS.items():
        cells = ", ".join(f"{strength}: {np.mean(recall[name, strength]):.2f}" for strength in strengths)
        print(f"| {name} | {cells} |")
    print(f"precision {1 - false / max(1, matches):.4f}: {false} of {matches} matches are false")
    print(f"another lead over the same backing is matched in {np.mean(backing):.2f} of {len(backing)}")
    print(f"{1000 * seconds / sum(map(len, recall.values())):.0f} ms of one core per query")
    shutil.rmtree(folder)


def _backing_pairs(excerpts: list[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yield excerpts as the backing of another lead of the same loudness."""
    for number, excerpt in enumerate(excerpts):
        lead = excerpts[(number + 11) % len(excerpts)].flip(0)[: len(excerpt)]
        yield number, band(0, 400)(excerpt, lead) + lead * excerpt.std() / lead.std()


def guard(arguments: argparse.Namespace) -> None:
    paths = pieces(arguments.music, arguments.pieces)
    folder = Path(tempfile.mkdtemp())
    half = len(paths) // 2
    build_index(paths[:half], folder / "index", arguments.sampling)
    checker = CopyGuard(folder / "index")
    outputs = []
    for path in paths[half:]:
        audio = read_for_landmarks(path)[: 45 * SAMPLE_RATE]
        if not checker.find(audio[None], SAMPLE_RATE):
            outputs.append(audio)
    print(f"{half} recordings in the index; {len(outputs)} outputs of 45 s from {half} others, with a copied part")
    print(f"false alarms without a copy: {half - len(outputs)} of {half} (music shared by two files included)")
    print("| copied part | seconds | recall | median error of the borders, s |\n|---|---|---|---|")
    for share in (0.05, 0.1, 0.25, 0.5):
        found, errors = 0, []
        length = round(share * 45 * SAMPLE_RATE)
        for number, output in enumerate(outputs):
            source = read_for_landmarks(paths[number % half])
            start, place = int(0.3 * len(source)), round(0.4 * 45 * SAMPLE_RATE)
            copied = source[start : start + length]
            audio = output.clone()
            audio[place : place + len(copied)] = copied * output.std() / copied.std().clamp(min=1e-6)
            for one in checker.find(audio[None], SAMPLE_RATE):
                middle = (one.start + one.end) / 2 * SAMPLE_RATE
                if place <= middle <= place + length:
                    found += 1
                    errors += [abs(one.start - place / SAMPLE_RATE), abs(one.end - (place + length) / SAMPLE_RATE)]
                    break
        error = f"{np.median(errors):.2f}" if errors else "-"
        print(f"| {share:.0%} | {share * 45:.1f} | {found / len(outputs):.2f} | {error} |")
    shutil.rmtree(folder)


def cost(arguments: argparse.Namespace) -> None:
    """Index synthetic recordings of three minutes whose peaks are random walks, and query real-sized excerpts."""
    print(
        "| recordings | GB on disk | build, ms each | query of 45 s, ms | recall | peak memory, GB |\n"
        "|---|---|---|---|---|---|"
    )
    for count in arguments.tracks:
        folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
        index = folder / "index"
        PassageIndex.create(index, arguments.sampling)
        began = time.process_time()
        for start in range(0, count, indexing.TRACKS_PER_SEGMENT):
            numbers = range(start, min(count, start + indexing.TRACKS_PER_SEGMENT))
            indexing.write_segment(
                index,
                [(IndexedTrack(f"s:{n}", f"/s/{n}", 0, n, 180.0), synthetic_peaks(n, 180)) for n in numbers],
                arguments.sampling,
            )
        build = (time.process_time() - began) / count
        opened = PassageIndex(index)
        rng, hits, seconds = np.random.default_rng(0), 0, 0.0
        queries = rng.integers(count, size=arguments.queries)
        for number in queries:
            peaks = synthetic_peaks(int(number), 180)
            inside = (peaks.frame > 60 * FRAMES_PER_SECOND) & (peaks.frame < 105 * FRAMES_PER_SECOND)
            kept = inside & (rng.random(len(inside)) < 0.7)
            jitter = rng.normal(0, 0.15, (2, int(kept.sum()))).astype(np.float32)
            frame = np.sort(peaks.frame[kept] * np.float32(1.02) + jitter[0])
            query = Peaks(frame, peaks.pitch[kept] + np.float32(0.5) + jitter[1])
            began = time.perf_counter()
            found = find_passages(opened, query, LIMITS.least_agreement, LIMITS.least_seconds)
            seconds += time.perf_counter() - began
            hits += any(opened.track(one.track).name == f"s:{number}" for one in found)
        size = sum(file.stat().st_size for file in index.rglob("*") if file.is_file()) / 1e9
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"| {count:,} | {size:.2f} | {1000 * build:.1f} | {1000 * seconds / len(queries):.0f} | "
            f"{hits / len(queries):.2f} | {memory:.2f} |",
            flush=True,
        )
        shutil.rmtree(folder)


def synthetic_peaks(number: int, seconds: float) -> Peaks:
    """Return 20 peaks per second on the notes of a random scale, in a rhythm of sixteenths."""
    rng = np.random.default_rng((3, number))
    count = round(20 * seconds)
    beat = FRAMES_PER_SECOND * 60 / rng.uniform(70, 170) / 4
    frame = np.sort(
        rng.integers(int(seconds * FRAMES_PER_SECOND / beat), size=count) * beat + rng.normal(0, 0.5, count)
    )
    scale = np.cumsum(rng.choice([3, 6, 9], 40)) + rng.integers(12)
    pitch = rng.choice(scale[scale < NUM_BINS - 4], count) + rng.normal(0, 0.1, count)
    return Peaks(np.maximum(frame, 0).astype(np.float32), np.clip(pitch, 2, NUM_BINS - 3).astype(np.float32))


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = built.add_subparsers(required=True)
    for run in (accuracy, guard):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument("--music", type=Path, required=True, help="folder of recordings that differ")
        command.add_argument("--pieces", type=int, default=160, help="recordings to take")
        command.add_argument("--queries", type=int, default=48, help="recordings of which an excerpt is altered")
        command.add_argument("--sampling", type=int, default=8)
    command = commands.add_parser("cost")
    command.set_defaults(run=cost)
    command.add_argument("--tracks", type=int, nargs="+", default=[1_000, 10_000])
    command.add_argument("--queries", type=int, default=20)
    command.add_argument("--sampling", type=int, default=8)
    command.add_argument("--scratch", help="folder for the index")
    return built


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = parser().parse_args()
    chosen.run(chosen)
