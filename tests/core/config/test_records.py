"""Records inside records, as JSON holds them: objects at any depth, lists for tuples."""

import dataclasses
from typing import Annotated, Any

import pytest
from pydantic import ConfigDict, Field, ValidationError, create_model

from stable_audio_tools.core.config.registry import accept_objects


@dataclasses.dataclass(frozen=True)
class Leaf:
    veins: Annotated[int, Field(ge=0)] = 1
    shape: tuple[float, float] = (1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Twig:
    leaf: Leaf = Leaf()
    more: list[Leaf] = dataclasses.field(default_factory=list)
    last: Leaf | None = None


Tree = create_model(
    "Tree", __config__=ConfigDict(extra="forbid", strict=True), twig=(accept_objects(Twig | None), None)
)


def test_objects_become_records_at_any_depth() -> None:
    read = Tree.model_validate({"twig": {"leaf": {"veins": 3, "shape": [0.5, 1]}, "more": [{}], "last": {"veins": 2}}})
    assert read.twig == Twig(Leaf(3, (0.5, 1.0)), [Leaf()], Leaf(2))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        ({"veins": "3"}, "int_type"),
        ({"veins": -1}, "greater_than_equal"),
        ({"vein": 3}, "unexpected_keyword_argument"),
        ({"shape": [1.0]}, "missing"),
        (3, "dataclass_type"),
    ],
)
def test_inside_them_nothing_is_guessed(leaf: Any, kind: str) -> None:
    with pytest.raises(ValidationError) as error:
        Tree.model_validate({"twig": {"leaf": leaf}})
    assert kind in {item["type"] for item in error.value.errors()}
