"""A file is whole or it is not there."""

import os
from pathlib import Path

import pytest

from stable_audio_tools.core.files import atomic_path, write_text


def test_success_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "new")]


def test_failure_keeps_the_old_file_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match="disk full"), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_the_suffix_is_kept(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.wav") as temporary:
        assert temporary.suffix == ".wav"
        temporary.touch()


@pytest.mark.skipif(os.name != "posix", reason="files elsewhere have no such modes")
def test_others_may_read_what_a_library_wrote_for_its_owner_alone(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "weights") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o600)
    (tmp_path / "usual").write_text("x")
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "usual").stat().st_mode
