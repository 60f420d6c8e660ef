"""Command lines of the documents: split as a shell would, and held against the real argument parsers."""

import argparse
import contextlib
import io
import re
import shlex
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.main import ALIASES, COMMANDS, find_command, load_command
from stable_audio_tools.core.errors import UserError

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("torchrun", "srun")
LEFT_OUT = {"...", "…"}
# Commands of others that the documents may name; what they are told is theirs to check.
FOREIGN = {
    *("pip", "git", "cd", "mkdir", "cp", "ls", "cat", "export", "source", "hf", "docker", "apptainer", "singularity"),
    *("bash", "sbatch", "scancel", "squeue", "make", "apt-get", "brew", "nvidia-smi", "tensorboard", "uv", "wandb"),
    *("ssh", "rsync", "nvcc", "conda", "mkdocs", "chromium", "unzip", "wget", "ffmpeg", "aws", "echo", "pytest"),
    *("python3.11", ".venv\\Scripts\\activate", "curl", "huggingface-cli"),
}
_ASSIGNMENT = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*=")
_SUFFIXES = {
    *(".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".parquet", ".txt", ".ini", ".py", ".sh", ".def", ".sbatch"),
    *(".safetensors", ".ckpt", ".pt", ".npy", ".npz", ".wav", ".flac", ".mp3", ".ogg", ".html", ".png"),
}
_OUTPUT = {
    "feature_path",
    "output_dir",
    "output_path",
    "out",
    "output",
    "save_dir",
    "tmp_dir",
    "quarantine",
    "folder",
    "out_dir",
}


@dataclass(frozen=True)
class Command:
    """One line: what a shell would run."""

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        return shlex.join(self.words)


def commands_in(text: str) -> list[Command]:
    """The commands of a bash block, one per line."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        environment: dict[str, str] = {}
        while words and _ASSIGNMENT.match(words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if words:
            found.append(Command(tuple(words), environment))
    return found


def ours(words: tuple[str, ...]) -> tuple[Any, list[str]] | None:
    """The module under `stable_audio_tools/cli` (or the script) that a command runs, and its arguments."""
    name, rest = words[0], list(words[1:])
    if name in LAUNCHERS:
        start = next((i for i, word in enumerate(rest) if word == "python" or word.endswith(".py")), None)
        if start is None:
            return None
        return ours(("python", *rest[start:]) if rest[start] != "python" else tuple(rest[start:]))
    if name == "stable-audio-tools":
        if rest[:1] in (["--help"], ["--version"]):
            return None
        command, words = find_command(rest)
        if not command and not words:
            return None
        assert command in COMMANDS, f"no command {' '.join(rest[:2])!r}; there are {', '.join(COMMANDS)}"
        return load_command(command), words
    if name == "python" and rest and rest[0].endswith(".py"):
        return of_script(rest[0], rest[1:])
    if name == "python" and rest[:1] == ["-m"] and rest[1] in ("stable_audio_tools", "stable_audio_tools.cli.main"):
        return ours(("stable-audio-tools", *rest[2:]))
    return None


def of_script(script: str, words: list[str]) -> tuple[Any, list[str]]:
    """The command that a script of the repository stands for, or the script where it is one of its own."""
    path = ROOT / script
    assert path.is_file(), f"no script {script}"
    if "run_script(__file__)" in path.read_text(encoding="utf-8"):
        command, rest = find_command([*ALIASES[path.name].split(), *words])
        assert command in COMMANDS, f"{script}: no command {' '.join(words[:1])!r}"
        return load_command(command), rest
    return module_of_script(script), words


@cache
def module_of_script(script: str) -> Any:
    """A script of the repository that is no command of the package."""
    path = ROOT / script
    assert path.is_file(), f"no script {script}"
    sys.path.insert(0, str(path.parent))
    try:
        module = import_module(path.stem)
    finally:
        sys.path.remove(str(path.parent))
    assert hasattr(module, "parser"), f"{script}: has no parser() and runs no command of stable_audio_tools.cli"
    return module


def parse(module: Any, arguments: list[str]) -> argparse.Namespace | None:
    """What the command's own parser makes of the arguments; None where they ask for help. A mistake is an assertion."""
    if {"--help", "-h", "--version"} & set(arguments):
        return None
    told = io.StringIO()
    try:
        parser: argparse.ArgumentParser = module.parser()
        if LEFT_OUT & set(arguments):  # the flags of the command before
            arguments = [word for word in arguments if word not in LEFT_OUT]
            for action in parser._actions:
                action.required = False
        with contextlib.redirect_stderr(told):
            return parser.parse_args(arguments)
    except (SystemExit, UserError) as error:
        said = told.getvalue().strip().splitlines()[-1:] or [str(error)]
        raise AssertionError(f"{shlex.join(arguments)}: {said[0]}") from None


def is_placeholder(word: str) -> bool:
    """`MODEL.json`, `runs/x/TIME/checkpoints/LAST.ckpt`, `/path/to/clap.ckpt`, `...`"""
    return bool(
        word.startswith(("/path/to/", "http://", "https://", "s3://", "~", "$"))
        or "..." in word
        or "…" in word
        or any(re.fullmatch(r"[A-Z][A-Z0-9_]+", Path(part).stem) for part in word.split("/"))
    )


def files_named(words: list[str]) -> list[str]:
    """Words that name a file or folder of this repository or of the page's own making."""
    folders = ("example/", "scripts/", "container/", "docs/", "stable_audio_tools/")
    return [
        word
        for word in (word.rpartition("=")[2] if word.startswith("--") else word for word in words)
        if not is_placeholder(word)
        and " " not in word
        and (Path(word).suffix in _SUFFIXES or (word.startswith(folders) and "*" not in word))
    ]


def outputs_of(arguments: argparse.Namespace) -> list[str]:
    """Paths that a command writes to, as far as its flags say."""
    values = vars(arguments)
    found = [str(values[name]) for name in _OUTPUT if values.get(name)]
    if "save_dir" in values and values.get("name"):
        found.append(f"{values['save_dir']}/{values['name']}")
    elif values.get("name"):
        found.append(str(values["name"]))
    return found


def check(command: Command, made: list[str], here: tuple[Path, ...]) -> list[str]:
    """Parse one command and look for its files -> what it writes. `made`: what earlier commands wrote."""
    found = ours(command.words)
    if found is None:
        assert command.words[0] in FOREIGN | {"stable-audio-tools", *LAUNCHERS} or command.words[0] == "python", (
            f"{command.shown}: a command that the documents test does not know"
        )
        check_foreign(command)
        return list(command.words[1:]) if command.words[0] in ("mkdir", "cp") else []
    module, words = found
    arguments = parse(module, words)
    written = [] if arguments is None else outputs_of(arguments)
    for name in files_named(words):
        known = any(name == path or name.startswith((f"{path}/", f"{path}.")) for path in [*made, *written])
        exists = any(list(folder.glob(name)) if "*" in name else (folder / name).exists() for folder in here)
        assert known or exists, f"{command.shown}: {name} is neither in the repository nor made by an earlier block"
    return written


def check_foreign(command: Command) -> None:
    """What can be known without running it: targets of make, extras of pip, scripts of bash and sbatch."""
    name, rest = command.words[0], command.words[1:]
    if name == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        wanted = {word for word in rest if not _ASSIGNMENT.match(word)}
        assert wanted <= targets, f"{command.shown}: the Makefile has {', '.join(sorted(targets))}"
    if name in ("pip", "uv"):
        text = (ROOT / "pyproject.toml").read_text()
        section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
        extras = set(re.findall(r"^([a-z0-9-]+) = \[", section, re.MULTILINE))
        for word in rest:
            asked = re.fullmatch(r"(?:\.|stable-audio-tools)\[(.*)\]", word)
            assert not asked or set(asked[1].split(",")) <= extras, f"{command.shown}: extras are {sorted(extras)}"
            assert word != "constraints.txt" or (ROOT / word).exists()
    if name in ("bash", "sbatch", "docker", "apptainer", "singularity"):
        for word in rest:
            if Path(word).suffix in (".sh", ".sbatch", ".def") or word.startswith("container/"):
                assert is_placeholder(word) or (ROOT / word).exists(), f"{command.shown}: no file {word}"
    for start, word in enumerate(rest):  # `docker run IMAGE python train.py ...`, `bash launch.sh train.py ...`
        if word == "python" or (word.endswith(".py") and (ROOT / word).exists()):
            tail = rest[start:] if word == "python" else ("python", *rest[start:])
            inner = ours(tuple(tail))
            if inner is not None:
                parse(*inner)
            break


@cache
def all_flags() -> frozenset[str]:
    """Every flag of every command of this package and of its scripts."""
    parsers = [load_command(name).parser() for name in COMMANDS]
    for path in (*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")):
        if "argparse" in path.read_text():
            parsers.append(module_of_script(path.relative_to(ROOT).as_posix()).parser())
    return frozenset(flag for parser in parsers for flag in parser._option_string_actions)
