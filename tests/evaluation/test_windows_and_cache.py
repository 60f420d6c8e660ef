"""Windows, the cache, and folders to vectors: the same file gives the same bytes, whatever happens around it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_sounds import RATE, tone, write_tones

from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.data.audio_io import write
from stable_audio_tools.evaluation.embedders import create_embedder
from stable_audio_tools.evaluation.embedders.base import Windows
from stable_audio_tools.evaluation.embedding import (
    EmbeddingCache,
    embed_files,
    embed_share,
    find_audio,
    key_of,
    read_audio,
)


@pytest.mark.parametrize(
    ("samples", "hop", "starts"),
    [
        (3, 1.0, [0]),  # shorter than a window: as it is
        (10, 1.0, [0]),
        (20, 1.0, [0, 10]),
        (24, 1.0, [0, 10]),  # four tenths of a hop are left out
        (25, 1.0, [0, 10, 15]),  # from half a hop on, a last window ends with the audio
        (30, 0.5, [0, 5, 10, 15, 20]),
    ],
)
def test_windows_start_at_fixed_places(samples: int, hop: float, starts: list[int]) -> None:
    (rows,) = Windows(1.0, hop).cut(torch.arange(samples), sample_rate=10)
    assert rows[:, 0].tolist() == starts
    assert rows.shape[1] == min(samples, 10)


def test_a_hop_beyond_the_window_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hop_seconds: expected more than 0 and at most the window of 1 s, got 2"):
        create_embedder("logmel:hop_seconds=2.0")


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    files = find_audio(write_tones(tmp_path / "audio", 5, seconds=3.3))
    embedder = create_embedder("logmel")
    first = embed_files(embedder, files, tmp_path / "a", batch_size=1, workers=1)
    second = embed_files(embedder, dict(reversed(files.items())), tmp_path / "b", batch_size=7, workers=3)
    assert first is not None and second is not None
    for name in files:
        assert first.frames[name].tobytes() == second.frames[name].tobytes()
    alone = embedder.frames(read_audio(files["tone_02.wav"], embedder.sample_rate))
    assert alone.tobytes() == first.frames["tone_02.wav"].tobytes()


def test_two_processes_share_the_work_and_the_last_sees_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, embedder = find_audio(write_tones(tmp_path / "audio", 5)), create_embedder("logmel")
    one = embed_files(embedder, files, tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert embed_files(embedder, files, tmp_path / "two") is None
    monkeypatch.setenv("RANK", "0")
    two = embed_files(embedder, files, tmp_path / "two")
    assert one is not None and two is not None
    assert one.all_frames.tobytes() == two.all_frames.tobytes()


def test_what_is_cached_is_not_embedded_again(tmp_path: Path) -> None:
    audio = write_tones(tmp_path / "audio", 3)
    files, embedder = find_audio(audio), create_embedder("logmel")
    cache = EmbeddingCache(tmp_path / "cache", embedder)
    assert embed_share(embedder, files, cache) == 3
    assert embed_share(embedder, files, cache) == 0
    write(audio / "tone_01.wav", tone(9), RATE)  # a changed file is another one
    broken = cache.folder / (key := key_of(files["tone_02.wav"]))[:2] / f"{key}.npy"
    broken.write_bytes(broken.read_bytes()[:100])  # what a full disk may leave
    assert embed_share(embedder, files, cache) == 2
    other = EmbeddingCache(tmp_path / "cache", create_embedder("logmel:bands=32"))
    assert other.folder != cache.folder and embed_share(embedder, files, other) == 3


def test_bad_files_are_counted_and_named(tmp_path: Path) -> None:
    audio = write_tones(tmp_path / "audio", 2)
    (audio / "broken.wav").write_bytes(b"RIFF but no sound")
    write(audio / "nan.wav", torch.zeros(1, 8000), RATE, bits=32)
    data = bytearray((audio / "nan.wav").read_bytes())
    data[-4:] = np.float32("nan").tobytes()
    (audio / "nan.wav").write_bytes(data)
    write(audio / "one_sample.wav", torch.zeros(1, 1), RATE)
    files = {**find_audio(audio), "gone.wav": audio / "gone.wav"}
    found = embed_files(create_embedder("logmel"), files, tmp_path / "cache")
    assert found is not None
    assert set(found.frames) == {"tone_00.wav", "tone_01.wav", "one_sample.wav"}
    assert set(found.failed) == {"broken.wav", "nan.wav", "gone.wav"}
    assert found.failed["nan.wav"] == "the audio contains NaN or infinite samples"
    assert "cannot be opened" in found.failed["gone.wav"]
    write(audio / "broken.wav", tone(1), RATE)
    mended = embed_files(create_embedder("logmel"), find_audio(audio), tmp_path / "cache")
    assert mended is not None and "broken.wav" in mended.frames


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_audio(tmp_path / "absent")
    with pytest.raises(UserError, match="contains no audio files"):
        find_audio(tmp_path)
