"""Two thousand damaged configs: each is built, or refused with a ConfigError. Nothing else may come out."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stable_audio_tools
from stable_audio_tools import create_model_from_config
from stable_audio_tools.core.errors import ConfigError

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


def damage(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    damaged = copy.deepcopy(config)
    damaged.pop("training", None)
    for _ in range(rng.choice([1, 1, 2, 3])):
        container, key = rng.choice(list(places(damaged)))
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
    return damaged


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
@settings(
    max_examples=2000 // len(TINY) + 1,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_config_is_built_or_refused(path: Path, seed: int) -> None:
    config = damage(json.loads(path.read_text()), random.Random(seed))
    before = copy.deepcopy(config)
    try:
        with torch.device("meta"):
            assert isinstance(create_model_from_config(config), torch.nn.Module)
    except ConfigError as error:
        assert error.problems
        assert all(problem.strip() for problem in error.problems)
    assert config == before, "the caller's config was modified"


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_the_whole_one_is_built(path: Path) -> None:
    assert isinstance(create_model_from_config(json.loads(path.read_text())), torch.nn.Module)
