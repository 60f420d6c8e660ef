"""Passages that recordings share: found at their place, with their speed and pitch, and called what they are."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.launching import ROOT, environment
from support.planted_songs import RATE, Style, compose

from stable_audio_tools.cli.data import dedup_find, dedup_index
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.resampling import resample
from stable_audio_tools.dedup.passages import index as index_module
from stable_audio_tools.dedup.passages.guard import CopiedPassage, CopyGuard, silence
from stable_audio_tools.dedup.passages.index import PassageIndex
from stable_audio_tools.dedup.passages.landmarks import find_landmarks, find_peaks, find_probes
from stable_audio_tools.dedup.passages.run import find_copies
from stable_audio_tools.dedup.passages.search import find_passages
from stable_audio_tools.dedup.passages.settings import FindSettings

SECONDS = 24


def song(seed: int, seconds: float = SECONDS) -> torch.Tensor:
    """Song of its own style, as audio (1, n) at 22,050 Hz."""
    return torch.from_numpy(compose(Style.draw(seed), seed, seconds)).float()[None]


def write(path: Path, audio: torch.Tensor, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio_io.write(path, audio, rate, clip=True)
    return path


def noisy(audio: torch.Tensor, decibels: float) -> torch.Tensor:
    noise = torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))
    return audio + noise * audio.std() * 10 ** (-decibels / 20)


def reverberant(audio: torch.Tensor, seconds: float = 1.0) -> torch.Tensor:
    """Audio with a diffuse tail as loud as the direct sound."""
    length = round(seconds * RATE)
    tail = torch.randn(length, generator=torch.Generator().manual_seed(1)) * 10 ** (-3 * torch.arange(length) / length)
    response = tail / tail.square().sum().sqrt()
    response[0] += 1
    return torch.from_numpy(np.convolve(audio[0].numpy(), response.numpy())[: audio.shape[1]]).float()[None]


def faster(audio: torch.Tensor, speed: float) -> torch.Tensor:
    return resample(audio, round(10_000 * speed), 10_000)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection") / "songs"
    for seed in range(6):
        write(folder / f"song{seed}.wav", song(seed))
    return folder


@pytest.fixture(scope="module")
def index(collection: Path) -> PassageIndex:
    place = collection.parent / "index"
    assert dedup_index(["--index", str(place), "--dataset-dir", str(collection), "--num-workers", "1"]) == 0
    return PassageIndex(place)


def passages(index: PassageIndex, audio: torch.Tensor) -> list[tuple[str, Any]]:
    peaks = find_peaks(resample(audio, RATE, 11_025)[0])
    return [(index.track(one.track).name, one) for one in find_passages(index, peaks, 0.3, 3)]


@pytest.mark.parametrize(
    ("change", "speed", "semitones"),
    [
        (lambda a: a, 1, 0),
        (lambda a: noisy(a, 20), 1, 0),
        (lambda a: a - 0.9 * torch.nn.functional.pad(a, (1, -1)), 1, 0),
        (reverberant, 1, 0),
        (lambda a: faster(a, 1.04), 1.04, 12 * math.log2(1.04)),
        (lambda a: faster(a, 0.96), 0.96, 12 * math.log2(0.96)),
        (lambda a: -0.1 * a, 1, 0),
    ],
    ids=["unchanged", "noise", "treble", "reverb", "faster", "slower", "quiet and inverted"],
)
def test_an_altered_excerpt_is_found_at_its_place(
    index: PassageIndex, change: Callable[[torch.Tensor], torch.Tensor], speed: float, semitones: float
) -> None:
    excerpt = song(2)[:, 8 * RATE : 18 * RATE]
    (found,) = passages(index, change(excerpt))
    name, one = found
    assert name == "songs:song2.wav"
    assert one.speed == pytest.approx(speed, abs=0.004)
    assert one.semitones == pytest.approx(semitones, abs=0.15)
    assert one.seconds > 0.7 * 10 / speed
    assert one.track_start - one.start * speed == pytest.approx(8, abs=0.2)


def test_songs_that_are_not_in_the_index_match_nothing(index: PassageIndex) -> None:
    assert not [found for seed in range(10, 16) for found in passages(index, song(seed))]
    assert not passages(index, torch.zeros(1, 5 * RATE))
    assert not passages(index, noisy(torch.zeros(1, 5 * RATE), -20))


def test_a_medley_is_taken_apart(index: PassageIndex) -> None:
    medley = torch.cat([song(1)[:, : 9 * RATE], song(4)[:, 12 * RATE : 22 * RATE]], 1)
    (first, second) = sorted(passages(index, medley), key=lambda found: found[1].start)
    assert (first[0], second[0]) == ("songs:song1.wav", "songs:song4.wav")
    assert first[1].end == pytest.approx(9, abs=1.5) and second[1].start == pytest.approx(9, abs=1.5)
    assert second[1].track_start == pytest.approx(12, abs=1.5)


def test_codes_do_not_depend_on_pitch_and_hardly_on_speed() -> None:
    peaks = find_peaks(resample(song(0), RATE, 11_025)[0])
    codes = set(find_landmarks(peaks, 1).code.tolist())
    shifted = peaks._replace(pitch=peaks.pitch + 0.6, frame=peaks.frame * 1.03)
    probes = find_probes(shifted, 1)
    rows = {(frame, pitch) for frame, pitch, code in zip(probes.frame, probes.pitch, probes.code) if code in codes}
    assert len(rows) > 0.95 * len(set(zip(probes.frame, probes.pitch)))


def test_sampling_keeps_the_same_codes_on_both_sides() -> None:
    peaks = find_peaks(resample(song(0), RATE, 11_025)[0])
    whole, part = find_landmarks(peaks, 1).code, find_landmarks(peaks, 16).code
    assert len(part) == pytest.approx(len(whole) / 16, rel=0.3)
    assert set(part.tolist()) <= set(find_probes(peaks, 16).code.tolist())


# ------------------------------------------------------------------ the index


def test_recordings_are_indexed_once_and_a_stopped_run_continues(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "TRACKS_PER_SEGMENT", 2)
    flags = ["--index", str(tmp_path / "index"), "--dataset-dir", str(collection), "--num-workers", "1"]
    assert dedup_index([*flags, "--limit", "3"]) == 0
    held = sorted((tmp_path / "index").glob("segment-*"))
    assert len(held) == 2
    (tmp_path / "index" / ".part-1-half").mkdir()
    assert dedup_index(flags) == 0
    index = PassageIndex(tmp_path / "index")
    assert sorted(track.name for track in index.tracks) == [f"songs:song{seed}.wav" for seed in range(6)]
    assert {path.name for path in held} <= {segment.folder.name for segment in index.segments}
    ((name, _),) = passages(index, song(5)[:, : 8 * RATE])
    assert name == "songs:song5.wav"


def test_a_killed_run_continues(collection: Path, tmp_path: Path) -> None:
    """Killed for good after the first segment, the index holds whole segments alone, and the next run adds the rest."""
    place = tmp_path / "index"
    code = (
        "import sys; from stable_audio_tools.dedup.passages import index; index.TRACKS_PER_SEGMENT = 1\n"
        "from stable_audio_tools.cli.data import dedup_index; sys.exit(dedup_index(sys.argv[1:]))"
    )
    flags = ["--index", str(place), "--dataset-dir", str(collection), "--num-workers", "1"]
    process = subprocess.Popen([sys.executable, "-c", code, *flags], env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(place.glob("segment-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    held = len(PassageIndex(place))
    assert 1 <= held <= 6
    assert dedup_index(flags) == 0
    index = PassageIndex(place)
    assert sorted(track.name for track in index.tracks) == [f"songs:song{seed}.wav" for seed in range(6)]
    assert {name for name, _ in passages(index, song(3)[:, : 9 * RATE])} == {"songs:song3.wav"}


@pytest.mark.slow
def test_two_processes_index_what_one_does(collection: Path, index: PassageIndex, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "stable_audio_tools", "dedup", "index", "--index", str(tmp_path / "index")]
    command += ["--dataset-dir", str(collection), "--num-workers", "1"]
    subprocess.run(command, check=True, env=environment(), cwd=ROOT, capture_output=True, timeout=120)
    both = PassageIndex(tmp_path / "index")
    assert len(both.segments) == 2
    assert sorted(track.name for track in both.tracks) == sorted(track.name for track in index.tracks)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda place: None, "not an index of recordings; create one with `dedup index`"),
        (lambda place: place.mkdir() or (place / "index.json").write_text('{"version": 9}'), "version 9 of the index"),
        (
            lambda place: place.mkdir() or (place / "index.json").write_text('{"version": 1, "sampling": 16}'),
            "holds no recording",
        ),
    ],
)
def test_a_folder_that_cannot_be_searched_is_named(tmp_path: Path, prepare: Any, message: str) -> None:
    prepare(tmp_path / "index")
    with pytest.raises(ConfigError, match=message):
        find_copies(FindSettings(index=tmp_path / "index", output_dir=tmp_path / "out"))
    with pytest.raises(ConfigError, match=message):
        CopyGuard(tmp_path / "index")


def test_another_sampling_is_refused(collection: Path, index: PassageIndex, capsys: Any) -> None:
    flags = ["--index", str(index.folder), "--dataset-dir", str(collection), "--sampling", "4"]
    assert dedup_index(flags) == 2
    assert "holds one in 8 landmarks, and --sampling 4 was asked for" in capsys.readouterr().err


# ------------------------------------------------------------------ kinds of match and lists


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two songs with a copy of each kind."""
    folder = tmp_path_factory.mktemp("kinds") / "music"
    one, other = song(0), song(1)
    write(folder / "one.wav", one)
    write(folder / "one again.wav", one)
    write(folder / "one.ogg", one)
    write(folder / "one fast.wav", faster(one, 1.03))
    write(folder / "other.wav", other)
    write(folder / "other excerpt.flac", other[:, 5 * RATE : 17 * RATE])
    index = folder.parent / "index"
    assert dedup_index(["--index", str(index), "--dataset-dir", str(folder), "--num-workers", "1"]) == 0
    return folder.parent


def found_kinds(folder: Path, out: Path, *flags: str) -> dict[frozenset[str], str]:
    assert dedup_find(["--index", str(folder / "index"), "--output-dir", str(out), *flags]) == 0
    rows = map(json.loads, (out / "matches.jsonl").read_text().splitlines())
    return {frozenset((Path(row["query"][6:]).name, Path(row["track"][6:]).name)): row["kind"] for row in rows}


def test_each_kind_of_copy_is_named(copies: Path, tmp_path: Path) -> None:
    kinds = found_kinds(copies, tmp_path)
    assert kinds[frozenset(("one.wav", "one again.wav"))] == "exact"
    assert kinds[frozenset(("one.wav", "one.ogg"))] == "re-encoded"
    assert kinds[frozenset(("one.wav", "one fast.wav"))] == "altered"
    assert kinds[frozenset(("other.wav", "other excerpt.flac"))] == "excerpt"
    assert not [pair for pair in kinds if len({name.split()[0].split(".")[0] for name in pair}) > 1]
    page = (tmp_path / "audit.html").read_text()
    assert page.count("<audio") == 2 * len((tmp_path / "passages.csv").read_text().splitlines()[1:]) and "#t=" in page


def test_the_exclusion_list_follows_the_kinds(copies: Path, tmp_path: Path) -> None:
    def listed(*flags: str) -> set[str]:
        found_kinds(copies, tmp_path, *flags)
        lines = (tmp_path / "exclude_paths.txt").read_text().splitlines()
        return {line for line in lines if not line.startswith("#")}

    copied = {"music:one again.wav", "music:one.ogg", "music:one.wav", "music:one fast.wav"}
    assert len(listed()) == 3 and listed() < copied
    assert len(listed("--exclude", "exact")) == 1
    assert listed("--exclude", "excerpt") == {"music:other excerpt.flac"}


def test_files_outside_the_index_are_searched_for(
    copies: Path, index: PassageIndex, tmp_path: Path, capsys: Any
) -> None:
    new = write(tmp_path / "new.wav", torch.cat([song(11)[:, : 8 * RATE], song(1)[:, 4 * RATE : 12 * RATE]], 1))
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    flags = ["--index", str(copies / "index"), "--output-dir", str(tmp_path / "out"), "--audio", str(tmp_path)]
    assert dedup_find(flags) == 1
    output = capsys.readouterr()
    assert f"{new}: passage, 8." in output.out and "broken.wav" in output.err
    assert [failure["path"] for failure in json.loads((tmp_path / "out" / "failed_files.json").read_text())]
    assert dedup_find([*flags[:-1], str(tmp_path / "nothing.wav")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


# ------------------------------------------------------------------ the guard


def test_the_guard_silences_what_is_copied_and_nothing_else(index: PassageIndex) -> None:
    own, copied = song(12), song(3)
    audio = torch.cat([own[:, : 8 * RATE], copied[:, 6 * RATE : 12 * RATE], own[:, 8 * RATE : 14 * RATE]], 1)
    (found,) = CopyGuard(index.folder).find(audio, RATE)
    assert found.track == "songs:song3.wav"
    assert found.start == pytest.approx(8, abs=0.8) and found.end == pytest.approx(14, abs=0.8)
    assert found.track_start == pytest.approx(6, abs=0.8)
    kept, about = CopyGuard(index.folder, "report")(audio, RATE)
    assert torch.equal(kept, audio) and about["copies"][0]["track"] == "songs:song3.wav"
    silenced, _ = CopyGuard(index.folder, "withhold")(audio, RATE)
    assert not silenced[:, 9 * RATE : 13 * RATE].any()
    assert torch.equal(silenced[:, : 7 * RATE], audio[:, : 7 * RATE])
    assert CopyGuard(index.folder)(own, RATE)[1] == {}


def copied(start: float, end: float) -> CopiedPassage:
    return CopiedPassage("song", start, end, 0.0, 1.0, 0.0, 1.0)


def test_silence_fades_without_a_click() -> None:
    audio = torch.ones(2, 1000)
    faded = silence(audio, 1000, [copied(0.3, 0.6)])
    assert not faded[:, 300:600].any() and float(faded.diff().abs().max()) < 0.05
    assert torch.equal(faded[:, :240], audio[:, :240]) and torch.equal(faded[:, 660:], audio[:, 660:])
    assert not silence(audio, 1000, [copied(0.0, 1.0)]).any()
