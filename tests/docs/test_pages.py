"""Every block of README and docs is checked by its language, and carried out where it is marked."""

import ast
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import docs_commands as commands
from support import docs_scratch as scratch
from support.docs_pages import PAGES, ROOT, Block, blocks_of, marks_without_block, name_of, prose_of

from stable_audio_tools.core.errors import ConfigError

EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=name_of)
GUIDES = ("stable_audio_2_0", "stable_audio_open", "stable_audio_open_small")  # carried out by tests/guides
# Flags of other programs that prose mentions.
FOREIGN_FLAGS = {"--help", "--nproc_per_node", "--build-arg", "--ntasks-per-node", "--gpus-per-node"}


@EVERY_PAGE
def test_command_lines_are_understood(page: Path) -> None:
    made: list[str] = []
    for block in blocks_of(page):
        if block.mark == "file":
            made.append(block.value)
        if block.mark == "needs":
            made += [name for word in block.value.split() for name in (word, f"{Path(word).stem}.json")]
        if block.mark == "run" and block.language == "python":
            made += saved_by(block.text)
        if block.language in ("bash", "sh", "shell", "console"):
            assert block.language == "bash", f"{block.place}: mark commands as bash"
            for command in commands.commands_in(block.text):
                try:
                    made += commands.check(command, made, (ROOT,))
                except AssertionError as error:
                    raise AssertionError(f"{block.place}: {error}") from None


def saved_by(text: str) -> list[str]:
    """Names of files that python passes to something called `save`."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    saves = [call for call in calls if getattr(call.func, "id", getattr(call.func, "attr", "")) == "save"]
    return [a.value for call in saves for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]


@EVERY_PAGE
def test_inline_commands_and_flags_exist(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose_of(page)):
        if re.match(r"(python [\w/]+\.py|stable-audio-tools [a-z-]+)\b", code) and "..." not in code:
            for command in commands.commands_in(code):
                found = commands.ours(command.words)
                assert found is None or len(found[1]) == 0 or commands.parse(*found) or "--help" in command.words
        elif re.match(r"--[a-z]", code):
            flag = re.split(r"[ =]", code)[0]
            known = commands.all_flags() | FOREIGN_FLAGS
            assert flag in known, f"{name_of(page)}: no command has the flag {flag}"


@EVERY_PAGE
def test_blocks_are_sound(page: Path) -> None:
    assert not marks_without_block(page), f"{name_of(page)}: marks that no block follows, at these lines"
    for block in blocks_of(page):
        try:
            check_block(block)
        except (ValueError, SyntaxError, AssertionError, yaml.YAMLError, ConfigError) as error:
            raise AssertionError(f"{block.place}: {error}") from None


def check_block(block: Block) -> None:
    if block.language == "":
        wrong = [
            line for line in block.text.splitlines() if re.match(r"(python|pip|stable-audio-tools|torchrun) ", line)
        ]
        assert not wrong, f"commands in a block without a language; mark it as bash: {wrong}"
    if block.language == "python":
        check_python(block.text)
    if block.language == "json":
        for document in json_documents(block.text):
            check_config(document)
    if block.language in ("yaml", "yml"):
        yaml.safe_load(block.text)


def check_python(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stable_audio_tools"):
            module = import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"


def json_documents(text: str) -> list[Any]:
    """One document, or one per line."""
    try:
        return [json.loads(text)]
    except ValueError:
        if not all(line.startswith("{") and line.endswith("}") for line in text.splitlines()):
            raise
        return [json.loads(line) for line in text.splitlines()]


def check_config(document: Any) -> None:
    """A whole config must be one that the engine takes."""
    from stable_audio_tools.data.dataset import check_dataset_config
    from stable_audio_tools.models.factory import check_model_config
    from stable_audio_tools.training.factory import check_training_config

    if not isinstance(document, dict):
        return
    if "model_type" in document and "model" in document:
        check_model_config(document)
        if "training" in document:
            check_training_config(document)
    if "dataset_type" in document:
        check_dataset_config(document)


MARKED = [page for page in PAGES if any(b.mark for b in blocks_of(page)) and page.stem not in GUIDES]


@pytest.mark.parametrize("page", MARKED, ids=name_of)
def test_marked_blocks_are_carried_out(page: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__page__"}
    with scratch.working_in(scratch.make_clone(tmp_path / "clone")):
        for block in blocks_of(page):
            try:
                scratch.execute(block, names)
            except Exception as error:
                raise AssertionError(f"{block.place}: {type(error).__name__}: {error}") from error
