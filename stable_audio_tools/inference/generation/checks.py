"""Validation of requests against a model: every problem is found before any work."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_audio_tools.core.config.sentences import nearest, show
from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation.facts import ModelFacts
from stable_audio_tools.inference.generation.request import (
    LATEST,
    OPTIONS,
    SUITABLE,
    GenerationRequest,
    Mode,
    Section,
    given_fields,
)
from stable_audio_tools.inference.sampling.samplers import find_sampler
from stable_audio_tools.models.conditioners.base import InputKind

_WORDS: dict[InputKind, str] = {
    "text": "a text",
    "number": "a number",
    "integer": "a whole number",
    "choice": "one of its names",
    "audio": "the path of an audio file",
    "other": "a value",
}
_LARGEST: dict[InputKind, float] = {"number": 1e308, "integer": 2**63 - 1}  # what a float and a tensor hold
_NEEDED: dict[Mode, str] = {"interpolate": "to_audio", "inpaint": "spans", "outpaint": "seconds"}


def validate(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    """Yield a sentence for each problem of a request, whose recommended settings are filled in."""
    yield from _without_effect(request, facts)
    if request.sections is None:  # otherwise the conditions of each section are checked
        yield from condition_problems(request.conditions, facts)
    yield from _lengths(request, facts)
    yield from _guidance(request, facts)
    yield from _sources(request, facts)
    if facts.objective is not None:
        yield from _mode(request, facts)
        yield from _loop(request, facts)
        yield from _sections(request, facts)
        yield from _sampling(request, facts)
    for name, source in {**request.audio_sources, **audio_conditions(request.conditions, facts)}.items():
        if isinstance(source, str | Path):
            yield from _unreadable(name, Path(source))


def with_recommended(request: GenerationRequest, facts: ModelFacts) -> GenerationRequest:
    """Fill in recommended steps, sampler and guidance where the request omits them."""
    usual = facts.recommended
    if usual is None or facts.objective is None:
        return request
    sampler, scale = usual.sampler_type, usual.cfg_scale if facts.inputs else None
    if request.mode == "interpolate":  # by the sampler that has a way back to the noise, which guidance has not
        sampler, scale = facts.objective.invertible_sampler, None
    return replace(
        request,
        steps=usual.steps if request.steps is None else request.steps,
        sampler_type=request.sampler_type or sampler,
        cfg_scale=scale if request.cfg_scale is None else request.cfg_scale,
    )


def with_lengths(request: GenerationRequest, facts: ModelFacts) -> GenerationRequest:
    """Add the length to the conditions of models that read it, where it is missing."""
    asked = facts.window_seconds if request.seconds is None or request.mode is not None else request.seconds
    missing = {}
    for key, value in (("seconds_start", 0), ("seconds_total", asked)):
        if key in facts.keys and key not in request.conditions and math.isfinite(value):
            missing[key] = math.ceil(value) if facts.input_of(key).kind == "integer" else value
    return replace(request, conditions={**request.conditions, **missing}) if missing else request


def condition_problems(values: Mapping[str, Any], facts: ModelFacts) -> Iterator[str]:
    """Yield a sentence for each condition that the model does not take or misses."""
    for key, value in values.items():
        kind = facts.input_of(key).kind
        if key not in facts.keys:
            yield f"{key}: unknown key; {nearest(key, facts.keys)}"
        elif isinstance(value, int) and abs(value) > (most := _LARGEST.get(kind, math.inf)):
            yield f"{key}: is out of range; write a number between {-most:.0e} and {most:.0e}"
        elif not _fits(kind, value):
            yield f"{key}: expected {_WORDS[kind]}, got {show(value)}"
    for id in facts.inputs:
        chain = [id]
        while chain[-1] not in values and facts.stand_ins.get(chain[-1]) not in (None, *chain):
            chain.append(facts.stand_ins[chain[-1]])
        if chain[-1] not in values:
            yield f"{id}: missing; the model needs {_WORDS[facts.inputs[id].kind]}"


def doubts(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    """Yield a warning for each value that the model may not handle well: long lengths, unknown names."""
    length = requested_seconds(request.conditions)
    if length is not None and facts.window is not None and length > math.ceil(facts.window_seconds):
        yield f"seconds_total: asks for {length:g} s, and the model generates the first {facts.window_seconds:.2f} s"
    for key, value in request.conditions.items():
        options = facts.input_of(key).options
        if options and value not in options:
            yield f"{key}: the model was not trained with {show(value)}; {nearest(str(value), options)}"


def requested_seconds(conditions: Mapping[str, Any]) -> float | None:
    """Return the length between `seconds_start` and `seconds_total`; None if there is none."""
    total, start = conditions.get("seconds_total"), conditions.get("seconds_start", 0)
    if not isinstance(total, int | float) or not isinstance(start, int | float):
        return None
    try:
        return float(total - start)
    except OverflowError:  # an integer beyond all lengths
        return math.inf


def file_seconds(request: GenerationRequest) -> float | None:
    """Return the length that a file is cut to; None leaves it whole."""
    if request.sections is not None:
        return None
    if request.seconds is not None:
        return None if request.mode is not None else request.seconds
    if request.clip_length is True:
        # Audio that is kept has a length itself.
        return None if request.inpaint_audio is not None else requested_seconds(request.conditions)
    return request.clip_length or None


def audio_conditions(conditions: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """Return the conditions that are audio."""
    return {key: value for key, value in conditions.items() if facts.input_of(key).kind == "audio"}


def _fits(kind: InputKind, value: Any) -> bool:
    if kind in ("text", "choice"):
        return isinstance(value, str)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return value is not None


def _without_effect(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    """Fields that this model, or this request, has no use for."""
    for name in given_fields(request):
        about = OPTIONS[name]
        if about.suits != "every" and not facts.suits(about.suits):
            yield _unsuited(name, facts)
        elif about.modes and request.mode not in about.modes:
            if request.mode is None:
                yield f"{name}: needs mode, which says what to do with the audio"
            else:
                yield f"{name}: is for the mode {' and '.join(about.modes)}, not for {request.mode!r}"


def _unsuited(name: str, facts: ModelFacts) -> str:
    kind = f"this is a model of type {facts.model_type!r}"
    if name == "negative_prompt":
        return _no_prompt(facts)
    if name == "cfg_scale":
        return "cfg_scale: this model has no conditions to guide by; leave it out"
    if name == "inpaint_audio":
        instead = "; it continues init_audio" if facts.use == "language model" else ""
        return f"inpaint_audio: this model cannot inpaint{instead}, for {kind}"
    return f"{name}: is for {SUITABLE[OPTIONS[name].suits]}, and {kind}; leave it out"


def _no_prompt(facts: ModelFacts) -> str:
    return f"negative_prompt: this model takes no prompt; it takes {', '.join(facts.keys) or 'no conditions'}"


def _lengths(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    length = requested_seconds(request.conditions)
    if length is not None and not length > 0:
        yield f"seconds_total: is {length:g} s after seconds_start; expected more than 0 seconds"
    elif length is not None and isinstance(request.clip_length, bool) and not (request.seconds or request.sections):
        yield from _beyond_window(length, "seconds_total", facts, math.ceil(facts.window_seconds))
    if request.mode is not None:
        if request.clip_length is not None:
            yield f"clip_length: the mode {request.mode!r} says how long files are; leave it out"
        return
    has_length = request.seconds is not None or request.sample_size is not None
    if facts.window is None and facts.use != "codec" and not has_length:
        yield "seconds: missing; the model's config names no sample_size, so say how long"
    if request.seconds is not None:
        # Two digits are what messages and sliders show of a window.
        yield from _beyond_window(request.seconds, "seconds", facts, round(facts.window_seconds + 0.005, 2))
        if request.sample_size is not None and request.seconds * facts.sample_rate > request.sample_size:
            limit = request.sample_size / facts.sample_rate
            yield f"seconds: is {request.seconds:g} s, and sample_size is only {limit:g} s"
    if request.clip_length is not None and not isinstance(request.clip_length, bool):
        yield from _beyond_window(request.clip_length, "clip_length", facts, math.ceil(facts.window_seconds))


def _beyond_window(seconds: float, name: str, facts: ModelFacts, longest: float) -> Iterator[str]:
    """Lengths in conditions are whole seconds, rounded up, so the last one may reach beyond the window."""
    if not seconds > 0 or math.isinf(seconds):
        yield f"{name}: expected more than 0 seconds, got {seconds:g}"
    elif seconds * facts.sample_rate < 1:
        yield f"{name}: is {seconds:g} s, less than a sample; ask for more"
    elif seconds > longest:
        yield f"{name}: is {seconds:g} s, and the model makes at most {facts.window_seconds:.2f} s; ask for less"


def _loop(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    """Loops, which are closed by inpainting."""
    if not request.loop:
        return
    if facts.window is None:
        yield "loop: the model's config names no sample_size, the length of a window"
    if request.keep_latents:
        yield "keep_latents: a loop is not decoded from its latents alone; remove it"
    if request.inpaint_bands is not None:
        yield "loop: cannot be given together with inpaint_bands; keep one of them"


def _sections(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    """Parts of a long piece."""
    if request.sections is None:
        return
    if facts.window is None:
        yield "sections: the model's config names no sample_size, the length of a window"
    for name in ("mode", "seconds", "init_audio", "inpaint_audio", "sample_size"):
        if getattr(request, name) is not None:
            yield f"{name}: the sections say what is generated and how long it is; leave it out"
    if request.keep_latents:
        yield "keep_latents: a piece of sections is not decoded from its latents alone; remove it"
    if not request.sections:
        yield "sections: the list is empty; write at least one part with its seconds"
    total = 0.0
    for number, section in enumerate(map(Section.read, request.sections)):
        seconds = section.seconds
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds <= LATEST:
            allowed = f"more than 0 and at most {LATEST:g} seconds"
            yield f"sections[{number}].seconds: expected {allowed}, got {show(seconds)}"
        else:
            total += seconds
        for problem in condition_problems({**request.conditions, **dict(section.conditions)}, facts):
            yield f"sections[{number}].{problem}"
    if total > LATEST:
        yield f"sections: last {total:g} s in all, more than {LATEST:g} s; write shorter ones"


def _guidance(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    if request.cfg_interval is not None:
        low, high = request.cfg_interval
        if not 0 <= low <= 1 or not 0 <= high <= 1:
            yield f"cfg_interval: expected two noise levels from 0 to 1, got {low:g} and {high:g}"
        elif low > high:
            yield f"cfg_interval: guidance runs from noise level {low:g} to {high:g}; exchange the two"
    if request.negative_prompt is not None and facts.suits(OPTIONS["negative_prompt"].suits):
        if "prompt" not in facts.keys:
            yield _no_prompt(facts)
        elif request.mode == "interpolate":
            yield "negative_prompt: has no meaning between two clips; leave it out"
        elif request.cfg_scale in (None, 1):
            yield "negative_prompt: has no effect without guidance; ask for a cfg_scale above 1, or leave it out"


def _sources(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    """Audio that is missing, or of which there is too much."""
    if facts.is_codec and request.init_audio is None:
        yield "init_audio: missing; an autoencoder makes nothing by itself, so give the audio to pass through it"
    about_audio = ("init_audio", "init_noise_level", "inpaint_audio", "inpaint", "inpaint_bands")
    given = [name for name in about_audio if getattr(request, name) is not None]
    if request.mode is not None and given:
        yield f"{given[0]}: mode {request.mode!r} says what the audio is; leave one of them out"
        given = []
    for name, needed in (
        ("init_noise_level", "init_audio"),
        ("inpaint", "inpaint_audio"),
        ("inpaint_bands", "inpaint_audio"),
    ):
        if name in given and needed not in given:
            yield f"{name}: has no effect without {needed}; give that too, or leave it out"
    if request.inpaint is not None and request.inpaint_bands is not None:
        yield "inpaint_bands: inpaint is given too; keep one of them"
    if request.inpaint_bands is not None and facts.inpaints:
        yield "inpaint_bands: this model inpaints by time alone; give inpaint instead"
    for name, spans in (("inpaint", request.inpaint), ("spans", request.spans)):
        for start, end in spans or ():
            if not 0 <= start < end < math.inf:
                yield f"{name}: a span is [start, end] in seconds with 0 <= start < end, got [{start:g}, {end:g}]"
            elif end > LATEST:
                yield f"{name}: [{start:g}, {end:g}] is beyond {LATEST:g} s"


def _mode(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    """Settings of the modes, which work on audio of any length."""
    if request.mode is None:
        return
    if request.audio is None:
        yield f"audio: missing; the mode {request.mode!r} needs the audio to work on"
    needed = _NEEDED.get(request.mode)
    if needed is not None and getattr(request, needed) is None:
        yield f"{needed}: missing; the mode {request.mode!r} needs it"
    if request.seconds is not None and request.mode != "outpaint":
        yield f"seconds: the mode {request.mode!r} leaves the length as it is; leave it out"
    if request.keep_latents:
        yield f"keep_latents: audio of mode {request.mode!r} is not decoded from its latents alone; remove it"
    if facts.window is None:
        yield "mode: the model's config names no sample_size, the length of a window"
    elif request.overlap is not None and not request.overlap < facts.window_seconds:
        window = f"{facts.window_seconds:.2f} s"
        yield f"overlap: expected more than 0 and less than the model's {window}, got {request.overlap:g}"
    if request.mode == "interpolate":
        for name in ("keep_exact", "crossfade_seconds"):
            if getattr(request, name) is not None:
                yield f"{name}: has no meaning when clips are interpolated; leave it out"
        if request.eta:
            yield "eta: interpolation draws no fresh noise; remove it"


def _sampling(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    """The sampler, and settings that it does not use."""
    assert facts.objective is not None
    name = request.sampler_type
    if name is None:
        return
    way_back = facts.objective.invertible_sampler
    if request.mode == "interpolate" and name != way_back:
        yield f"sampler_type is {name!r}, and only {way_back!r} can be followed back to the noise"
        return
    try:
        sampler = find_sampler(name, facts.objective)
        sampler.check_eta(request.eta, name)
    except ValueError as error:
        yield str(error)
        return
    level = request.noise_level if request.mode is not None else request.init_noise_level
    if level is not None and level > 1 and not sampler.starts_by_ratio:
        yield f"noise level: is {level:g}, and for the sampler {name!r} 1 is all noise; ask for less"
    for limit in ("sigma_min", "sigma_max"):
        if getattr(request, limit) is not None and not sampler.starts_by_ratio:
            yield f"{limit}: the sampler {name!r} does not use it; leave it out"


def _unreadable(name: str, path: Path) -> Iterator[str]:
    """Why a file cannot be read as audio."""
    if not path.is_file():
        yield f"{name}: no such file {str(path)!r}"
        return
    try:
        if audio_io.info(path).frames == 0:
            yield f"{name}: {path} holds no audio"
    except AudioError as error:
        yield f"{name}: {error}"
