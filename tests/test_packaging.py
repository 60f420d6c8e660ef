"""What is installed: every module, the shipped configs, the console command."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_every_module_and_config(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "stable_audio_tools"
    wanted = {p.relative_to(ROOT).as_posix() for suffix in ("*.py", "*.json") for p in package.rglob(suffix)}
    assert wanted <= set(wheel.namelist())
    assert "stable_audio_tools/py.typed" in wheel.namelist()


def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "stable-audio-tools = stable_audio_tools.cli.main:main" in wheel.read(entry).decode()


def test_nothing_names_a_registry_or_a_machine() -> None:
    """Constraints hold names and versions only."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        assert name and version and "/" not in line and "@" not in line, line
