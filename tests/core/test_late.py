"""Late methods: nothing is imported before the first access, and every path in the package leads to a function."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import stable_audio_tools
from stable_audio_tools.core.late import LateMethod

ROOT = Path(stable_audio_tools.__file__).parent


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
