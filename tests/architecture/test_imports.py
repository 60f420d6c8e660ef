"""The shape of the package: one-way imports, light imports without extras, described functions."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import stable_audio_tools

ROOT = Path(stable_audio_tools.__file__).parent
LAYERS = {  # a folder may import from itself and from these
    "core": set(),
    "models": {"core"},
    "data": {"core"},
    "latents": {"core", "models", "data", "inference"},
    "training": {"core", "models", "data", "latents", "inference", "evaluation", "dedup"},
    "inference": {"core", "models", "data"},
    "evaluation": {"core", "models", "data", "inference"},
    "dedup": {"core", "models", "data", "latents", "inference"},
    "attribution": {"core", "models", "data", "latents", "inference", "evaluation"},
    "mel": {"core", "models", "data", "latents", "inference"},
    "interface": {"core", "models", "data", "inference", "evaluation", "mel"},
    "server": {"core", "models", "data", "inference"},
    "stable_audio_3": {"core", "models", "data", "inference"},
    "utils": {"core", "models", "data", "inference"},
    "cli": None,
}
NOT_IN_MODELS = {"pytorch_lightning", "wandb", "gradio", "argparse"}


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = (
                ".".join(("stable_audio_tools", *path.relative_to(ROOT).parts[: -node.level])) if node.level else ""
            )
            names.add(".".join(filter(None, (package, node.module))))
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    folder = name.split("/")[0]
    if "/" not in name or folder == "configs" or LAYERS[folder] is None:
        return
    for module in imported(path):
        if module.startswith("stable_audio_tools."):
            target = module.split(".")[1]
            if target not in ("version", folder):
                assert target in LAYERS[folder], f"{name} imports {module}"
        if folder == "models":
            assert module.split(".")[0] not in NOT_IN_MODELS, f"{name} imports {module}"
        if folder not in ("cli", "interface"):
            assert module != "argparse", f"{name} parses arguments"


def test_importing_the_package_is_light() -> None:
    code = "import sys, stable_audio_tools; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_module_imports_without_optional_packages() -> None:
    """Optional packages are hidden from a fresh interpreter, which then imports every module."""
    modules = [m.name for m in pkgutil.walk_packages([str(ROOT)], "stable_audio_tools.") if ".configs." not in m.name]
    hidden = (
        "laion_clap",
        "dac",
        "audiotools",
        "gradio",
        "wandb",
        "prefigure",
        "boto3",
        "pyarrow",
        "encodec",
        "alias_free_torch",
        "pywt",
        "flash_attn",
        "bitsandbytes",
        "torchcodec",
        "pandas",
        "diffusers",
        "comet_ml",
        "deepspeed",
        "webdataset",
        "faiss",
        "fastapi",
        "uvicorn",
    )
    code = "\n".join(
        [
            "import sys",
            "from importlib import import_module",
            f"sys.modules.update(dict.fromkeys({hidden}))",
            f"for name in {modules}: import_module(name)",
        ]
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "", "importing printed something"


def test_public_functions_are_described() -> None:
    """Functions of commands are described by the command that takes them."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            is_public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if is_public and not (path.parent.name == "cli" and node.name.startswith("run")):
                assert ast.get_docstring(node), f"{path}:{node.lineno}: {node.name} has no docstring"
