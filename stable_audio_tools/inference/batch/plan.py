"""From a file of prompts to batches of requests, checked whole before any work.

The plan depends only on the file and the settings, not on the number of processes or on existing files: the same items
always go through the network together, so that every way of running gives the same files.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.seeds import MAX_SEED
from stable_audio_tools.inference.batch.outputs import MANIFEST, collisions, format_problems, name_problems
from stable_audio_tools.inference.batch.prompt_file import Leaf, read_leaves, read_values
from stable_audio_tools.inference.generation.checks import (
    audio_conditions,
    condition_problems,
    doubts,
    validate,
    with_lengths,
    with_recommended,
)
from stable_audio_tools.inference.generation.facts import ModelFacts
from stable_audio_tools.inference.generation.request import OPTIONS, GenerationRequest, share_of_way

logger = logging.getLogger(__name__)

BATCH_SIZE = 10
SEED = 0

# Length and files do not decide what goes through the network, for models that fill their window.
_AFTERWARDS = ("seconds", "clip_length", "format", "bits", "num_samples")


@dataclass(frozen=True)
class PlannedFile:
    """A file below the output folder, and the request of its one item; seed -1 is drawn when it is generated."""

    file: str
    request: GenerationRequest


Batch = Sequence[PlannedFile]


def plan_batch(
    path: str | Path | None,
    facts: ModelFacts,
    common: GenerationRequest | None = None,
    batch_size: int = BATCH_SIZE,
    name: str | None = None,
) -> list[Batch]:
    """Plan the leaves of a file; `common` has the settings that a leaf omits. One ConfigError lists all problems.

    Without a file there is one leaf, `sample`, with the conditions of `common`; with a `name`, files have that name,
    numbered where there are several, and the first file has the seed of `common`. `batch_size`: items through the
    network at once, where guidance counts twice.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
    common = GenerationRequest() if common is None else common
    if common.clip_length is None and common.mode is None:
        common = replace(common, clip_length=True)
    leaves = [Leaf("the command", "sample", {})] if path is None else read_leaves(path)
    files: list[PlannedFile] = []
    problems: list[str] = []
    by_leaf: list[dict[str, None]] = []
    for leaf in leaves:
        conditions, settings, wrong = read_values(leaf, facts)
        found = [*name_problems(leaf.name), *wrong]
        own_seed = settings.pop("seed", None)
        if wrong:
            found += condition_problems(conditions, facts)
        else:
            request = _request(common, conditions, settings, facts, None if path is None else Path(path).parent)
            found += validate(request, facts)
            seed = SEED if common.seed is None else common.seed
            files += _files(leaf.name, request, own_seed if name is None else seed, seed)
        if path is not None:
            of_flags = [text for text in found if _is_from_command(text, leaf, common)]
            problems += [f"--{text.partition(':')[0].replace('_', '-')}:{text.partition(':')[2]}" for text in of_flags]
            found = [text for text in found if text not in of_flags]
        by_leaf.append(dict.fromkeys(found))
    if name is not None:
        ends = [""] if len(files) == 1 else [f"-{number}" for number in range(1, len(files) + 1)]
        files = [replace(each, file=f"{name}{end}.{common.format}") for each, end in zip(files, ends)]
    if len(leaves) > 1:  # a problem of every leaf is reported once
        shared = [text for text in by_leaf[0] if all(text in found for found in by_leaf)]
        problems += [f"{path}: {text}" for text in shared]
        by_leaf = [{text: None for text in found if text not in shared} for found in by_leaf]
    where = "" if path is None else f"{path}: "
    problems += [f"{where}{text}" for text in format_problems(common.format, common.bits, facts.sample_rate)]
    for leaf, texts in zip(leaves, by_leaf):
        problems += [text if path is None else f"{path}: {leaf.where}: {text}" for text in texts]
    for one, other in collisions([MANIFEST, *(each.file for each in files)]):
        problems.append(
            f"{where}{one} and {other} would be one file, or one the folder of the other; rename one of them"
        )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    for text in dict.fromkeys(text for each in files for text in doubts(each.request, facts)):
        logger.warning("%s", text)
    return list(_grouped(files, facts, batch_size))


def _is_from_command(text: str, leaf: Leaf, common: GenerationRequest) -> bool:
    """Return whether a problem is about a field that the command set and the leaf does not."""
    name = text.partition(":")[0]
    return name in OPTIONS and name not in leaf.values and name != "conditions" and getattr(common, name) is not None


def _request(
    common: GenerationRequest,
    conditions: dict[str, Any],
    settings: dict[str, Any],
    facts: ModelFacts,
    folder: Path | None,
) -> GenerationRequest:
    """Return the request of a leaf; paths in a prompt file are relative to its folder."""
    if folder is not None:
        relative = audio_conditions(conditions, facts)
        conditions |= {key: str(folder / str(value)) for key, value in relative.items()}
        for name in ("init_audio", "inpaint_audio"):
            if name in settings:
                settings[name] = str(folder / settings[name])
    if "inpaint" in settings:
        settings["inpaint"] = tuple((start, end) for start, end in settings["inpaint"])
    request = replace(common, seed=None, **settings, conditions={**common.conditions, **conditions})
    return with_recommended(with_lengths(request, facts) if folder is None else request, facts)


def _files(name: str, request: GenerationRequest, own: int | None, common: int) -> Iterator[PlannedFile]:
    count = request.num_samples
    for number in range(1, count + 1):
        stem = f"{name}_item-{number}"
        weight = share_of_way(number - 1, count) if request.mode == "interpolate" else None
        item = replace(request, num_samples=1, seed=_seed(stem, number, own, common), weight=weight)
        yield PlannedFile(f"{stem}.{request.format}", item)


def _seed(name: str, number: int, own: int | None, common: int) -> int:
    """Return the seed of a sample: counted on from the seed of its leaf, or else derived from the name of its file."""
    if own is not None and own >= 0:
        return (own + number - 1) % (MAX_SEED + 1)
    if own == -1 or common == -1:
        return -1
    digest = hashlib.blake2b(f"{common}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & MAX_SEED


def _grouped(files: Sequence[PlannedFile], facts: ModelFacts, batch_size: int) -> Iterator[Batch]:
    """Items that can go through the network together, in batches of about the same size."""
    groups: dict[Any, list[PlannedFile]] = {}
    for each in files:
        groups.setdefault(_shared(each.request, facts), []).append(each)
    for group in groups.values():
        is_guided = facts.inputs and group[0].request.cfg_scale not in (None, 1)
        most = max(1, batch_size // 2) if is_guided else batch_size
        count = -(-len(group) // most)
        for index in range(count):
            yield group[index * len(group) // count : (index + 1) * len(group) // count]


def _shared(request: GenerationRequest, facts: ModelFacts) -> tuple[Any, ...]:
    """Return the settings that the items of a batch share."""
    fills_window = request.mode is None and "seconds_total" in facts.keys
    names = [name for name, about in OPTIONS.items() if not about.each and name not in _AFTERWARDS]
    length = None if fills_window else request.seconds
    return (request.negative_prompt is None, length, *(getattr(request, name) for name in names))
