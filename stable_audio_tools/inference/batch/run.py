"""Many prompts to many files: planned and checked whole, shared among processes, resumable.

The plan depends on the file and the settings alone, not on the number of processes nor on what is there already: the
same items always go through the network together, so that every way of running gives the same files. Processes take
whole batches in turn and meet only in the output folder.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.core.files import content_digest
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import rank, world_size
from stable_audio_tools.core.seeds import MAX_SEED, draw_seed
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.batch.checks import (
    audio_problems,
    clip_problems,
    edit_problems,
    idle_flags,
    request_problems,
    sampling_problems,
)
from stable_audio_tools.inference.batch.items import BatchSettings, How, Item
from stable_audio_tools.inference.batch.outputs import OutputFolder, collisions, format_problems
from stable_audio_tools.inference.batch.prompt_file import Checked, Request, check_requests, read_requests
from stable_audio_tools.inference.generation.diffusion import Audio
from stable_audio_tools.inference.generation.edits import edit_audio
from stable_audio_tools.inference.generation.facts import ModelFacts, seconds_told
from stable_audio_tools.inference.generation.model import AudioModel, within_range

logger = logging.getLogger(__name__)


def plan_batch(path: str | Path | None, facts: ModelFacts, settings: BatchSettings) -> list[list[Item]]:
    """The batches that a file asks of a model, or without one, a model that is told nothing.

    All mistakes are in one ConfigError.
    """
    requests = [Request("the command", "sample", {})] if path is None else read_requests(path)
    path = path or "."
    checked, problems = check_requests(requests, facts)
    if settings.edit is not None:
        problems += edit_problems(settings.edit, settings, facts)
    problems += idle_flags(settings, facts)
    if settings.negative_prompt is not None and "prompt" not in facts.keys:
        problems.append("negative_prompt: this model takes no prompt")
    problems += clip_problems(facts, settings)
    problems += format_problems(settings.format, settings.bits, facts.sample_rate)
    items: list[Item] = []
    for request in checked:
        found = [*request_problems(request, facts, settings), *audio_problems(request, facts, Path(path))]
        made = list(_items_of(request, facts, settings, Path(path)))
        found = found or list(sampling_problems(made[0], facts, settings))
        problems += [f"{request.name}: {text}" for text in found]
        items += made
    for one, other in collisions(item.file for item in items):
        problems.append(f"{one} and {other} would be one file, or one the folder of the other; rename one of them")
    if problems:
        where = "" if path == "." else f"{path}: "
        raise ConfigError([f"{where}{text}" for text in dict.fromkeys(problems)])
    for text in dict.fromkeys(text for item in items for text in facts.warnings(item.conditions)):
        logger.warning("%s", text)
    return list(_grouped(items, facts, settings))


def _items_of(request: Checked, facts: ModelFacts, settings: BatchSettings, path: Path) -> Iterator[Item]:
    own = request.settings
    asked = seconds_told(request.conditions) if settings.clip_length is True else settings.clip_length or None
    negative = settings.negative_prompt if own.negative_prompt is None else own.negative_prompt
    recommended = facts.recommended
    sampler, scale = (None, None) if recommended is None else (recommended.sampler_type, recommended.cfg_scale)
    if settings.edit is not None and settings.edit.mode == "interpolate" and facts.objective is not None:
        sampler, scale = facts.objective.invertible_sampler, None  # what has a way back to the noise
    how = How(
        steps=_first(own.steps, settings.steps, recommended and recommended.steps),
        cfg_scale=_first(own.cfg_scale, settings.cfg_scale, scale) if facts.inputs else None,
        sampler_type=_first(own.sampler, own.sampler_type, settings.sampler_type, sampler),
        seconds=_first(own.seconds, asked),
        guided_away=negative is not None,
        init_audio=own.init_audio and str(path.parent / own.init_audio),
        init_noise_level=own.init_noise_level,
        inpaint_audio=own.inpaint_audio and str(path.parent / own.inpaint_audio),
        inpaint=None if own.inpaint is None else tuple((start, end) for start, end in own.inpaint),
        edit=settings.edit,
        temp=own.temp,
        top_k=own.top_k,
        top_p=own.top_p,
    )
    conditions = {
        key: str(path.parent / str(value)) if facts.input_of(key).kind == "audio" else value
        for key, value in request.conditions.items()
    }
    count = own.n_sample_per_cond or settings.n_sample_per_cond
    for number in range(1, count + 1):
        name = f"{request.name}_item-{number}"
        seed = _seed(name, number, own.seed, settings.seed)
        weight = None
        if settings.edit is not None and settings.edit.mode == "interpolate":
            weight = 0.5 if count == 1 else (number - 1) / (count - 1)
        yield Item(f"{name}.{settings.format}", conditions, seed, negative, how, weight)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _seed(name: str, number: int, own: int | None, common: int) -> int | None:
    """A leaf's seed counts on from sample to sample; else the name decides, so that other prompts change nothing."""
    if own is not None and own >= 0:
        return (own + number - 1) % (MAX_SEED + 1)
    if own == -1 or common == -1:
        return None
    digest = hashlib.blake2b(f"{common}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & MAX_SEED


def _grouped(items: Sequence[Item], facts: ModelFacts, settings: BatchSettings) -> Iterator[list[Item]]:
    """Items that can go through the network together, in batches of about the same size."""
    groups: dict[How, list[Item]] = {}
    for item in items:
        groups.setdefault(item.how, []).append(item)
    for how, group in groups.items():
        guided = facts.inputs and how.cfg_scale not in (None, 1)
        most = max(1, settings.batch_size // 2) if guided else settings.batch_size
        count = -(-len(group) // most)
        for index in range(count):
            yield group[index * len(group) // count : (index + 1) * len(group) // count]


# ------------------------------------------------------------------ the work

Tell = Callable[[dict[str, Any], bool], None]  # a line of the manifest, and whether the file is new


def check_targets(batches: Sequence[Sequence[Item]], output: OutputFolder, settings: BatchSettings) -> None:
    """Refuse, before any work, what stands in the way of a file."""
    output.check_place("manifest.jsonl")
    for file in [item.file for batch in batches for item in batch]:
        output.check_place(file)
        if not settings.overwrite:
            output.settings_of(file)


def run_batch(
    model: AudioModel,
    batches: Sequence[Sequence[Item]],
    output: OutputFolder,
    settings: BatchSettings,
    tell: Tell = lambda record, is_new: None,
) -> None:
    """Make this process's share of the batches; files that are complete and as asked for stay as they are."""
    files = [item.file for batch in batches for item in batch]
    mine = [batch for index, batch in enumerate(batches) if index % world_size() == rank()]
    if len(batches) < world_size():
        logger.info("%d batches for %d processes; a smaller --batch-size employs more", len(batches), world_size())
    try:
        with progress_bar("generating", len(mine)) as show:
            for number, batch in enumerate(mine):
                _run_one(model, batch, output, settings, tell, partial(_show_share, show, number))
    finally:
        output.write_manifest(files)


def _show_share(show: Callable[[float], None], done: int, share: float) -> None:
    show(done + share)


def _run_one(
    model: AudioModel,
    batch: Sequence[Item],
    output: OutputFolder,
    settings: BatchSettings,
    tell: Tell,
    show: Callable[[float], None],
) -> None:
    wanted = [_told(model, item, settings) for item in batch]
    found = [None if settings.overwrite else output.settings_of(item.file) for item in batch]
    is_kept = [
        old is not None and _is_as_asked(old, new) and not (settings.keep_latents and not output.has_latents(item.file))
        for item, old, new in zip(batch, found, wanted)
    ]
    for item, old, kept in zip(batch, found, is_kept):
        if old is not None and kept:
            tell(output.record(item.file, old), False)
        elif old is not None:
            logger.info("%s was made with other settings and is made again", item.file)
    if all(is_kept):
        return
    seeds = [draw_seed() if item.seed is None else item.seed for item in batch]
    try:
        made, latents = _generate(model, batch, seeds, settings, show)
    except ValueError as error:  # what only the audio or the model itself could show, such as spans beyond its end
        mode = batch[0].how.edit
        raise UserError(f"{batch[0].file if mode is None else f'mode {mode.mode}'}: {error}") from error
    for index, item in enumerate(batch):
        if not is_kept[index]:
            about = {**wanted[index], "seed": seeds[index]}
            keeps_level = item.how.keeps_level
            audio = made[index] if keeps_level and settings.bits == 32 else within_range(made[index], keeps_level)
            if latents is not None:  # before the audio, which says that the item is complete
                output.write_latents(item.file, latents[index])
            tell(output.write(item.file, audio, model.sample_rate, about, settings.bits), True)


def _is_as_asked(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Nothing that is asked for differs; an adapter that is no longer asked for does."""
    return old.items() >= new.items() and old.get("adapters") == new.get("adapters")


def _generate(
    model: AudioModel,
    batch: Sequence[Item],
    seeds: Sequence[int],
    settings: BatchSettings,
    show: Callable[[float], None],
) -> tuple[Tensor, Tensor | None]:
    """Audio (b, c, n), and its latents (b, d, t) where they are to be kept."""
    how = batch[0].how
    latents: list[Tensor] = []
    options: dict[str, Any] = {}
    if model.facts.objective is not None:
        options = {"sampler_type": how.sampler_type, "sigma_min": settings.sigma_min, "sigma_max": settings.sigma_max}
        options |= {"eta": settings.eta, "decode_frames": settings.decode_frames, "offload": settings.offload}
        options |= {"on_latents": latents.append if settings.keep_latents else None}
        options = {name: value for name, value in options.items() if value is not None}
    tokens = {name: getattr(how, name) for name in ("temp", "top_k", "top_p")}
    options |= {name: value for name, value in tokens.items() if value is not None}
    if model.takes("progress"):
        options["progress"] = lambda done, steps: show(done / steps if steps else 0.0)
    options |= {
        "conditions": [_with_audio(model, item.conditions) for item in batch],
        "seed": seeds,
        "steps": how.steps,
        "cfg_scale": how.cfg_scale,
    }
    if how.edit is None or how.edit.mode != "interpolate":
        options["negative_prompt"] = [item.negative_prompt or "" for item in batch] if how.guided_away else None
    if how.edit is not None:
        ends = [None if end is None else _read(end, model) for end in (how.edit.audio, how.edit.to_audio)]
        assert ends[0] is not None
        weights = [0.0 if item.weight is None else item.weight for item in batch]
        return edit_audio(model, how.edit, ends[0], ends[1], weights, **options), None
    made = model.generate(
        seconds=how.seconds,
        init_audio=how.init_audio,
        init_noise_level=how.init_noise_level,
        inpaint_audio=how.inpaint_audio,
        inpaint=how.inpaint,
        **options,
    )
    return made.audio, latents[0] if latents else None


def _read(path: str, model: AudioModel) -> Audio:
    samples, rate = audio_io.read(path, sample_rate=model.sample_rate)
    return rate, samples


def _with_audio(model: AudioModel, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions that name a file as the audio in it, of the length of the model's window."""
    loaded = dict(conditions)
    for key, value in conditions.items():
        if model.facts.input_of(key).kind == "audio":
            loaded[key] = _window_of(audio_io.read(value, sample_rate=model.sample_rate).samples, model.facts.window)
    return loaded


def _window_of(audio: Any, window: int | None) -> Any:
    if window is None:
        return audio
    from torch.nn import functional as F

    return F.pad(audio, (0, window - audio.shape[-1]))


def _audio_of(item: Item, facts: ModelFacts) -> list[str]:
    """The files that an item is made from."""
    told = [str(value) for key, value in item.conditions.items() if facts.input_of(key).kind == "audio"]
    return [*item.how.audio_files, *told]


def _told(model: AudioModel, item: Item, settings: BatchSettings) -> dict[str, Any]:
    """How an item is made, for its file and for the manifest."""
    how = replace(item.how, inpaint=None, edit=None)
    told: dict[str, Any] = {
        "model": model.name,
        "weights": model.fingerprint,
        "precision": model.precision,
        "adapters": model.told_adapters() or None,
        "conditions": dict(item.conditions),
        "negative_prompt": item.negative_prompt,
        "seed": item.seed,
        **{name: value for name, value in vars(how).items() if name != "guided_away"},
        "inpaint": None if item.how.inpaint is None else [list(span) for span in item.how.inpaint],
        "edit": None if item.how.edit is None else json.loads(json.dumps(asdict(item.how.edit))),
        "weight": item.weight,
        "audio": {path: content_digest(path) for path in _audio_of(item, model.facts)} or None,
        "eta": settings.eta,
        "sigma_min": settings.sigma_min,
        "sigma_max": settings.sigma_max,
        "bits": settings.bits,
    }
    return {name: value for name, value in told.items() if value is not None}
