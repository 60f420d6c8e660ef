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
