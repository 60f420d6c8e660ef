"""Lists of paths: exact unless asked otherwise, with a word about entries that do not fit one file."""

import logging
from pathlib import Path

import pytest

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.path_lists import PathFilter, PathList, read_path_list


def listed(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / "list.txt").write_text("\n".join(lines))
    return tmp_path / "list.txt"


def test_comments_and_reasons_are_no_paths(tmp_path: Path) -> None:
    path = listed(tmp_path, "# one a line", "", "  a/1.wav  ", "b#2.wav\t# unreadable: because")
    assert read_path_list(path) == ["a/1.wav", "b#2.wav"]


def test_a_missing_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.txt: the list of paths cannot be read"):
        PathFilter(exclude=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("entry", "exact", "loose"),
    [
        ("a/1.wav", True, True),
        ("./a/1.wav", True, True),
        ("/data/a/1.wav", True, True),
        ("mine:a/1.wav", True, True),
        ("other:a/1.wav", False, False),
        ("1.wav", False, True),
        ("a/1", False, True),
        ("1", False, True),
        ("b/1.wav", False, False),
    ],
)
def test_which_entries_fit(tmp_path: Path, entry: str, exact: bool, loose: bool) -> None:
    path = listed(tmp_path, entry)
    assert PathList(path).fits("/data/a/1.wav", "a/1.wav", "mine") is exact
    assert PathList(path, loose=True).fits("/data/a/1.wav", "a/1.wav", "mine") is loose


def test_entries_that_fit_nothing_or_several_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = PathFilter(exclude=listed(tmp_path, "a/1.wav", "typo.wav"))
    assert not chosen.keeps([("/x/a/1.wav", "a/1.wav")], "x")
    assert not chosen.keeps([("/y/a/1.wav", "a/1.wav")], "y")
    assert chosen.keeps([("/y/b.wav", "b.wav")], "y")
    with caplog.at_level(logging.WARNING):
        chosen.report()
    assert "1 entries match no file, such as 'typo.wav'" in caplog.text
    assert "1 entries match several files, such as 'a/1.wav'" in caplog.text


def test_inclusion_needs_one_name_and_exclusion_wins(tmp_path: Path) -> None:
    include = listed(tmp_path, "a.wav", "b.wav")
    (tmp_path / "out.txt").write_text("b.wav")
    chosen = PathFilter(exclude=tmp_path / "out.txt", include=include)
    names = {name: [(f"/lat/{name}.npy", f"{name}.npy"), (f"/data/{name}.wav", f"{name}.wav")] for name in "abc"}
    assert {name: chosen.keeps(entry) for name, entry in names.items()} == {"a": True, "b": False, "c": False}
