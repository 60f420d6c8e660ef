"""Measures the structure of the package; `python tests/architecture/measures.py` prints the table."""

import argparse
import ast
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[2] / "stable_audio_tools"
OBJECTIVE_NAMES = {"v", "rectified_flow", "rf_denoiser", "ddpm"}
OBJECTIVE_CLASSES = {"Objective", "VObjective", "FlowObjective", "DDPMObjective", "DDPM"}
OBJECTIVE_MODULES = {"models/diffusion/objectives.py", "models/diffusion/ddpm.py"}
SMALL = 6  # lines of a function, its signature included


class Place(NamedTuple):
    """A line of the package."""

    file: str
    line: int
    text: str


@cache
def files() -> dict[str, str]:
    """The source text of every module, by its path inside the package."""
    return {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(text) for name, text in files().items()}


def sigma_min_declarations() -> list[Place]:
    """Fields, parameters, flags and controls named sigma_min."""
    places = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            is_control = (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and bool(node.args)
                and getattr(node.args[0], "value", None) == "sigma_min"
            )
            if (
                is_control
                or (isinstance(node, ast.arg) and node.arg == "sigma_min")
                or (isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == "sigma_min")
                or (isinstance(node, ast.Constant) and node.value == "--sigma-min")
            ):
                places.append(Place(name, getattr(node, "lineno", 0), ast.unparse(node)))
    return places


def circles() -> list[list[str]]:
    """Groups of files that import each other, directly or through others; type checking imports count."""
    graph = {name: _imported_files(name, tree) for name, tree in trees().items()}
    return [sorted(group) for group in _strongly_connected(graph) if len(group) > 1]


def objective_branches() -> list[Place]:
    """Comparisons with an objective's name, and type tests of objectives, outside the module of objectives."""
    places = []
    for name, tree in trees().items():
        if name in OBJECTIVE_MODULES:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                operands = (node.left, *node.comparators)
                named = any(
                    isinstance(part, ast.Constant) and part.value in OBJECTIVE_NAMES
                    for operand in operands
                    for part in (operand, *getattr(operand, "elts", ()))
                )
                if named:
                    places.append(Place(name, node.lineno, ast.unparse(node)))
            elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "isinstance":
                classes = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                if classes & OBJECTIVE_CLASSES:
                    places.append(Place(name, node.lineno, ast.unparse(node)))
            elif isinstance(node, ast.Dict) and _objective_keys(node) > 1:
                places.append(Place(name, node.lineno, "a table by the names of objectives"))
    return places


def add_argument_calls() -> list[Place]:
    return [
        Place(name, node.lineno, ast.unparse(node))
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "add_argument"
    ]


def any_annotations() -> list[Place]:
    """Uses of `typing.Any`, imports left out."""
    return [
        Place(name, node.lineno, "Any")
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "Any"
    ]


def small_helpers() -> list[Place]:
    """Private functions at the top of a file, of at most six lines, that their file names once more."""
    return [
        Place(name, node.lineno, node.name)
        for name, tree in trees().items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("_")
        and not node.name.startswith("__")
        and (node.end_lineno or node.lineno) - node.lineno < SMALL
        and len(re.findall(rf"\b{node.name}\b", files()[name])) == 2
    ]


def repeated_class_names() -> dict[str, list[str]]:
    """Names of classes that several places define, with the files."""
    defined: dict[str, list[str]] = {}
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name, []).append(name)
    return {name: places for name, places in sorted(defined.items()) if len(places) > 1}


def import_exceptions() -> int:
    """Entries of EXCEPTIONS in the test of imports; 0 if it has none."""
    tree = ast.parse((Path(__file__).parent / "test_imports.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "EXCEPTIONS":
            return len(ast.literal_eval(node.value))
    return 0


MEASURES: dict[str, Callable[[], int]] = {
    "declarations of sigma_min": lambda: len(sigma_min_declarations()),
    "circles of files": lambda: len(circles()),
    "exceptions in the import test": import_exceptions,
    "branches on an objective outside its module": lambda: len(objective_branches()),
    "calls of add_argument": lambda: len(add_argument_calls()),
    "uses of Any": lambda: len(any_annotations()),
    "small private functions with one use": lambda: len(small_helpers()),
    "class names defined twice": lambda: len(repeated_class_names()),
    "modules": lambda: len(files()),
    "lines": lambda: sum(text.count("\n") for text in files().values()),
}

# The most that the test allows. Lower a ceiling together with the change that makes it possible.
CEILINGS = {
    "declarations of sigma_min": 5,
    "circles of files": 0,
    "exceptions in the import test": 0,
    "branches on an objective outside its module": 0,
    "calls of add_argument": 3,
    "uses of Any": 655,
    "small private functions with one use": 130,
    "class names defined twice": 0,
    "modules": 450,
    "lines": 72_000,
}


def _objective_keys(table: ast.Dict) -> int:
    return sum(isinstance(key, ast.Constant) and key.value in OBJECTIVE_NAMES for key in table.keys)


def _imported_files(name: str, tree: ast.Module) -> set[str]:
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {file for alias in node.names if (file := _file_of(alias.name))}
        elif isinstance(node, ast.ImportFrom):
            package = ""
            if node.level:
                package = ".".join(("stable_audio_tools", *name.split("/")[: -node.level]))
            module = ".".join(filter(None, (package, node.module)))
            for alias in node.names:
                file = _file_of(f"{module}.{alias.name}") or _file_of(module)
                imported |= {file} if file else set()
    return imported - {name}


def _file_of(module: str) -> str | None:
    top, *parts = module.split(".")
    if top == "stable_audio_tools":
        for file in ("/".join(parts) + ".py", "/".join((*parts, "__init__.py"))):
            if file in files():
                return file
    return None


def _strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """Tarjan's algorithm; the depth of recursion is at most the number of files."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            group = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            groups.append(group)

    for name in graph:
        if name not in order:
            visit(name)
    return groups


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("details", nargs="?", choices=DETAILS, help="also print the places behind a measure")
    return made


def main() -> None:
    """Print the table, and on request the places behind a measure."""
    given = parser().parse_args()
    for name, measure in MEASURES.items():
        print(f"{name:45} {measure():>6,}   ceiling {CEILINGS[name]:>6,}")
    if given.details:
        print(*DETAILS[given.details](), sep="\n")


DETAILS: dict[str, Callable[[], list[object]]] = {
    "sigma_min": lambda: list(sigma_min_declarations()),
    "circles": lambda: list(circles()),
    "objective": lambda: list(objective_branches()),
    "add_argument": lambda: list(add_argument_calls()),
    "Any": lambda: [f"{count:5} {file}" for file, count in Counter(p.file for p in any_annotations()).most_common()],
    "small": lambda: list(small_helpers()),
    "classes": lambda: [f"{name}: {', '.join(places)}" for name, places in repeated_class_names().items()],
}


if __name__ == "__main__":
    main()
