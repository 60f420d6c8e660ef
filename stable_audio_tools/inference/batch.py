"""Many prompts to many files: planned and checked whole, shared among processes, resumable.

The plan depends on the file and the settings alone, not on the number of processes nor on what is there already: the
same items always go through the network together, so that every way of running gives the same files. Processes take
whole batches in turn and meet only in the output folder.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from stable_audio_tools.config import ConfigError, UserError
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.audio_model import AudioModel, within_range
from stable_audio_tools.inference.batch_file import Checked, Request, check_requests, read_requests
from stable_audio_tools.inference.edits import Edit, edit_audio
from stable_audio_tools.inference.generation import Audio
from stable_audio_tools.inference.model_facts import ModelFacts
from stable_audio_tools.inference.outputs import Bits, OutputFolder, collisions, format_problems
from stable_audio_tools.inference.progress import progress_bar
from stable_audio_tools.inference.samplers import DETERMINISTIC, find_sampler
from stable_audio_tools.models.diffusion.objectives import name_of
from stable_audio_tools.system.ranks import rank, world_size
from stable_audio_tools.system.seeds import MAX_SEED, draw_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchSettings:
    """Settings of a whole batch; a leaf may have its own. None stands for what suits the model."""

    steps: int | None = None
    cfg_scale: float | None = None
    sampler_type: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    negative_prompt: str | None = None
    n_sample_per_cond: int = 1
    batch_size: int = 10  # through the network at once; guidance counts twice
    seed: int = 0  # -1: another one for every file
    clip_length: bool | float = False  # seconds of every file; True: those that the prompt asks for
    format: str = "wav"
    bits: Bits = 16
    decode_frames: int | None = None
    offload: bool = False
    overwrite: bool = False
    eta: float | None = None
    edit: Edit | None = None  # what to do with other audio, in place of beginning from noise

    def __post_init__(self) -> None:
        sizes = {"sample_steps": self.steps, "n_sample_per_cond": self.n_sample_per_cond, "batch_size": self.batch_size}
        for name, value in {**sizes, "decode_frames": self.decode_frames}.items():
            if value is not None and value < 1:
                raise UserError(f"{name}: expected at least 1, got {value}")
        for name in ("sigma_min", "sigma_max"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}: expected more than 0, got {value:g}")
        if not -1 <= self.seed <= MAX_SEED:
            raise UserError(f"seed: expected -1 (random) or 0 to {MAX_SEED}, got {self.seed}")


@dataclass(frozen=True)
class How:
    """What the items of one batch share."""

    steps: int | None
    cfg_scale: float | None
    sampler_type: str | None
    seconds: float | None
    guided_away: bool = False  # by a negative prompt
    init_audio: str | None = None
    init_noise_level: float | None = None
    inpaint_audio: str | None = None
    inpaint: tuple[tuple[float, float], ...] | None = None
    edit: Edit | None = None


@dataclass(frozen=True)
class Item:
    """One file; without a seed it may have any. `weight`: how far between two clips."""

    file: str
    conditions: Mapping[str, Any]
    seed: int | None
    negative_prompt: str | None
    how: How
    weight: float | None = None


def plan_batch(path: str | Path | None, facts: ModelFacts, settings: BatchSettings) -> list[list[Item]]:
    """The batches that a file asks of a model, or without one, a model that is told nothing.

    All mistakes are in one ConfigError.
    """
    requests = [Request("the command", "sample", {})] if path is None else read_requests(path)
    path = path or "."
    checked, problems = check_requests(requests, facts)
    if settings.edit is not None:
        problems += _edit_problems(settings.edit, settings, facts)
    if settings.eta is not None:
        problems += _eta_problems(settings, facts)
    if settings.negative_prompt is not None and "prompt" not in facts.keys:
        problems.append("negative_prompt: this model takes no prompt")
    problems += _clip_problems(facts, settings)
    problems += format_problems(settings.format, settings.bits, facts.sample_rate)
    items: list[Item] = []
    for request in checked:
        problems += [f"{request.name}: {text}" for text in _request_problems(request, facts, settings, Path(path))]
        items += _items_of(request, facts, settings, Path(path))
    for one, other in collisions(item.file for item in items):
        problems.append(f"{one} and {other} would be one file, or one the folder of the other; rename one of them")
    if problems:
        where = "" if path == "." else f"{path}: "
        raise ConfigError([f"{where}{text}" for text in dict.fromkeys(problems)])
    for text in dict.fromkeys(text for item in items for text in facts.unknown_choices(item.conditions)):
        logger.warning("%s", text)
    return list(_grouped(items, facts, settings))


def _edit_problems(edit: Edit, settings: BatchSettings, facts: ModelFacts) -> Iterator[str]:
    if settings.clip_length is not False:
        yield f"clip_length: the mode {edit.mode!r} says how long files are; leave it out"
    if settings.negative_prompt is not None and edit.mode == "interpolate":
        yield "negative_prompt: has no meaning between two clips; leave it out"
    for name in ("audio", "to_audio"):
        given = getattr(edit, name)
        if given is not None and not Path(given).is_file():
            yield f"{name.replace('_', '-')}: no such file {given!r}"
    yield from edit.problems(facts)


def _eta_problems(settings: BatchSettings, facts: ModelFacts) -> Iterator[str]:
    if facts.objective is None:
        yield f"eta: a model of type {facts.model_type!r} has none; leave it out"
        return
    try:
        recommended = None if facts.recommended is None else facts.recommended.sampler_type
        name = settings.sampler_type or recommended
        find_sampler(name, facts.objective).check_eta(settings.eta, name)
    except ValueError as error:
        yield str(error)


def _clip_problems(facts: ModelFacts, settings: BatchSettings) -> Iterator[str]:
    if not isinstance(settings.clip_length, bool):
        yield from facts.check_seconds(settings.clip_length, "clip_length")


def _request_problems(request: Checked, facts: ModelFacts, settings: BatchSettings, path: Path) -> Iterator[str]:
    own = request.settings
    if own.seconds is not None:
        yield from facts.check_seconds(own.seconds)
    elif isinstance(settings.clip_length, bool) and (asked := _seconds_asked(request)) is not None:
        yield from facts.check_seconds(asked, "seconds_total")
    if own.sampler is not None and own.sampler_type is not None:
        yield "sampler: sampler_type is given too; keep one of them"
    sampler = own.sampler or own.sampler_type or settings.sampler_type
    if sampler is not None and facts.objective is None:
        yield f"sampler: a model of type {facts.model_type!r} has none; leave it out"
    elif sampler is not None and facts.objective is not None:
        try:
            find_sampler(sampler, facts.objective)
        except ValueError as error:
            yield str(error)
    if _first(own.steps, settings.steps) is not None and not facts.has_steps:
        yield f"steps: a model of type {facts.model_type!r} has none; leave them out"
    taken = [name for name in ("init_audio", "inpaint_audio", "seconds") if getattr(own, name) is not None]
    if settings.edit is not None and taken:
        yield f"{taken[0]}: mode {settings.edit.mode!r} says what the audio is; leave one of them out"
    if own.negative_prompt is not None and "prompt" not in facts.keys:
        yield "negative_prompt: this model takes no prompt"
    if own.inpaint_audio is not None and facts.objective is None:
        yield "inpaint_audio: this model cannot inpaint"
    for name in ("init_audio", "inpaint_audio"):
        given = getattr(own, name)
        if given is not None and not (path.parent / given).is_file():
            yield f"{name}: no such file {given!r} (paths are relative to {path.parent})"
    for key, value in request.conditions.items():
        if facts.input_of(key).kind == "audio" and not (path.parent / str(value)).is_file():
            yield f"{key}: no such file {value!r} (paths are relative to {path.parent})"


def _seconds_asked(request: Checked) -> float | None:
    """What lies between where the piece begins to be made and where it ends."""
    total, start = request.conditions.get("seconds_total"), request.conditions.get("seconds_start", 0)
    if isinstance(total, int | float) and isinstance(start, int | float):
        return float(total - start)
    return None


def _items_of(request: Checked, facts: ModelFacts, settings: BatchSettings, path: Path) -> Iterator[Item]:
    own = request.settings
    clip = settings.clip_length
    seconds = own.seconds if own.seconds is not None else _seconds_asked(request) if clip is True else clip or None
    negative = settings.negative_prompt if own.negative_prompt is None else own.negative_prompt
    recommended = facts.recommended
    sampler, scale = (None, None) if recommended is None else (recommended.sampler_type, recommended.cfg_scale)
    if settings.edit is not None and settings.edit.mode == "interpolate" and facts.objective is not None:
        sampler, scale = DETERMINISTIC[name_of(facts.objective)], None  # what has a way back to the noise
    how = How(
        steps=_first(own.steps, settings.steps, recommended and recommended.steps),
        cfg_scale=_first(own.cfg_scale, settings.cfg_scale, scale) if facts.inputs else None,
        sampler_type=_first(own.sampler, own.sampler_type, settings.sampler_type, sampler),
        seconds=seconds,
        guided_away=negative is not None,
        init_audio=own.init_audio and str(path.parent / own.init_audio),
        init_noise_level=own.init_noise_level,
        inpaint_audio=own.inpaint_audio and str(path.parent / own.inpaint_audio),
        inpaint=None if own.inpaint is None else tuple((start, end) for start, end in own.inpaint),
        edit=settings.edit,
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
    is_kept = [old is not None and _is_as_asked(old, new) for old, new in zip(found, wanted)]
    for item, old, kept in zip(batch, found, is_kept):
        if old is not None and kept:
            tell(output.record(item.file, old), False)
        elif old is not None:
            logger.info("%s was made with other settings and is made again", item.file)
    if all(is_kept):
        return
    seeds = [draw_seed() if item.seed is None else item.seed for item in batch]
    made = _generate(model, batch, seeds, settings, show)
    for index, item in enumerate(batch):
        if not is_kept[index]:
            about = {**wanted[index], "seed": seeds[index]}
            audio = within_range(made[index])
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
) -> Any:
    how = batch[0].how
    options: dict[str, Any] = {}
    if model.facts.objective is not None:
        options = {"sampler_type": how.sampler_type, "sigma_min": settings.sigma_min, "sigma_max": settings.sigma_max}
        options |= {"eta": settings.eta, "decode_frames": settings.decode_frames, "offload": settings.offload}
        options = {name: value for name, value in options.items() if value is not None}
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
        try:
            return edit_audio(model, how.edit, ends[0], ends[1], weights, **options)
        except ValueError as error:  # what only the audio itself could show, such as spans beyond its end
            raise UserError(f"mode {how.edit.mode}: {error}") from None
    return model.generate(
        seconds=how.seconds,
        init_audio=how.init_audio,
        init_noise_level=how.init_noise_level,
        inpaint_audio=how.inpaint_audio,
        inpaint=how.inpaint,
        **options,
    ).audio


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
        "eta": settings.eta,
        "sigma_min": settings.sigma_min,
        "sigma_max": settings.sigma_max,
        "bits": settings.bits,
    }
    return {name: value for name, value in told.items() if value is not None}
