"""Optional packages, and methods whose functions are imported at the first access."""

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import stable_audio_tools
from stable_audio_tools.core.errors import MissingPackage
from stable_audio_tools.core.packages import LateMethod, available, require

ROOT = Path(stable_audio_tools.__file__).parent


def test_a_present_package_is_returned() -> None:
    assert require("json") is json
    assert available("json")


def test_an_absent_package_names_its_extra() -> None:
    assert not available("no_such_package")
    with pytest.raises(MissingPackage, match=r"no-such-package is not installed.*pip install -e '\.\[clap\]'"):
        require("no_such_package", extra="clap")


def test_a_broken_package_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_broken.py").write_text("import another_missing_one\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(MissingPackage, match=r"installed but cannot be imported.*another_missing_one"):
        require("half_broken")


def test_the_object_is_the_first_argument() -> None:
    class Text(str):
        trimmed = LateMethod("textwrap:dedent")

    assert Text("  a\n  b").trimmed() == "a\nb"
    assert Text.trimmed is import_module("textwrap").dedent


def test_generation_is_imported_when_it_is_asked_for() -> None:
    code = """
import sys
from stable_audio_tools.models.diffusion import ConditionedDiffusionModelWrapper as Wrapper
assert not any(name.startswith("stable_audio_tools.inference") for name in sys.modules)
assert Wrapper.generate is sys.modules["stable_audio_tools.inference.generation.diffusion"].generate_diffusion_cond
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_path_in_the_package_names_a_function() -> None:
    paths = [
        node.args[0].value
        for file in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", None) == "LateMethod"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert len(paths) >= 2
    for path in paths:
        module, function = path.split(":")
        assert callable(getattr(import_module(module), function)), path
