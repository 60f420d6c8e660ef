"""Tracks of a small MTG-Jamendo: as many as asked for, checked, once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stable_audio_tools.cli.data import download as main
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.data.jamendo import download as module
from stable_audio_tools.data.jamendo.download import Downloaded, DownloadSettings, download

Get = Callable[..., Downloaded]


@pytest.fixture
def get(mirror: Any, tmp_path: Path) -> Get:
    def go(**settings: Any) -> Downloaded:
        given = {"audio_dir": str(tmp_path / "small" / "audio"), "mirror": mirror.url, "lists": mirror.url, **settings}
        return download(DownloadSettings(**{"retries": 1, "timeout": 5, **given}))

    return go


def tracks(tmp_path: Path) -> set[str]:
    audio = tmp_path / "small" / "audio"
    return {path.relative_to(audio).as_posix() for path in audio.rglob("*.mp3")}


def tars(mirror: Any) -> list[str]:
    return [path.rpartition("-")[2] for path, _ in mirror.faults.asked if path.endswith(".tar")]


def test_whole_tars_until_the_target(get: Get, mirror: Any, tmp_path: Path) -> None:
    assert get(target=2) == Downloaded(3, 0, 1)
    assert tracks(tmp_path) == {"01/101.mp3", "01/201.mp3", "01/301.mp3"}
    assert not list((tmp_path / "small" / "_tar_cache").glob("*.tar*"))
    # A second run fetches nothing, and a larger target the rest.
    assert get(target=2) == Downloaded(0, 3, 0)
    assert get(target=5) == Downloaded(3, 3, 2)
    assert sorted(tars(mirror)) == ["01.tar", "02.tar", "14.tar"]


def test_a_track_that_was_deleted_comes_back_alone(get: Get, tmp_path: Path) -> None:
    get(target=3)
    (tmp_path / "small" / "audio" / "01" / "201.mp3").unlink()
    assert get(target=3) == Downloaded(1, 2, 1)


def test_partial_tars_stop_at_the_target(get: Get, tmp_path: Path) -> None:
    assert get(target=2, partial_tars=True) == Downloaded(2, 0, 1)
    assert len(tracks(tmp_path)) == 2
    assert get(target=2, partial_tars=True) == Downloaded(0, 2, 0)
    assert get(target=5, partial_tars=True) == Downloaded(3, 2, 3)
    assert len(tracks(tmp_path)) == 5


def test_a_partial_tar_is_not_fetched_to_its_end(
    get: Get, mirror: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stable_audio_tools.data.jamendo.transfer._CHUNK", 512)
    monkeypatch.setattr("stable_audio_tools.data.jamendo.transfer._LOOK_EVERY", 1)
    get(target=1, partial_tars=True, keep_tars=True)
    part = tmp_path / "small" / "_tar_cache" / "raw_30s_audio-01.tar.part"
    whole = mirror.folder / "raw_30s" / "audio" / "raw_30s_audio-01.tar"
    arrived = part.stat().st_size
    assert arrived < whole.stat().st_size / 2
    # What arrived is not fetched again when more is wanted.
    get(target=3)
    assert mirror.faults.asked[-1][1] == f"bytes={arrived}-"
    assert len(tracks(tmp_path)) == 3


def test_a_split_takes_its_tracks_only(get: Get, tmp_path: Path) -> None:
    assert get(target=9, split="split-0/autotagging_genre-train").fetched == 2
    assert tracks(tmp_path) == {"01/101.mp3", "01/201.mp3"}
    with pytest.raises(UserError, match=r"--split genre: no such list .*split-0/autotagging-train"):
        get(split="genre")


def test_tables_come_with_metadata(get: Get, mirror: Any, tmp_path: Path) -> None:
    get(target=1, with_metadata=True)
    assert (tmp_path / "small" / "raw_30s.tsv").read_bytes() == (mirror.folder / "raw_30s.tsv").read_bytes()
    assert (tmp_path / "small" / "raw.meta.tsv").exists()


def test_lists_from_a_folder(get: Get, mirror: Any, tmp_path: Path) -> None:
    assert get(target=1, lists=str(mirror.folder)).fetched == 3
    with pytest.raises(UserError, match=r"raw_30s_audio_sha256_tars.txt: no such file"):
        get(lists=str(tmp_path / "absent"), audio_dir=str(tmp_path / "other" / "audio"))


def test_a_killed_run_goes_on_within_its_tar(get: Get, mirror: Any, tmp_path: Path) -> None:
    get(target=1, split="split-0/autotagging_genre-train")  # brings the lists
    shutil.rmtree(tmp_path / "small" / "audio")
    mirror.faults.drop_after = [2500, 0]
    with pytest.raises(UserError, match=r"raw_30s_audio-01.tar: the connection ended at byte 2500 of \d+"):
        get(target=3)
    assert get(target=3).fetched == 3
    assert mirror.faults.asked[-1][1] == "bytes=2500-"


def test_one_tar_that_fails_does_not_hold_up_the_others(get: Get, mirror: Any, tmp_path: Path) -> None:
    absent = mirror.folder / "raw_30s" / "audio" / "raw_30s_audio-02.tar"
    hidden = absent.rename(tmp_path / "hidden.tar")
    try:
        with pytest.raises(UserError, match=r"raw_30s_audio-02.tar: the server answers 404"):
            get(target=6)
    finally:
        hidden.rename(absent)
    assert len(tracks(tmp_path)) == 5
    assert get(target=6) == Downloaded(1, 5, 1)


def test_a_full_disk_is_told_before_anything_is_fetched(get: Get, mirror: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(1000))
    with pytest.raises(UserError, match=r"0.3 GB are needed .* and 0.0 GB are free; lower --target or --workers"):
        get(target=6)
    assert not tars(mirror)


def test_a_list_that_is_none(get: Get, tmp_path: Path) -> None:
    cache = tmp_path / "small" / "_tar_cache"
    cache.mkdir(parents=True)
    (cache / "raw_30s_audio_sha256_tars.txt").write_text("<html>\n")
    with pytest.raises(UserError, match=r"line 1 is not a SHA-256 and a name; delete the file to fetch it again"):
        get()


def test_the_command(mirror: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--audio-dir", str(tmp_path / "audio"), "--mirror", mirror.url, "--lists", mirror.url]
    assert main([*words, "--target", "4", "--workers", "3"]) == 0
    assert "4 tracks fetched from 2 tars, 0 already present" in capsys.readouterr().out
    assert main([*words, "--target", "0", "--mirror", "elsewhere"]) == 2
    told = capsys.readouterr().err
    assert "--target: expected at least 1, got 0" in told
    assert "--mirror: expected freesound or mtg or an address, got 'elsewhere'" in told
