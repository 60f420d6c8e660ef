"""Prompts from metadata without code: renaming, templates, fields, and tags that are shuffled, dropped and recased."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from stable_audio_tools.data.custom_metadata import ItemInfo

_FIELD = re.compile(r"\{(\w+)\}")
_Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class FieldRecipe:
    """A prompt composed of metadata fields; the defaults come from the Jamendo fine-tuning runs."""

    fields: Annotated[Sequence[str], Field(min_length=1, description="metadata keys; a list is a field of tags")] = (
        "title",
        "artist",
        "album",
        "year",
        "genre",
        "mood",
        "instrument",
        "tag",
    )
    keep: Annotated[_Probability, Field(description="probability that a field is used; one always is")] = 0.7
    max_values: Annotated[int, Field(ge=1, description="maximum tags per field; from 1 to this number are drawn")] = 4
    shuffle: Annotated[bool, Field(description="draw a new order of the fields at each visit")] = True
    labels: Annotated[
        _Probability, Field(description='probability that names precede fields ("genres: rock, pop")')
    ] = 0.5
    lowercase: Annotated[_Probability, Field(description="probability that a field is in lower case")] = 0.2
    uppercase: Annotated[_Probability, Field(description="probability that a field is in upper case")] = 0.05


@dataclass(frozen=True)
class Captions:
    """Rules that derive the prompt of a clip from its metadata."""

    rename: Annotated[dict[str, str], Field(description="metadata key -> new name, unless that name exists")] = field(
        default_factory=lambda: {"text": "prompt", "caption": "prompt"}
    )
    recipe: Annotated[
        FieldRecipe | None, Field(description="compose prompts of metadata fields such as title, genre and mood")
    ] = None
    templates: Annotated[
        Sequence[str],
        Field(description='such as "{genre} with {instrument}, {bpm} bpm"; one whose fields all exist is drawn'),
    ] = ()
    tags: Annotated[
        Sequence[str], Field(description="keys of tags (lists, or text with separators) that form the prompt")
    ] = ()
    separator: Annotated[str, Field(description="separator between tags")] = ", "
    shuffle_tags: Annotated[bool, Field(description="draw a new order of the tags at each visit")] = False
    tag_dropout: Annotated[
        _Probability, Field(description="probability that a tag is left out; one always remains")
    ] = 0.0
    max_tags: Annotated[int | None, Field(description="maximum tags per prompt; null: all")] = None
    lowercase: Annotated[_Probability, Field(description="probability that the prompt is in lower case")] = 0.0
    uppercase: Annotated[_Probability, Field(description="probability that the prompt is in upper case")] = 0.0
    prompt_dropout: Annotated[_Probability, Field(description="probability that the prompt is empty")] = 0.0


def caption_problems(captions: Captions) -> Iterator[tuple[str, str]]:
    """Yield mistakes that the types do not exclude, as (key, message)."""
    for index, template in enumerate(captions.templates):
        if not _FIELD.search(template):
            yield f"templates[{index}]", f"{template!r} names no field; write fields as {{name}}"
    if captions.max_tags is not None and captions.max_tags < 1:
        yield "max_tags", f"expected at least 1 or null, got {captions.max_tags}"
    if captions.recipe is not None:
        yield from ((f"recipe.{key}", text) for key, text in recipe_problems(captions.recipe))
    if captions.lowercase + captions.uppercase > 1:
        yield "uppercase", "lowercase and uppercase exclude each other; their sum must not exceed 1"


def add_prompt(info: ItemInfo, captions: Captions, rng: random.Random) -> None:
    """Rename keys and set `info["prompt"]` by the rules; without any rule an existing prompt is unchanged."""
    for old, new in captions.rename.items():
        if old in info and new not in info:
            info[new] = info[old]
    made = write_fields(info, captions.recipe, rng) if captions.recipe is not None else None
    prompt = made or _from_template(info, captions, rng) or _from_tags(info, captions, rng) or info.get("prompt")
    if not isinstance(prompt, str):
        return
    draw = rng.random()
    if draw < captions.lowercase:
        prompt = prompt.lower()
    elif draw < captions.lowercase + captions.uppercase:
        prompt = prompt.upper()
    info["prompt"] = "" if rng.random() < captions.prompt_dropout else prompt


def _from_template(info: Mapping[str, object], captions: Captions, rng: random.Random) -> str | None:
    ready = [t for t in captions.templates if all(_is_given(info.get(name)) for name in _FIELD.findall(t))]
    if not ready:
        return None

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        listed = name in captions.tags or isinstance(info[name], list)
        return (
            captions.separator.join(_choose(_tags(info[name], captions), captions, rng)) if listed else str(info[name])
        )

    return _FIELD.sub(fill, rng.choice(ready))


def _from_tags(info: Mapping[str, object], captions: Captions, rng: random.Random) -> str | None:
    tags = [tag for key in captions.tags if _is_given(info.get(key)) for tag in _tags(info[key], captions)]
    return captions.separator.join(_choose(tags, captions, rng)) if tags else None


def _tags(value: Any, captions: Captions) -> list[str]:
    parts = value if isinstance(value, list) else str(value).split(captions.separator.strip() or captions.separator)
    return [text for part in parts if (text := str(part).strip())]


def _choose(tags: list[str], captions: Captions, rng: random.Random) -> list[str]:
    if captions.shuffle_tags:
        tags = rng.sample(tags, len(tags))
    kept = [tag for tag in tags if rng.random() >= captions.tag_dropout]
    return (kept or tags[:1])[: captions.max_tags]


def _is_given(value: object) -> bool:
    return value is not None and value not in ("", [])


def recipe_problems(recipe: FieldRecipe) -> Iterator[tuple[str, str]]:
    """Yield mistakes that the types do not exclude, as (key, message)."""
    if recipe.lowercase + recipe.uppercase > 1:
        yield "uppercase", "lowercase and uppercase exclude each other; their sum must not exceed 1"


def write_fields(info: Mapping[str, object], recipe: FieldRecipe, rng: random.Random) -> str | None:
    """Return a prompt from the fields present in `info`; None if there are none."""
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


def _values(value: object) -> list[str]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return [text for item in listed if (text := str(item).strip())]
