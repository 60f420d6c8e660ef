"""What is wrong with what a batch asks of a model, a sentence each, before any work."""

import math
from collections.abc import Iterator
from pathlib import Path

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.batch.items import BatchSettings, Item
from stable_audio_tools.inference.batch.prompt_file import Checked
from stable_audio_tools.inference.generation.edits import Edit
from stable_audio_tools.inference.generation.facts import ModelFacts, seconds_told
from stable_audio_tools.inference.sampling.samplers import find_sampler


def edit_problems(edit: Edit, settings: BatchSettings, facts: ModelFacts) -> Iterator[str]:
    if settings.keep_latents:
        yield f"keep_latents: the audio of mode {edit.mode!r} is not that of its latents alone; leave it out"
    if settings.clip_length is not False:
        yield f"clip_length: the mode {edit.mode!r} says how long files are; leave it out"
    if settings.negative_prompt is not None and edit.mode == "interpolate":
        yield "negative_prompt: has no meaning between two clips; leave it out"
    yield from edit.problems(facts)
    for name in ("audio", "to_audio"):
        given = getattr(edit, name)
        if given is not None:
            yield from _unreadable(name.replace("_", "-"), given)


def idle_flags(settings: BatchSettings, facts: ModelFacts) -> Iterator[str]:
    """Flags that would have no effect on a model of that type."""
    if facts.objective is None:
        for name in ("sigma_min", "sigma_max", "eta", "decode_frames"):
            if getattr(settings, name) is not None:
                yield f"{name}: a model of type {facts.model_type!r} has none; leave it out"
        for name in ("offload", "keep_latents"):
            if getattr(settings, name):
                yield f"{name}: is for diffusion models, and this is a model of type {facts.model_type!r}"


def clip_problems(facts: ModelFacts, settings: BatchSettings) -> Iterator[str]:
    if not isinstance(settings.clip_length, bool):
        yield from facts.check_seconds(settings.clip_length, "clip_length")


def request_problems(request: Checked, facts: ModelFacts, settings: BatchSettings) -> Iterator[str]:
    own = request.settings
    if own.seconds is not None:
        yield from facts.check_seconds(own.seconds)
    elif isinstance(settings.clip_length, bool) and (asked := seconds_told(request.conditions)) is not None:
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
    if (own.steps or settings.steps) is not None and not facts.has_steps:
        yield f"steps: a model of type {facts.model_type!r} has none; leave them out"
    if {own.cfg_scale, settings.cfg_scale} != {None} and not facts.inputs:
        yield "cfg_scale: this model is told nothing, so there is nothing to guide by; leave it out"
    about_audio = ("init_audio", "init_noise_level", "inpaint_audio", "inpaint", "seconds")
    taken = [name for name in about_audio if getattr(own, name) is not None]
    if settings.edit is not None and taken:
        yield f"{taken[0]}: mode {settings.edit.mode!r} says what the audio is; leave one of them out"
    elif settings.edit is None:
        for name, needed in (("init_noise_level", "init_audio"), ("inpaint", "inpaint_audio")):
            if name in taken and needed not in taken:
                yield f"{name}: has no effect without {needed}; give that too, or leave it out"
    if own.negative_prompt is not None and settings.edit is not None and settings.edit.mode == "interpolate":
        yield "negative_prompt: has no meaning between two clips; leave it out"
    for name in ("temp", "top_k", "top_p"):
        if getattr(own, name) is not None and facts.model_type != "lm":
            yield f"{name}: is for language models, and this is a model of type {facts.model_type!r}; leave it out"
    if own.negative_prompt is not None and "prompt" not in facts.keys:
        yield "negative_prompt: this model takes no prompt"
    if own.inpaint_audio is not None and facts.objective is None:
        yield "inpaint_audio: this model cannot inpaint"
    for start, end in own.inpaint or ():
        if not 0 <= start < end < math.inf:
            yield f"inpaint: a span is [start, end] in seconds with 0 <= start < end, got [{start:g}, {end:g}]"


def audio_problems(request: Checked, facts: ModelFacts, path: Path) -> Iterator[str]:
    """Of the files that a leaf names; paths are relative to the file of prompts."""
    named = {name: getattr(request.settings, name) for name in ("init_audio", "inpaint_audio")}
    named |= {key: value for key, value in request.conditions.items() if facts.input_of(key).kind == "audio"}
    for name, given in named.items():
        if given is not None:
            yield from _unreadable(name, str(given), path.parent)


def _unreadable(name: str, given: str, folder: Path = Path()) -> Iterator[str]:
    """Why a file, given relative to a folder, cannot be read as audio, if so."""
    path = folder / given
    if not path.is_file():
        yield f"{name}: no such file {given!r}" + (f" (paths are relative to {folder})" if folder != Path() else "")
        return
    try:
        if audio_io.info(path).frames == 0:
            yield f"{name}: {path} holds no audio"
    except AudioError as error:
        yield f"{name}: {error}"


def sampling_problems(item: Item, facts: ModelFacts, settings: BatchSettings) -> Iterator[str]:
    """What does not go together in the sampling of a leaf, its own settings and those of all."""
    if facts.objective is None or item.how.sampler_type is None:
        return
    name, sampler = item.how.sampler_type, find_sampler(item.how.sampler_type, facts.objective)
    try:
        sampler.check_eta(settings.eta, name)
    except ValueError as error:
        yield str(error)
    level = item.how.init_noise_level if item.how.edit is None else item.how.edit.noise_level
    if level is not None and level > 1 and not sampler.starts_by_ratio:
        yield f"noise level: is {level:g}, and for the sampler {name!r} 1 is all noise; ask for less"
    for limit in ("sigma_min", "sigma_max"):
        if getattr(settings, limit) is not None and not sampler.starts_by_ratio:
            yield f"{limit}: the sampler {name!r} does not use it; leave it out"
    if settings.eta and settings.edit is not None and settings.edit.mode == "interpolate":
        yield "eta: between two clips there is no fresh noise; leave it out"
    if item.negative_prompt is not None and item.how.cfg_scale in (None, 1):
        yield "negative_prompt: has no effect without guidance; ask for a cfg_scale above 1, or leave it out"
