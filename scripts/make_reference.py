"""Write the reference tables of docs/reference from the signatures: python scripts/make_reference.py [--check]"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stable_audio_tools.cli.main import ALIASES, COMMANDS, load_command
from stable_audio_tools.core.config.kinds import KINDS
from stable_audio_tools.core.config.parts import KIND_MARK
from stable_audio_tools.core.config.registry import Component, components, schema, siblings_schema
from stable_audio_tools.core.files import write_text
from stable_audio_tools.models.factory import ModelFile
from stable_audio_tools.training.factory import SharedKeys

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTE = "<!-- written by scripts/make_reference.py from the signatures -->"
# Page -> title and kinds; a kind that no page names comes last on the page of parts.
PAGES = {
    "models": ("Model configs", ("model", "diffusion", "unconditional", "diffusion_decoder", "lm")),
    "parts": (
        "Parts of models",
        ("encoder", "decoder", "bottleneck", "pretransform", "conditioner", "discriminator", "discriminator_head"),
    ),
    "training": ("Training sections", ("training", "demo", "timestep_law")),
    "datasets": ("Dataset configs", ("dataset",)),
}
NAMES = {
    "lm": "language model",
    "timestep_law": "timestep sampler",
    "clap_audio": "CLAP audio",
    "clap_text": "CLAP text",
}
WORDS = {"integer": "whole number", "string": "text", "boolean": "true or false"}
Schema = Mapping[str, Any]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--check", action="store_true", help="write nothing; name the pages that are stale")
    return made


def main(argv: list[str] | None = None) -> int:
    check = parser().parse_args(argv).check
    stale = [name for name, text in pages().items() if _current(FOLDER / f"{name}.md") != text]
    for name in stale:
        if check:
            print(f"docs/reference/{name}.md is stale; run: python scripts/make_reference.py")
        else:
            write_text(FOLDER / f"{name}.md", pages()[name])
            print(f"wrote docs/reference/{name}.md")
    return 1 if check and stale else 0


def _current(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def pages() -> dict[str, str]:
    """Page name -> Markdown."""
    made = {}
    for name, (title, kinds) in PAGES.items():
        records: dict[str, Schema] = {}
        lines = [f"# {title}", "", NOTE, ""]
        if name == "models":
            lines += ["## Top level", "", "The keys of the file itself.", "", *_table(_fields(ModelFile, records)), ""]
        if name == "training":
            lines += ["## Keys of every model type", "", *_table(_fields(SharedKeys, records)), ""]
        for kind in (*kinds, *(_unplaced() if name == "parts" else ())):
            lines += _kind(kind, records)
        done: set[str] = set()
        while left := sorted(set(records) - done):
            lines += [] if done else ["## Objects", ""]
            for record in left:
                about = records[record]
                lines += [f"### {record}", "", *_said(about), *_table(_rows(about, records)), ""]
                done.add(record)
        made[name] = "\n".join(lines).rstrip() + "\n"
    return {**made, "flags": _flags()}


def _unplaced() -> list[str]:
    placed = {kind for _, kinds in PAGES.values() for kind in kinds}
    return [kind for kind in KINDS if kind not in placed and components(kind)]


# ------------------------------------------------------------------ components


def _kind(kind: str, records: dict[str, Schema]) -> list[str]:
    title = NAMES.get(kind, kind).replace("_", " ")
    lines = [f"## {title[0].upper()}{title[1:]}", ""]
    siblings = _fields(siblings_schema(kind), records)
    if siblings:
        lines += ["Beside `type` and `config`:", "", *_table(siblings), ""]
    for tag, component in sorted(components(kind).items()):
        lines += [f"### {title}: {tag}", "", *_component(component, records)]
    return lines


def _component(component: Component, records: dict[str, Schema]) -> list[str]:
    rows = _fields(schema(component.kind, component.tag), records)
    if component.body is not None:
        kind, tag = component.body
        where = next(page for page, (_, kinds) in PAGES.items() if kind in kinds)
        link = f"{NAMES.get(kind, kind)}-{tag}".replace(" ", "-")
        return [component.description, "", f"The keys of [{kind} {tag}]({where}.md#{link}).", ""]
    lines = [component.description, "", *(_table(rows) if rows else ["No keys."]), ""]
    if component.ignored:
        names = ", ".join(f"`{key}`" for key in sorted(component.ignored))
        lines += [f"Accepted without effect, with a warning: {names}.", ""]
    return lines


def _fields(model: type[BaseModel], records: dict[str, Schema]) -> list[list[str]]:
    return _rows(model.model_json_schema(), records)


def _rows(about: Schema, records: dict[str, Schema]) -> list[list[str]]:
    records.update(about.get("$defs", {}))
    required = set(about.get("required", ()))
    return [
        [
            f"`{key}`",
            _type(node, records),
            "required" if key in required else _default(node),
            _plain(node.get("description", "")),
        ]
        for key, node in about.get("properties", {}).items()
    ]


def _said(about: Schema) -> list[str]:
    text = about.get("description", "").split("\n\n")[0].replace("\n", " ")
    return [text, ""] if text else []


def _type(node: Schema, records: dict[str, Schema]) -> str:
    """Describe the allowed values in words; objects with keys become records."""
    if KIND_MARK in node:
        return f"a node: {node[KIND_MARK].replace('_', ' ')}"
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    options = node.get("anyOf") or node.get("oneOf") or node.get("allOf")
    if options:
        some = [option for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(_type(option, records) for option in some))
    if node.get("type") == "array":
        inner = node.get("items")
        fixed = node.get("prefixItems")
        return f"{len(fixed)} values" if fixed else f"list of {_type(inner, records)}" if inner else "list"
    if "properties" in node:
        records[node["title"]] = node
        return f"[{node['title']}](#{node['title'].lower()})"
    kind = str(node.get("type", "anything"))
    return WORDS.get(kind, kind) + _bounds(node)


def _bounds(node: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {node[key]:g}" for key, sign in signs.items() if key in node]
    return f", {' and '.join(found)}" if found else ""


def _default(node: Schema) -> str:
    if "default" not in node:
        return "empty"
    value = node["default"]
    if value is None:
        return "none"
    if isinstance(value, dict) and value:
        return "as there" if "properties" in node or "allOf" in node or "$ref" in node else f"`{json.dumps(value)}`"
    return "empty" if value in ([], {}, "") else f"`{json.dumps(value)}`"


# ------------------------------------------------------------------ flags


def _flags() -> str:
    lines = ["# Flags", "", NOTE, ""]
    lines += [
        "`stable-audio-tools COMMAND --help` prints the same. Flags of `train.py` may be set in `defaults.ini`, with",
        "underscores: `batch_size = 4`.",
        "",
    ]
    for name in COMMANDS:
        parser = load_command(name).parser()
        scripts = ", ".join(f"`{alias}`" for alias, entry in ALIASES.items() if entry == name and alias.endswith(".py"))
        lines += [f"## {name}", "", _plain(parser.description or ""), ""]
        lines += [f"Script: {scripts}.", ""] if scripts else []
        lines += _arguments(parser)
    return "\n".join(lines).rstrip() + "\n"


def _arguments(parser: argparse.ArgumentParser) -> list[str]:
    rows = [_argument(action) for action in parser._actions if "--help" not in action.option_strings]
    return [*_table(rows, ("flag", "default", "meaning")), ""] if rows else []


def _argument(action: argparse.Action) -> list[str]:
    names = ", ".join(f"`{word}`" for word in action.option_strings) or f"`{action.metavar or action.dest}`"
    default = action.default
    shown = (
        "required"
        if action.required
        else ""
        if default in (None, "", False, ()) or default == [] or default is argparse.SUPPRESS
        else f"`{' '.join(map(str, default)) if isinstance(default, (tuple, list)) else default}`"
    )
    choices = ", ".join(f"`{choice}`" for choice in action.choices or () if choice != "")
    return [names, shown, _plain((action.help or "").replace("%%", "%")) + (f" ({choices})" if choices else "")]


# ------------------------------------------------------------------ Markdown


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _table(rows: Iterable[list[str]], head: Iterable[str] = ("key", "type", "default", "meaning")) -> list[str]:
    listed = list(rows)
    if not listed:
        return ["No keys."]
    names = list(head)
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *listed)]


if __name__ == "__main__":
    sys.exit(main())
