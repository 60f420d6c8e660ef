"""The engine on components made here: what a signature accepts, and what each mistake is told."""

import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from stable_audio_tools.core.config import Kind, Part, Runtime, build, register, validate
from stable_audio_tools.core.config.kinds import KINDS, KindInfo
from stable_audio_tools.core.config.registry import components
from stable_audio_tools.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Stalk:
    length: Annotated[int, Field(ge=1)] = 4
    leaf: bool = False


@pytest.fixture(scope="module", autouse=True)
def orchard() -> Iterator[None]:
    """Two kinds of their own, so that these tests say nothing of the real components."""
    package = ModuleType("orchard")
    package.__path__ = []
    sys.modules["orchard"] = package
    ripe = (Annotated[bool, Field(description="ready to eat")], True)
    KINDS["fruit"] = KindInfo(("orchard",), {"ripe": ripe, "weight": (float, 1.0)}, frozenset({"ripe"}))
    KINDS["basket"] = KindInfo(("orchard",))

    @register("fruit", "apple", ignored=("wax",), facts=lambda config: {"seeds": config.seeds})
    class Apple:
        """A round fruit."""

        def __init__(
            self,
            seeds: Annotated[int, Field(ge=0, description="how many seeds")] = 5,
            sizes: Sequence[Annotated[int, Field(ge=1)]] = (1, 2),
            colour: Literal["red", "green"] = "red",
            levels: int | list[int] = 3,
            stalk: Stalk = Stalk(),
            second: Stalk | None = None,
            *,
            weight: Runtime[float] = 1.0,
        ) -> None:
            self.seeds, self.sizes, self.weight, self.stalk = seeds, sizes, weight, stalk

    @register("fruit", "pear")
    class Pear:
        def __init__(self, name: str, *, season: Runtime[str]) -> None:
            self.name, self.season = name, season

    def same_seeds(config: Any) -> Iterator[tuple[str, str]]:
        if config.best.facts.get("seeds", config.seeds) != config.seeds:
            yield "seeds", f"is {config.seeds}, but best.config.seeds is {config.best.facts['seeds']}"

    @register("basket", "wicker", check=same_seeds)
    def wicker(
        best: Annotated[Part, Kind("fruit")],
        seeds: int = 5,
        rest: Sequence[Annotated[Part, Kind("fruit")]] = (),
        spare: Annotated[Part | None, Kind("fruit")] = None,
        *,
        season: Runtime[str] = "autumn",
    ) -> list[Any]:
        return [part.build(season=season) for part in (best, *rest, spare) if part is not None]

    @register("fruit", "gift", body=("basket", "wicker"))
    def gift(config: Part, *, season: Runtime[str]) -> Any:
        return config.build(season=season)

    yield
    for kind in ("fruit", "basket"):
        KINDS.pop(kind)
        components.__globals__["_COMPONENTS"].pop(kind)
    sys.modules.pop("orchard")


def mistakes(kind: str, node: Any, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(kind, node, **options)
    return caught.value.problems


def test_defaults_come_from_the_signature() -> None:
    apple = build("fruit", {"type": "apple"})
    assert (apple.seeds, tuple(apple.sizes), apple.stalk) == (5, (1, 2), Stalk())


def test_records_are_made_from_objects() -> None:
    assert build("fruit", {"type": "apple", "config": {"stalk": {"length": 9}}}).stalk == Stalk(length=9)


def test_runtime_facts_reach_only_those_who_ask() -> None:
    node = {"best": {"type": "apple"}, "rest": [{"type": "pear", "config": {"name": "a"}}], "spare": None}
    apple, pear = build("basket", node, tag="wicker", season="spring")
    assert pear.season == "spring"
    assert not hasattr(apple, "season")


def test_a_sibling_key_reaches_the_parameter_of_its_name() -> None:
    assert build("fruit", {"type": "apple", "weight": 2.5}).weight == 2.5


def test_a_missing_runtime_fact_is_a_bug_and_not_a_user_error() -> None:
    with pytest.raises(TypeError, match="needs 'season' from its caller"):
        build("fruit", {"type": "pear", "config": {"name": "a"}})


def test_the_body_of_another_component() -> None:
    assert build("fruit", {"type": "gift", "config": {"best": {"type": "apple"}}}, season="x")[0].seeds == 5
    assert mistakes("fruit", {"type": "gift", "config": {"best": {"type": "aple"}}}) == [
        "fruit.config.best.type: no fruit named 'aple'; did you mean 'apple'?"
    ]


def test_every_mistake_is_reported_with_its_path() -> None:
    node = {
        "best": {
            "type": "apple",
            "seeds": 3,
            "config": {
                "sedes": 1,
                "sizes": [2, "4", 0],
                "colour": "blue",
                "levels": "x",
                "stalk": {"lenght": 1},
                "second": {"leaf": 1},
            },
        },
        "rest": [{"type": "apple"}, {"type": "apple", "ripee": True, "config": {"seeds": True}}],
        "seeds": -1.5,
    }
    assert sorted(mistakes("basket", node, tag="wicker")) == sorted(
        [
            "basket.best.seeds: this key belongs inside 'config', beside the others of this component",
            "basket.best.config.sedes: unknown key; did you mean 'seeds'?",
            "basket.best.config.sizes[1]: expected a whole number, got '4'",
            "basket.best.config.sizes[2]: expected at least 1, got 0",
            "basket.best.config.colour: expected 'red' or 'green', got 'blue'",
            "basket.best.config.levels: expected a whole number or a list, got 'x'",
            "basket.best.config.stalk.lenght: unknown key; did you mean 'length'?",
            "basket.best.config.second.leaf: expected true or false, got 1",
            "basket.rest[1].ripee: unknown key; did you mean 'ripe'?",
            "basket.rest[1].config.seeds: expected a whole number, got true",
            "basket.seeds: expected a whole number, got -1.5",
        ]
    )


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (None, "fruit: expected an object"),
        ([], "fruit: expected an object"),
        ({}, "fruit.type: missing; it names the fruit: apple, gift, pear"),
        ({"type": 3}, "fruit.type: no fruit named 3; allowed: apple, gift, pear"),
        ({"type": "apple", "config": 3}, "fruit.config: expected an object, got 3"),
        ({"type": "pear"}, "fruit.config.name: missing; it is required"),
    ],
)
def test_what_is_no_node_is_told_so(node: Any, sentence: str) -> None:
    assert mistakes("fruit", node)[0].startswith(sentence)


def test_mistakes_of_several_keys_together() -> None:
    node = {"best": {"type": "apple", "config": {"seeds": 2}}, "seeds": 3}
    assert mistakes("basket", node, tag="wicker") == ["basket.seeds: is 3, but best.config.seeds is 2"]


def test_keys_without_effect_are_named_and_accepted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        node = {
            "best": {"type": "apple", "config": {"wax": 1}},
            "spare": {"type": "pear", "weight": 2.0, "config": {"name": "a"}},
        }
        build("basket", node, tag="wicker")
    assert caplog.messages == [
        "basket.best.config.wax: this key has no effect and is ignored",
        "basket.spare.weight: 'pear' does not use this key; it is ignored",
    ]


def test_the_callers_dict_is_never_modified() -> None:
    node = {"type": "apple", "config": {"wax": 1, "sizes": [3]}, "ripe": False}
    before = {**node, "config": {"wax": 1, "sizes": [3]}}
    build("fruit", node)
    assert node == before


def test_parts_know_where_they_stand() -> None:
    part = validate("basket", {"best": {"type": "apple"}, "rest": [{"type": "apple"}]}, "model.basket", tag="wicker")
    assert part.config.rest[0].path == "model.basket.rest[0]"


def test_a_tag_is_taken_once() -> None:
    with pytest.raises(TypeError, match="registered twice"):
        register("fruit", "apple")(object)


def test_config_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ConfigError(["a: b", "c: d"])))
    assert error.problems == ["a: b", "c: d"]
