"""Small damages to JSON trees, for tests that feed them to what reads configs."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import stable_audio_tools

TINY = sorted((Path(stable_audio_tools.__file__).parent / "configs" / "model_configs").rglob("tiny_*.json"))
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 0.5, -2.5, 1e9, "", "x", "vae", "oobleck", "2"),
    *([], [0], [2], [2, 4], ["a"], [[1]], {}, {"type": "vae"}, {"a": 1}, {"type": "dit", "config": {}}),
]
TYPOS = ("x", "_", "s", "type")


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a node."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from places(node[key])


def damaged(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a copy with one to three values replaced, dropped, renamed or added."""
    tree = copy.deepcopy(config)
    for _ in range(rng.choice([1, 1, 2, 3])):
        container, key = rng.choice(list(places(tree)))
        what = rng.choice(["replace", "replace", "replace", "drop", "rename", "add"])
        if what == "replace":
            container[key] = copy.deepcopy(rng.choice(VALUES))
        elif isinstance(container, list):
            container.insert(key, copy.deepcopy(rng.choice(VALUES)))
        elif what == "drop":
            del container[key]
        elif what == "rename":
            container[str(key) + rng.choice(TYPOS)] = container.pop(key)
        else:
            container[rng.choice(TYPOS)] = copy.deepcopy(rng.choice(VALUES))
    return tree


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return a copy that is cut, overwritten, extended, or has single bits flipped; headers are hit more often."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(min(len(data), rng.choice([16, 64, 512, len(data)])) or 1)
        what = rng.choice(["flip", "flip", "overwrite", "cut", "drop", "repeat", "append"])
        if what == "flip" and data:
            data[place] ^= 1 << rng.randrange(8)
        elif what == "overwrite":
            data[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", rng.randbytes(4)])
        elif what == "cut":
            del data[rng.randrange(len(data) + 1) :]
        elif what == "drop":
            del data[place : place + rng.randrange(1, 64)]
        elif what == "repeat":
            data[place:place] = data[place : place + rng.randrange(1, 256)]
        else:
            data += rng.randbytes(rng.randrange(1, 64))
    return bytes(data)


PIECES = (
    *('"', "'", ":", ": ", ",", ";", "\t", "\n", "\r", "{", "}", "[", "]", "- ", "&a ", "*a", "!!", "#", "---", "\\"),
    *("null", "NaN", "1e999", "9" * 400, "true", "0x1F", "2001-01-01", "\0", "\ufeff", "é", "\U0001f600", "\x1b[31m"),
    *("[" * 200, "{a: " * 200, "!!python/object:os.system x", "<<: 1", "..", "../../etc/passwd"),
)


def damaged_text(text: str, rng: random.Random) -> bytes:
    """Return a copy with pieces of syntax inserted, characters dropped, lines swapped, or bytes that are not UTF-8."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(text) + 1)
        what = rng.choice(["insert", "insert", "insert", "drop", "cut", "swap"])
        if what == "insert":
            text = text[:place] + rng.choice(PIECES) + text[place:]
        elif what == "drop":
            text = text[:place] + text[place + rng.randrange(1, 8) :]
        elif what == "cut":
            text = text[:place]
        else:
            lines = text.splitlines(keepends=True)
            rng.shuffle(lines)
            text = "".join(lines)
    data = text.encode()
    return data if rng.random() < 0.9 else damaged_bytes(data, rng)
