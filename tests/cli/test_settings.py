"""Flags come from a dataclass, defaults from an ini file, and a mistake in either is one sentence."""

import dataclasses
from pathlib import Path

import pytest

from stable_audio_tools.cli.settings import read_defaults
from stable_audio_tools.cli.train import main
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.training.settings import TrainSettings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parsed(*words: str) -> TrainSettings:
    return main.parse(words)


def test_no_flags_give_the_defaults() -> None:
    assert parsed() == TrainSettings()


def test_the_shipped_file_holds_the_defaults() -> None:
    path = Path(__file__).parents[2] / "defaults.ini"
    values = read_defaults(path, TrainSettings)
    assert values == dataclasses.asdict(TrainSettings())


def test_flags_come_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "my.ini").write_text("[DEFAULTS]\nbatch_size = 7\nseed = 3\nrecover = true\n")
    settings = parsed("--config-file", "my.ini", "--seed", "5")
    assert (settings.batch_size, settings.seed, settings.recover) == (7, 5, True)


def test_defaults_ini_of_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "defaults.ini").write_text('[DEFAULTS]\nname = "mine"\n')
    assert parsed().name == "mine"


def test_the_files_of_older_projects_load(tmp_path: Path) -> None:
    """Quoted strings, comments, empty strings, lower-case booleans, floats."""
    text = "[DEFAULTS]\n#name of the run\nname = stable_audio_tools\nproject = None\nrecover = false\nckpt_path = ''\n"
    (tmp_path / "old.ini").write_text(text + 'strategy = "auto"\nprecision = "16-mixed"\ngradient_clip_val = 0.0\n')
    settings = parsed("--config-file", "old.ini")
    assert (settings.ckpt_path, settings.precision, settings.recover) == ("", "16-mixed", False)
    assert settings.project == ""


def test_fractions_and_counts() -> None:
    assert parsed("--limit-train-batches", "3").limit_train_batches == 3
    assert parsed("--limit-train-batches", "0.5").limit_train_batches == 0.5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[DEFAULTS]\nbatch_sise = 4\n", "batch_sise: unknown setting; did you mean 'batch_size'"),
        ("[DEFAULTS]\nbatch_size = four\n", "batch_size: expected a whole number, got 'four'"),
        ("[DEFAULTS]\nrecover = maybe\n", "recover: expected true or false, got 'maybe'"),
        ("batch_size = 4\n", "not a readable ini file"),
        ("[OTHER]\nbatch_size = 4\n", r"section \[DEFAULTS\] is missing"),
    ],
)
def test_mistakes_in_the_file(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "bad.ini").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        parsed("--config-file", "bad.ini")


def test_a_missing_file_ends_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config-file", "absent.ini"]) == 2
    assert capsys.readouterr().err == "error: absent.ini: no such file\n"


def test_a_wrong_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch-sise", "4"]) == 2
    assert capsys.readouterr().err == "error: --batch-sise: unknown flag; did you mean '--batch-size'?\n"
