"""A file is whole or it is not there."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.disks import read_only_disk, small_disk

from stable_audio_tools.core.errors import UserError, describe_os_error
from stable_audio_tools.core.files import atomic_path, folder_lock, write_text
from stable_audio_tools.data import audio_io

__all__ = ["read_only_disk", "small_disk"]


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


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.skipif(os.name != "posix", reason="files elsewhere have no such kinds")
@pytest.mark.parametrize("make", [make_pipe, make_socket, make_link_to_device])
def test_what_is_not_a_regular_file_is_not_replaced(make: Callable[[Path], None], tmp_path: Path) -> None:
    target = tmp_path / "f"
    make(target)
    before = target.lstat()
    with pytest.raises(UserError, match="f: exists and is not a regular file; choose another name"):
        write_text(target, "x")
    assert target.lstat().st_mode == before.st_mode
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def write_much_text(path: Path) -> None:
    write_text(path, "x" * 2**20)


def write_audio(path: Path) -> None:
    audio_io.write(path.with_suffix(".wav"), torch.zeros(2, 2**19), 44_100)


def write_tensors(path: Path) -> None:
    with atomic_path(path) as temporary:
        torch.save(torch.zeros(2**19), temporary)


@pytest.mark.parametrize("write", [write_much_text, write_audio, write_tensors])
def test_a_full_disk_is_named_and_leaves_the_old_file(write: Callable[[Path], None], small_disk: Path) -> None:
    for name in ("old", "old.wav"):
        (small_disk / name).write_text("old")
    with pytest.raises(UserError, match=r"old(\.wav)?: not written, the disk is full; free some space"):
        write(small_disk / "old")
    assert {path.name: path.read_text() for path in small_disk.iterdir()} == {"old": "old", "old.wav": "old"}


def test_errors_of_the_system_name_the_file_and_the_remedy(read_only_disk: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Read-only") as caught:
        write_text(read_only_disk / "a.txt", "x")
    assert "the file system is read-only; choose another folder" in describe_os_error(caught.value)
    with pytest.raises(OSError, match="too long") as caught:
        write_text(tmp_path / ("x" * 300), "x")
    assert "the name is too long for this file system" in describe_os_error(caught.value)
    assert describe_os_error(OSError("something else")) == "something else"


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom stable_audio_tools.core.files import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            holder = rf"another run writes here \(process {other.pid} on .*\); wait for it"
            with pytest.raises(UserError, match=holder), folder_lock(tmp_path):
                pytest.fail("two processes hold the folder")
        finally:
            other.kill()
    with folder_lock(tmp_path):
        assert list(tmp_path.iterdir()) == [tmp_path / ".in-use"]
    assert list(tmp_path.iterdir()) == []
