"""Every command answers --help at once, and a user's mistake ends in one sentence and status 2."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.disks import read_only_disk

from stable_audio_tools.cli.main import COMMANDS, main

__all__ = ["read_only_disk"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "stable_audio_tools.cli.main", *words], capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_flag_and_loads_no_torch(name: str) -> None:
    code = (
        "import sys; from stable_audio_tools.cli.main import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules, 'help loaded torch'"
    )
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # Half a second on an idle machine; the bound leaves room for a busy one.
    assert time.perf_counter() - start < 2
    assert result.stdout.startswith("usage: ")


def test_an_unknown_command_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chekc"]) == 2
    assert "did you mean 'check'?" in capsys.readouterr().err


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    result = run("check", str(tmp_path / "absent.json"))
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'absent.json'}: no such file\n"


def test_a_folder_that_cannot_be_written_to_is_one_sentence(
    read_only_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["make-example-dataset", str(read_only_disk / "clips")]) == 2
    assert capsys.readouterr().err.endswith("clips: the file system is read-only; choose another folder\n")


def test_records_of_several_parts_check_every_part() -> None:
    """A check that does not call the next one hides the checks of the other base classes of a command's settings."""
    package = Path(__file__).parents[2] / "stable_audio_tools"
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_check = isinstance(node, ast.FunctionDef) and node.name == "problems" and node.args.args[0].arg == "self"
            if is_check and path.parent.name != "core":
                assert "super().problems()" in ast.unparse(node), f"{path}:{node.lineno}"
