"""Reconstruction: chunks equal the whole, lengths and channels are kept, folders are mirrored and resumable."""

import csv
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_models import small_model

import stable_audio_tools
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.gathering import check_launcher
from stable_audio_tools.data import audio_io
from stable_audio_tools.evaluation.reconstruction.folder import (
    find_sources,
    reconstruct_folder,
)
from stable_audio_tools.evaluation.reconstruction.table import as_csv
from stable_audio_tools.evaluation.settings import ReconstructionSettings
from stable_audio_tools.inference.batch.outputs import OutputFolder
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.reconstruction import codec_of, reconstruct

RATE = 22050
QUICK = ReconstructionSettings(frame_duration=0.2, overlap_rate=0.2, batch_size=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AudioModel:
    made = small_model("tiny_autoencoder", tmp_path_factory.mktemp("models"))
    return stable_audio_tools.load(made.config, made.weights, device="cpu")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder, generator = tmp_path / "clips", torch.Generator().manual_seed(0)
    for name, channels, frames, rate in (
        ("a/one.wav", 2, 9000, RATE),
        ("a/deep/two.flac", 1, 12345, 44100),
        ("three.mp3", 2, 8000, 32000),
        ("three.ogg", 1, 300, 16000),
    ):
        audio = 0.3 * torch.rand(channels, frames, generator=generator)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        audio_io.write(folder / name, audio, rate)
    return folder


def run(model: AudioModel, clips: Path, out: Path, settings: ReconstructionSettings = QUICK) -> list[dict[str, Any]]:
    return [record for record, _ in told_by(model, clips, out, settings)]


def told_by(
    model: AudioModel, clips: Path, out: Path, settings: ReconstructionSettings = QUICK
) -> list[tuple[dict[str, Any], bool]]:
    """The line of each file, and whether it is new."""
    told: list[tuple[dict[str, Any], bool]] = []
    sources = find_sources(clips, out, settings.format)
    failed = reconstruct_folder(
        model, sources, clips, OutputFolder(out), settings, lambda record, is_new: told.append((record, is_new))
    )
    assert not failed
    return told


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.mark.parametrize("frames", [100, 256, 5000, 30011])
def test_any_length_comes_back_at_the_models_rate(model: AudioModel, frames: int) -> None:
    made = reconstruct(model.module, torch.rand(1, frames), 11025, frame_seconds=0.3, overlap_rate=0.1, batch_size=4)
    assert made.shape == (2, 2 * frames)


def test_frames_meet_without_a_seam(model: AudioModel) -> None:
    """Away from the ends of frames, where the context is cut, each equals one pass over the whole clip."""
    codec = codec_of(model.module)
    codec.bottleneck.encode, encode = lambda x, **_: (x.chunk(2, 1)[0], {}), codec.bottleneck.encode
    try:
        audio = torch.rand(2, 256 * 60) - 0.5
        whole = reconstruct(model.module, audio, RATE, frame_seconds=10)
        cut = reconstruct(model.module, audio, RATE, frame_seconds=30 * 256 / RATE, overlap_rate=0.1, batch_size=2)
    finally:
        codec.bottleneck.encode = encode
    difference = (whole - cut).abs().amax(0).view(60, 256).amax(1)
    # Frames of 30 that begin at 0, 27 and 30; the receptive field is under 8 latent frames.
    assert difference[:18].max() < 1e-5 and difference[-18:].max() < 1e-5
    assert difference.max() > 1e-4, "the comparison could not have failed"


def test_the_tree_is_kept_and_clashing_names_keep_their_suffix(clips: Path, tmp_path: Path) -> None:
    assert find_sources(clips, tmp_path / "out", "wav") == {
        "a/deep/two.wav": "a/deep/two.flac",
        "a/one.wav": "a/one.wav",
        "three.mp3.wav": "three.mp3",
        "three.ogg.wav": "three.ogg",
    }


def test_a_folder_with_its_table(model: AudioModel, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = run(model, clips, out)
    for record in told:
        about, source = audio_io.info(out / record["file"]), audio_io.info(clips / record["source"])
        assert about.sample_rate == RATE and about.channels == 2
        assert about.seconds == pytest.approx(source.seconds, abs=0.06)  # mp3 pads
        assert set(record) >= {"si_sdr", "mrstft", "mel"}
    records = OutputFolder(out).summarise(list(find_sources(clips, out, "wav")), lambda lines: None)
    assert records == told
    assert len(list(csv.reader(as_csv(records).splitlines()))) == 7


def test_runs_by_two_processes_and_again_give_the_same_files(
    model: AudioModel, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, clips, tmp_path / "one")
    expected = files_in(tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shares.append(run(model, clips, tmp_path / "two"))
    assert [len(share) for share in shares] == [2, 2] and files_in(tmp_path / "two") == expected
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    target = tmp_path / "two" / "a" / "one.wav"
    target.write_bytes(target.read_bytes()[:2000])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("three*")}
    run(model, clips, tmp_path / "two")
    assert files_in(tmp_path / "two") == expected
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("three*")} == kept


def test_an_unreadable_file_stops_nothing(model: AudioModel, clips: Path, tmp_path: Path) -> None:
    (clips / "bad.wav").write_bytes(b"RIFF")
    sources = find_sources(clips, tmp_path / "out", "wav")
    told: list[str] = []
    failed = reconstruct_folder(
        model, sources, clips, OutputFolder(tmp_path / "out"), QUICK, lambda record, _: told.append(record["file"])
    )
    assert len(told) == 4 and len(failed) == 1 and "bad.wav" in failed[0]


def test_a_source_of_the_same_size_but_other_content_is_made_anew(
    model: AudioModel, clips: Path, tmp_path: Path
) -> None:
    first = told_by(model, clips, tmp_path / "out")
    assert all(is_new for _, is_new in first)
    assert told_by(model, clips, tmp_path / "out") == [(record, False) for record, _ in first]
    source = clips / "a" / "one.wav"
    size = source.stat().st_size
    audio_io.write(source, 0.1 * torch.rand(2, 9000), RATE)
    assert source.stat().st_size == size
    again = told_by(model, clips, tmp_path / "out")
    assert [record["source"] for record, is_new in again if is_new] == ["a/one.wav"]
    old, new = (next(record for record, _ in told if record["source"] == "a/one.wav") for told in (first, again))
    assert old["si_sdr"] != new["si_sdr"] and old["source_digest"] != new["source_digest"]


def test_files_of_earlier_versions_are_made_anew(model: AudioModel, clips: Path, tmp_path: Path) -> None:
    """They tell the size of their source, and not its digest."""
    for record in run(model, clips, tmp_path / "out"):
        path = tmp_path / "out" / record["file"]
        earlier = {name: value for name, value in record.items() if name not in ("file", "source_digest")}
        audio_io.write(path, audio_io.read(path).samples, RATE, comment=json.dumps(earlier))
    assert [is_new for _, is_new in told_by(model, clips, tmp_path / "out")] == [True] * 4


def test_a_process_that_ends_early_keeps_none_waiting() -> None:
    """The second of two joins and is gone; the first, which asks for its share, is told so."""
    code = (
        "import os; from stable_audio_tools.core.gathering import all_processes\n"
        "with all_processes() as gather: os._exit(9) if os.environ['RANK'] == '1' else gather('mine')"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    place = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    waiting, gone = (
        subprocess.Popen([sys.executable, "-c", code], env={**place, "RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    )
    _, told = waiting.communicate(timeout=120)
    gone.communicate()
    assert (waiting.returncode, gone.returncode) == (1, 9)
    assert "UserError: another process of this run cannot be reached (" in told


def test_processes_that_cannot_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    check_launcher()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without MASTER_ADDR, MASTER_PORT; start them with torchrun"):
        check_launcher()


def test_folders_that_cannot_be(model: AudioModel, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_sources(tmp_path / "absent", tmp_path / "out", "wav")
    with pytest.raises(UserError, match="this is the folder of the originals"):
        find_sources(clips, clips, "wav")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no audio files"):
        find_sources(tmp_path / "empty", tmp_path / "out", "wav")
    run(model, clips, clips / "out")
    assert len(find_sources(clips, clips / "out", "wav")) == 4, "what was made is no source"
    with pytest.raises(UserError, match="this model has no autoencoder"):
        codec_of(torch.nn.Linear(1, 1))
    for format, bits, message in (("opus", 16, "opus has no sample rate of 22050 Hz"), ("flac", 32, "16 or 24 bits")):
        with pytest.raises(UserError, match=message):
            run(model, clips, tmp_path / "out", ReconstructionSettings(format=format, bits=bits))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame_duration": math.inf}, "--frame-duration: expected more than 0 and at most 1000000000, got inf"),
        ({"frame_duration": math.nan}, "--frame-duration: expected .*, got nan"),
        ({"frame_duration": 0}, "--frame-duration: expected .*, got 0"),
        ({"frame_duration": -1.0}, "--frame-duration: expected .*, got -1"),
        ({"overlap_rate": 1}, "--overlap-rate: expected at least 0 and less than 1, got 1"),
        ({"overlap_rate": math.inf}, "--overlap-rate: expected .*, got inf"),
        ({"overlap_rate": math.nan}, "--overlap-rate: expected .*, got nan"),
        ({"overlap_rate": -0.1}, "--overlap-rate: expected .*, got -0.1"),
        ({"batch_size": 0}, "--batch-size: expected at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReconstructionSettings(**settings)


def test_the_codec_inside_a_diffusion_model(tmp_path: Path) -> None:
    made = small_model("tiny_diffusion_cond", tmp_path)
    model = stable_audio_tools.load(made.config, made.weights, device="cpu")
    assert codec_of(model.module) is model.module.pretransform.model
    assert reconstruct(model.module, torch.rand(2, 3000), RATE).shape == (2, 3000)
