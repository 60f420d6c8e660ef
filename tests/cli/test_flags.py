"""Flags of every command: derived from its record, with dashes or underscores, and one sentence for a mistake."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from stable_audio_tools.cli.command import Command
from stable_audio_tools.cli.main import ALIASES, COMMANDS, find_command, load_command, main
from stable_audio_tools.cli.settings import flags_from
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.core.settings import Settings, flag_of, option, option_of

ROOT = Path(__file__).parents[2]
RECORDS = [name for name in COMMANDS if isinstance(load_command(name), Command)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orchard(Settings):
    """A record with a field of every kind."""

    place: Path = option(help="a folder", positional=True)
    kind: Literal["apple", "pear"] = option("apple", "what grows")
    trees: int = option(3, "how many", group="amount", ge=1)
    share: float | None = option(None, "what is picked", group="amount", ge=0, le=1, flags=("--part",))
    years: tuple[int, ...] = option((1, 2), "harvests", ge=0)
    size: tuple[int, int] = option((4, 5), "rows and columns", metavar=("ROWS", "COLUMNS"))
    grafts: tuple[tuple[str, str], ...] = option((), "pairs", metavar=("FROM", "TO"))
    pests: tuple[str, ...] = option((), "one each time", repeat=True)
    ripe: bool = option(False, "a switch")
    fenced: bool = option(True, "a switch that is on")
    watered: bool | None = option(None, "a switch that may be left open")
    bits: Literal[16, 24] = option(16, "numbers to choose from")
    words: tuple[str, ...] = option((), "words behind --", positional=True, after_dashes=True)

    def problems(self) -> list[str]:
        return ["--ripe: apples only"] if self.ripe and self.kind != "apple" else []


received: list[Orchard] = []
orchard: Command[Orchard] = Command(Orchard, received.append, "Grow fruit.")


def test_every_kind_of_field_is_a_flag() -> None:
    assert orchard.parse(["here"]) == Orchard(place=Path("here"))
    words = (
        "here --kind pear --trees 7 --part 0.5 --years 3 4 5 --size 1 2 --grafts a b --grafts c d --pests x --pests y"
    )
    settings = orchard.parse([*words.split(), "--no-fenced", "--no-watered", "--bits", "24", "--", "--more", "1"])
    assert settings == Orchard(
        place=Path("here"),
        kind="pear",
        trees=7,
        share=0.5,
        years=(3, 4, 5),
        size=(1, 2),
        grafts=(("a", "b"), ("c", "d")),
        pests=("x", "y"),
        fenced=False,
        watered=False,
        bits=24,
        words=("--more", "1"),
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"kind": "pear", "share": 0.25, "years": (9,)},
        {"size": (0, 1), "grafts": (("a", "b"), ("c", "d")), "pests": ("x", "y")},
        {"ripe": True, "fenced": False, "watered": True, "bits": 24},
        {"watered": False},
    ],
)
def test_a_record_as_words_is_the_same_record(change: dict[str, Any]) -> None:
    settings = Orchard(place=Path("here"), **change)
    assert orchard.parse(flags_from(settings)) == settings


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tree", "3"], "--tree: unknown flag; did you mean '--trees'?"),
        (["--zzzzzz"], "--zzzzzz: unknown flag; orchard --help lists the flags"),
        (["--trees", "many"], "--trees: expected a whole number, got 'many'"),
        (["--trees", "0"], "--trees: expected at least 1, got 0"),
        (["--part", "much"], "--share: expected a number, got 'much'"),
        (["--share", "nan"], "--share: expected a finite number, got 'nan'"),
        (["--share", "2"], "--share: expected 0 to 1, got 2"),
        (["--years", "1", "-2"], "--years: expected at least 0, got -2"),
        (["--kind", "plum"], "--kind: expected one of apple, pear, got 'plum'"),
        (["--bits", "17"], "--bits: expected one of 16, 24, got '17'"),
        (["--trees"], "--trees: expected a value"),
        (["--size", "1"], "--size: expected 2 values"),
        (["--years"], "--years: expected at least one value"),
        (["--kind", "pear", "--ripe"], "--ripe: apples only"),
    ],
)
def test_a_mistake_is_one_sentence_with_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchard(["here", *words], "orchard") == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_what_is_missing_or_too_much_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert orchard([], "orchard") == 2
    assert "PLACE: missing; orchard --help describes it" in capsys.readouterr().err
    with pytest.raises(UserError, match="--reference, --generated: missing"):
        load_command("evaluate fad").parse([])


def test_all_mistakes_of_a_record_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        Orchard(place=Path(), trees=0, share=3.0, kind="pear", ripe=True)
    assert raised.value.problems == [
        "--trees: expected at least 1, got 0",
        "--share: expected 0 to 1, got 3",
        "--ripe: apples only",
    ]


@pytest.mark.parametrize("name", RECORDS)
def test_every_field_has_a_flag_with_help_that_takes_underscores(name: str) -> None:
    command = load_command(name)
    actions = {action.dest: action for action in command.parser()._actions}
    for field in dataclasses.fields(command.settings):
        about = option_of(field)
        if about.after_dashes:
            continue
        action = actions[field.name]
        assert about.help and action.help == about.help
        if not about.positional:
            flag = flag_of(field.name)
            assert {flag, *about.flags} <= set(action.option_strings)
            assert command.parser()._with_dashes(f"--{field.name}=1") == f"{flag}=1"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_flag_is_answered_with_the_nearest(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = load_command(name).parser()
    flag = max((word for word in parser._option_string_actions if word.startswith("--")), key=len)
    assert main([*name.split(), f"{flag}x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {flag}x: unknown flag; did you mean '--") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train --devices x", "--devices: expected auto, a number, or numbers such as 0,1; got 'x'"),
        ("train --devices 0", "--devices: expected at least 1; the first GPU alone is '0,'"),
        ("train --seed -1", "--seed: expected 0 to 4294967295, got -1"),
        ("train --batch-size 0", "--batch-size: expected at least 1, got 0"),
        ("train --num_workers -2", "--num-workers: expected at least -1, got -2"),
        ("train --limit-val-batches abc", "--limit-val-batches: expected a number, got 'abc'"),
        ("lora train --rank -1", "--rank: expected at least 0, got -1"),
        (
            "data encode --dataset-config d --output-path o --num-workers -1",
            "--num-workers: expected at least 0, got -1",
        ),
        ("data check d.json --num-workers 0", "--num-workers: expected at least 1, got 0"),
        ("data example --seed -1", "--seed: expected at least 0, got -1"),
        ("dedup --dataset-dir d --sweep 0.5 2", "--sweep: expected more than 0 and at most 1, got 2"),
    ],
)
def test_numbers_that_cannot_be_right(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert f"error: {sentence}\n" in capsys.readouterr().err


# ------------------------------------------------------------------ names


def test_every_published_script_is_a_command() -> None:
    scripts = (*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py"))
    thin = {path.name for path in scripts if "run_script(__file__)" in path.read_text()}
    assert thin == {name for name in ALIASES if name.endswith(".py")}
    for name in ALIASES:
        command, rest = find_command([name, "--help"])
        assert rest == ["--help"] and any(entry.startswith(command) for entry in COMMANDS)


def test_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "evaluate fad" in printed and "attribute" not in printed
    assert main(["evaluate"]) == 2
    assert main(["evaluate", "fadd"]) == 2
    assert "no command named 'evaluate fadd'; did you mean 'fad'?" in capsys.readouterr().err
    assert main(["dtrak-validate", "ldss"]) == 2
    assert "no command named 'attribute validate ldss'; did you mean 'lds'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["-m", "stable_audio_tools", "evaluate", "compare"], "usage: stable-audio-tools evaluate compare "),
        (["-m", "stable_audio_tools", "compare-scores"], "usage: stable-audio-tools evaluate compare "),
        ([str(ROOT / "scripts" / "dac_hist_dedup.py")], "usage: dac_hist_dedup.py "),
        ([str(ROOT / "scripts" / "dtrak_validate.py"), "lds"], "usage: stable-audio-tools attribute validate lds "),
    ],
)
def test_modules_and_scripts_show_the_name_they_were_called_by(words: list[str], shown: str) -> None:
    done = subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(shown), done.stderr
