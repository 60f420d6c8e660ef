"""Controls of a page, independent of the UI library: one per condition of the model and per setting of the sampler.

The name of a control is also its keyword in the HTTP API.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

from stable_audio_tools.core.config import Part
from stable_audio_tools.inference.generation.facts import ModelFacts
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.request import FIELDS, OPTIONS
from stable_audio_tools.inference.sampling.samplers import find_sampler, samplers_for
from stable_audio_tools.models.factory import check_model_config

Values = Mapping[str, Any]  # the values of a page's controls, by name
Arguments = dict[str, Any]  # keywords of `AudioModel.generate`
ControlKind = Literal["text", "prompt", "number", "integer", "slider", "choice", "switch", "audio", "spans", "areas"]


@dataclass(frozen=True)
class Control:
    """An input of a page; `of` names the audio control that a control of spans or areas belongs to."""

    name: str
    kind: ControlKind
    label: str
    default: object = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    info: str = ""
    of: str = ""


@dataclass(frozen=True)
class Group:
    """Controls shown together; a group with a title can be collapsed."""

    controls: tuple[Control, ...]
    title: str = ""
    is_open: bool = False


def control_of(name: str, default: object = None, /, **changes: Any) -> Control:
    """Return the control of a field of `GenerationRequest`, with some attributes of the control replaced."""
    declared = OPTIONS[name].control
    assert declared is not None, f"{name} has no control"
    about = declared._asdict()
    default = FIELDS[name].default if default is None else default
    return replace(Control(name, about.pop("kind"), about.pop("label"), default, **about), **changes)


LENGTH = "seconds_total"
CUT = Control(
    "cut_to_length", "switch", "Cut to the requested length", True, info="Off: return the model's whole window."
)
SEED = control_of("seed", -1)
NUM_SAMPLES = control_of("num_samples")
LOOP = Control("loop", "switch", "Close as a loop", False, info="The audio can be repeated without a seam.")
PREVIEW_EVERY = Control(
    "preview_every", "slider", "Preview every (steps)", 0, 0, 50, 1, info="Spectrograms during sampling; 0 shows none."
)


def condition_controls(model: AudioModel) -> tuple[Control, ...]:
    """Return one control per condition of a model, then one for the length if no condition sets it."""
    _, part = check_model_config(model.config)
    conditioning = getattr(part.config, "conditioning", None)
    nodes = [] if conditioning is None else conditioning.configs
    by_name = {control.name: control for control in (_of_condition(node, model.facts) for node in nodes)}
    controls = list(by_name.values())
    controls.sort(key=lambda control: control.kind not in ("prompt", "choice"))
    if LENGTH in by_name:
        return (*controls, CUT)
    longest = model.facts.window_seconds
    if math.isinf(longest):
        return tuple(controls)
    shown = round(longest, 2)
    seconds = Control("seconds", "slider", "Seconds", shown, min(0.1, shown), shown, 0.01 if shown < 5 else 0.1)
    return (*controls, seconds)


def guidance_controls(model: AudioModel) -> tuple[Control, ...]:
    """Return the controls of classifier-free guidance."""
    recommended = model.facts.recommended
    assert recommended is not None
    scale = control_of("cfg_scale", recommended.cfg_scale)
    backbone = check_model_config(model.config)[1].config.diffusion.type
    if backbone == "adp_1d":
        return (scale,)
    return (
        scale,
        Control("cfg_interval_min", "slider", "Guidance from noise level", 0.0, 0, 1, 0.01),
        Control("cfg_interval_max", "slider", "Guidance to noise level", 1.0, 0, 1, 0.01),
        control_of("scale_phi", RESCALE.get(backbone, 0.0), name="cfg_rescale"),
    )


RESCALE = {"adp_cfg_1d": 0.4}  # default of backbones whose default is not 0


def sampler_controls(facts: ModelFacts) -> tuple[Control, ...]:
    """Return the controls of steps, sampler and noise levels for the objective of a model."""
    recommended, objective = facts.recommended, facts.objective
    assert recommended is not None and objective is not None
    sampler = Control(
        "sampler_type", "choice", "Sampler", recommended.sampler_type, choices=tuple(samplers_for(objective))
    )
    controls = (control_of("steps", recommended.steps), sampler)
    if not find_sampler(recommended.sampler_type, objective).starts_by_ratio:
        return controls
    limits = [control_of(name, getattr(recommended, name)) for name in ("sigma_min", "sigma_max")]
    return (*controls, *limits, control_of("rho", 1.0))


def variation_group(facts: ModelFacts) -> Group:
    """Return the controls that start from audio instead of noise; off by default."""
    recommended, objective = facts.recommended, facts.objective
    assert recommended is not None and objective is not None
    ratio = find_sampler(recommended.sampler_type, objective).starts_by_ratio
    level = Control(
        "init_noise_level",
        "slider",
        "Noise added",
        1.0 if ratio else 0.5,
        0.01,
        100 if ratio else 1,
        0.01,
        info="Higher values change the audio more.",
    )
    use = Control("use_init", "switch", "Start from audio", False, info="Off: the audio below has no effect.")
    audio = Control("init_audio", "audio", "Audio to vary")
    return Group((use, audio, level), "Variation of audio")


def request_from(model: AudioModel, values: Values) -> Arguments:
    """Return keywords of `AudioModel.generate` for the controls that pages share; a page adds its own."""
    shared = ("seed", "num_samples", "steps", "cfg_scale")
    arguments: Arguments = {name: values[name] for name in shared if name in values}
    conditions = {key: values[key] for key in model.conditions if values.get(key) is not None}
    arguments["conditions"] = conditions
    if values.get("cut_to_length"):
        arguments["clip_length"] = float(conditions[LENGTH])
    if "seconds" in values:
        # The slider shows the window rounded; its maximum means the whole window.
        arguments["seconds"] = None if values["seconds"] >= round(model.facts.window_seconds, 2) else values["seconds"]
    if values.get("loop"):
        arguments["loop"] = True
    if values.get("negative_prompt"):
        arguments["negative_prompt"] = values["negative_prompt"]
    if values.get("use_init"):
        if values.get("init_audio") is None:
            raise ValueError("Start from audio is on, but there is no audio; add some, or switch it off")
        arguments |= {"init_audio": values["init_audio"], "init_noise_level": values["init_noise_level"]}
    return arguments | _sampling(model, values)


def _sampling(model: AudioModel, values: Values) -> Arguments:
    """Return the sampling options that differ from what the backbone does by default."""
    objective = model.facts.objective
    if objective is None:
        return {}
    options = {"sampler_type": values["sampler_type"]}
    if find_sampler(values["sampler_type"], objective).starts_by_ratio:
        options |= {name: values[name] for name in ("sigma_min", "sigma_max", "rho") if name in values}
    interval = (values.get("cfg_interval_min", 0.0), values.get("cfg_interval_max", 1.0))
    if interval != (0, 1):
        options["cfg_interval"] = interval
    if "cfg_rescale" in values:
        backbone = check_model_config(model.config)[1].config.diffusion.type
        if values["cfg_rescale"] != RESCALE.get(backbone, 0.0):
            options["scale_phi"] = values["cfg_rescale"]
    return options


def _of_condition(node: Part, facts: ModelFacts) -> Control:
    config, reads = node.config, facts.input_of(node.siblings.id)
    id = facts.stand_ins.get(node.siblings.id, node.siblings.id)  # conditions that read the same key share a control
    label = id.replace("_", " ").capitalize()
    if reads.kind == "choice":
        return Control(id, "choice", label, reads.options[0], choices=reads.options)
    if reads.kind in ("number", "integer"):
        return _number(Control(id, "slider", label), config, facts, whole=reads.kind == "integer")
    if reads.kind == "audio":
        return Control(id, "audio", label)
    return Control(id, "prompt", label, "", info="Describe the sound.")


def _number(control: Control, config: SimpleNamespace, facts: ModelFacts, whole: bool) -> Control:
    """Return a slider over the range of the conditioner; lengths end at the window of the model."""
    low, high, default = config.min_val, config.max_val, config.min_val
    is_time = control.name in (LENGTH, "seconds_start")
    if is_time and not math.isinf(facts.window_seconds):
        high = max(min(high, math.ceil(facts.window_seconds)), low + 1)
    if control.name == LENGTH:
        low, default = max(low, 0.1 if not whole else 1), high
    step = 1 if whole else (0.1 if is_time or high - low > 10 else (high - low) / 1000)
    return replace(control, default=default, minimum=low, maximum=high, step=step)
