"""Which files are found, in which order, and that headers are read once."""

import os
from pathlib import Path

import numpy as np
import pytest

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.data.index import Header, PackedStrings, index_folder
from stable_audio_tools.data.scanning import Unreachable, fast_scandir, get_audio_filenames, walk


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_order_is_that_of_path_components(tmp_path: Path) -> None:
    touch(tmp_path, "b.wav", "a/2.wav", "a/1.WAV", "a b/3.wav", "a.wav", "a/notes.txt", ".hidden.wav", ".git/x.wav")
    names = [found.name for found in walk(tmp_path, ["wav"])]
    assert names == ["a/1.WAV", "a/2.wav", "a b/3.wav", "a.wav", "b.wav"]
    assert names == sorted(names, key=lambda name: name.split("/"))


def test_loops_and_broken_links_end_and_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.wav")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "self.wav").symlink_to(tmp_path / "self.wav")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nothing")
    missed: list[Unreachable] = []
    assert [found.name for found in walk(tmp_path, [".wav"], missed)] == ["a/1.wav"]
    assert {Path(m.path).name: m.is_file for m in missed} == {
        "up": False, "again": False, "self.wav": True, "gone.wav": True,
    }  # fmt: skip


def test_published_helpers(tmp_path: Path) -> None:
    touch(tmp_path, "x/kick_1.wav", "x/snare.wav", "kick.txt", "y/kick.flac")
    assert fast_scandir(str(tmp_path), ["wav"])[0] == [str(tmp_path / "x"), str(tmp_path / "y")]
    assert get_audio_filenames(str(tmp_path)) == [
        str(tmp_path / "x/kick_1.wav"), str(tmp_path / "x/snare.wav"), str(tmp_path / "y/kick.flac"),
    ]  # fmt: skip
    assert [Path(p).name for p in get_audio_filenames([str(tmp_path)], keywords=["KICK"])] == [
        "kick_1.wav",
        "kick.flac",
    ]


def test_packed_strings_keep_any_name() -> None:
    names = ["", "a/b.wav", "ünï.wav", os.fsdecode(b"\xff\xfe.wav")]
    packed = PackedStrings.of(names)
    assert list(packed) == names and packed[3] == names[3] and len(packed) == 4


@pytest.fixture
def many(tmp_path: Path) -> Path:
    touch(tmp_path, *(f"d{i % 7}/{i}.wav" for i in range(600)))
    return tmp_path


def test_headers_are_read_once(many: Path) -> None:
    read: list[str] = []

    def describe(path: Path) -> Header:
        read.append(path.name)
        if path.name == "13.wav":
            raise AudioError(f"{path}: broken")
        return Header(len(path.name), 8_000, 2)

    first = index_folder(many, [".wav"], describe, "test")
    assert len(read) == 600 and first.reasons == dict.fromkeys(first.reasons, "broken") and len(first.reasons) == 1
    read.clear()
    second = index_folder(many, [".wav"], describe, "test")
    # The file that could not be read is tried again: a server that did not answer may answer now.
    assert read == ["13.wav"] and second.reasons == first.reasons
    np.testing.assert_array_equal(second.frames, first.frames)
    mended = index_folder(many, [".wav"], lambda path: Header(len(path.name), 8_000, 2), "test")
    assert not mended.reasons and mended.frames.tolist() == [len(Path(name).name) for name in mended.names]
    read.clear()
    assert index_folder(many, [".wav"], describe, "test").reasons == {} and read == []

    (many / "d3/3.wav").write_bytes(b"changed")
    (many / "d4/4.wav").unlink()
    touch(many, "d0/new.wav", "zzz/last.wav")
    third = index_folder(many, [".wav"], describe, "test")
    assert sorted(read) == ["3.wav", "last.wav", "new.wav"]
    assert len(third.names) == 601
    for row, name in enumerate(third.names):
        assert third.frames[row] == len(Path(name).name)


def test_a_broken_cache_is_read_anew(many: Path) -> None:
    index_folder(many, [".wav"], lambda path: Header(1, 1, 1), "test")
    cache = next(Path(os.environ["STABLE_AUDIO_TOOLS_CACHE"]).rglob("*.npz"))
    for content in (b"", b"PK nonsense", cache.read_bytes()[:200]):
        cache.write_bytes(content)
        assert index_folder(many, [".wav"], lambda path: Header(2, 1, 1), "test").frames.tolist() == [2] * 600
