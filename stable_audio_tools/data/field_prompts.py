"""Prompts made of fields: which take part, in which order, with or without their names, is drawn at each visit."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

_Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class FieldRecipe:
    """How a prompt is made of metadata fields; the defaults are those of the Jamendo fine-tuning runs."""

    fields: Annotated[Sequence[str], Field(min_length=1, description="metadata keys; lists are fields of tags")] = (
        "title",
        "artist",
        "album",
        "year",
        "genre",
        "mood",
        "instrument",
        "tag",
    )
    keep: Annotated[_Probability, Field(description="probability that a field takes part; one always does")] = 0.7
    max_values: Annotated[int, Field(ge=1, description="most tags of one field; from 1 to this many are drawn")] = 4
    shuffle: Annotated[bool, Field(description="fields in a new order at each visit")] = True
    labels: Annotated[_Probability, Field(description='probability of names before fields ("genres: rock, pop")')] = 0.5
    lowercase: Annotated[_Probability, Field(description="probability that a field is in lower case")] = 0.2
    uppercase: Annotated[_Probability, Field(description="probability that a field is in upper case")] = 0.05


def recipe_problems(recipe: FieldRecipe) -> Iterator[tuple[str, str]]:
    """Mistakes that the types do not show, as (key, sentence)."""
    if recipe.lowercase + recipe.uppercase > 1:
        yield "uppercase", "lowercase and uppercase are probabilities of one choice; together they exceed 1"


def write_fields(info: Mapping[str, Any], recipe: FieldRecipe, rng: random.Random) -> str | None:
    """A prompt from the fields that `info` has; None when it has none."""
    present = [(name, values) for name in recipe.fields if (values := _values(info.get(name)))]
    if not present:
        return None
    chosen = [field for field in present if rng.random() < recipe.keep] or [rng.choice(present)]
    if recipe.shuffle:
        rng.shuffle(chosen)
    labelled = rng.random() < recipe.labels
    return ", ".join(_write(name, values, labelled, recipe, rng) for name, values in chosen)


def _write(name: str, values: list[str], labelled: bool, recipe: FieldRecipe, rng: random.Random) -> str:
    drawn = rng.sample(values, rng.randint(1, min(recipe.max_values, len(values))))
    text, draw = ", ".join(drawn), rng.random()
    if draw < recipe.lowercase:
        text = text.lower()
    elif draw < recipe.lowercase + recipe.uppercase:
        text = text.upper()
    return f"{name}{'s' * (len(drawn) > 1)}: {text}" if labelled else text


def _values(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return [text for item in listed if (text := str(item).strip())]
