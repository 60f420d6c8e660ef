"""Files arrive whole, whatever the connection does."""

import logging
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from stable_audio_tools.data.jamendo.transfer import Transfer, TransferError, partial

NAME = "raw_30s/audio/raw_30s_audio-01.tar"
QUICK = Transfer(retries=2, timeout=5, first_wait=0.0)


@pytest.fixture
def data(published: Path) -> bytes:
    return (published / NAME).read_bytes()


def test_a_connection_that_drops_goes_on_where_it_was(mirror: Any, data: bytes, tmp_path: Path) -> None:
    mirror.faults.drop_after = [1000, 1, 3000, 500]
    assert QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar", sha256(data).hexdigest())
    assert (tmp_path / "a.tar").read_bytes() == data
    starts = [1000, 1001, 4001, 4501]
    assert [given for _, given in mirror.faults.asked] == [None, *(f"bytes={start}-" for start in starts)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_later_run_goes_on_too(mirror: Any, data: bytes, tmp_path: Path) -> None:
    mirror.faults.drop_after = [2000, 0, 0]
    impatient = Transfer(retries=1, timeout=5, first_wait=0.0)
    with pytest.raises(
        TransferError, match=r"the connection ended at byte 2000 of \d+ .1 retries; start again to go on"
    ):
        impatient.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar")
    assert partial(tmp_path / "a.tar").stat().st_size == 2000
    assert QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar")
    assert mirror.faults.asked[-1][1] == "bytes=2000-"
    assert (tmp_path / "a.tar").read_bytes() == data


def test_retries_count_anew_when_something_arrived(mirror: Any, data: bytes, tmp_path: Path) -> None:
    mirror.faults.drop_after = [100] * 12
    QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == data


def test_a_server_without_ranges_starts_over(mirror: Any, data: bytes, tmp_path: Path) -> None:
    mirror.faults.drop_after, mirror.faults.without_ranges = [1000], True
    QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar", sha256(data).hexdigest())
    assert (tmp_path / "a.tar").read_bytes() == data


def test_a_range_that_was_not_asked_for_is_not_appended(mirror: Any, data: bytes, tmp_path: Path) -> None:
    mirror.faults.drop_after, mirror.faults.wrong_ranges = [1000], 1
    QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == data


def test_a_file_that_changed_meanwhile_is_fetched_whole(mirror: Any, data: bytes, tmp_path: Path) -> None:
    part = partial(tmp_path / "a.tar")
    part.write_bytes(b"of another file")
    part.with_name(part.name + ".etag").write_text('"another"')
    QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == data


def test_a_part_that_is_whole_already(mirror: Any, data: bytes, tmp_path: Path) -> None:
    partial(tmp_path / "a.tar").write_bytes(data)
    QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar", sha256(data).hexdigest())
    assert (tmp_path / "a.tar").read_bytes() == data


@pytest.mark.parametrize("spoiled", [b"x" * 500, b"x" * 10_000_000])
def test_a_damaged_part_is_fetched_again(
    mirror: Any, data: bytes, tmp_path: Path, spoiled: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    partial(tmp_path / "a.tar").write_bytes(spoiled)
    caplog.set_level(logging.INFO, "stable_audio_tools")
    QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar", sha256(data).hexdigest())
    assert (tmp_path / "a.tar").read_bytes() == data
    assert "fetched" in caplog.text


def test_a_wrong_sum_is_told_and_nothing_is_left(mirror: Any, tmp_path: Path) -> None:
    with pytest.raises(
        TransferError, match=r"does not have the SHA-256 that is published for it; try another --mirror"
    ):
        QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar", "0" * 64)
    assert not (tmp_path / "a.tar").exists()
    assert not partial(tmp_path / "a.tar").exists()
    assert len(mirror.faults.asked) == 2


def test_a_busy_server_is_asked_again_and_an_absent_file_is_not(mirror: Any, data: bytes, tmp_path: Path) -> None:
    mirror.faults.answers = [503, 429]
    QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar")
    assert len(mirror.faults.asked) == 3
    with pytest.raises(TransferError, match=r"absent: the server answers 404"):
        QUICK.fetch(f"{mirror.url}/absent", tmp_path / "b.tar")
    assert len(mirror.faults.asked) == 4


def test_no_server_at_all(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"the connection failed .*refused"):
        QUICK.fetch("http://127.0.0.1:1/a", tmp_path / "a")


def test_a_stop_is_obeyed_and_leaves_what_arrived(mirror: Any, tmp_path: Path) -> None:
    stop = Event()
    stopped = Transfer(
        retries=2, timeout=5, first_wait=0.0, stop=stop, report=lambda count: stop.set() if count else None
    )
    mirror.faults.drop_after = [1500]
    with pytest.raises(TransferError, match="stopped"):
        stopped.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar")
    assert partial(tmp_path / "a.tar").stat().st_size == 1500


def test_enough_is_enough(mirror: Any, tmp_path: Path) -> None:
    partial(tmp_path / "a.tar").write_bytes(b"x" * 700)
    assert not QUICK.fetch(f"{mirror.url}/{NAME}", tmp_path / "a.tar", enough=lambda part: part.stat().st_size >= 700)
    assert mirror.faults.asked == []
