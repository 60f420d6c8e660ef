"""JSON in and out: mistakes are shown with their place, and writing is atomic."""

from pathlib import Path

import pytest

from stable_audio_tools.core.config import load, parse, save
from stable_audio_tools.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{\n  "a": 1, // why\n  "b": 2}', "config:2:11: JSON has no comments"),
        ('{"a": 1, # why\n "b": 2}', "config:1:10: JSON has no comments"),
        ('{\n  "a": [1, 2,]\n}', "config:2:1.: trailing comma"),
        ('{\n  "a": 1,\n}', "config:.:.*: trailing comma"),
        ("{'a': 1}", "config:1:2: JSON strings use double quotes"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ('{"a" 1}', "config:1:6: not valid JSON: expecting ':' delimiter"),
        ("[1]", "expected a JSON object"),
        ("", "config:1:1: not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_mistakes_are_shown_with_their_place(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json: no such file"):
        load(tmp_path / "absent.json")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load(tmp_path / "a.json")


def test_round_trip(tmp_path: Path) -> None:
    save({"a": [1, 2.5, None], "b": {"c": True}}, tmp_path / "deep" / "a.json")
    assert load(tmp_path / "deep" / "a.json") == {"a": [1, 2.5, None], "b": {"c": True}}
