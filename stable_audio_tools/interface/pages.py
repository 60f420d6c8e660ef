"""The pages of the app: one or more per kind of model, each a list of controls and a request made from their values."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.request import Span, parse_spans
from stable_audio_tools.interface.controls import (
    LOOP,
    NUM_SAMPLES,
    PREVIEW_EVERY,
    SEED,
    Arguments,
    Control,
    Group,
    Values,
    condition_controls,
    control_of,
    guidance_controls,
    request_from,
    sampler_controls,
    variation_group,
)
from stable_audio_tools.interface.inputs import LONGEST_SECONDS
from stable_audio_tools.interface.marks import keep_mask, mel_of, parse_areas
from stable_audio_tools.models.factory import ModelUse

_CODEC_STEPS = 100
_LOWEST_STRENGTH, _HIGHEST_STRENGTH = -1.0, 2.0  # of an adapter
_NEGATIVE_PROMPT = Control("negative_prompt", "prompt", "Negative prompt", "", info="What to avoid.")
_EDITED_AUDIO = Control("inpaint_audio", "audio", "Audio to edit")


@dataclass(frozen=True)
class Page:
    """One tab of the app; `request` turns the values of its controls into keywords of `AudioModel.generate`."""

    title: str
    action: str  # label of the button
    api_name: str
    groups: tuple[Group, ...]
    request: Callable[[Values], Arguments]
    shows_source: bool = False  # show pictures of the uploaded audio and of the result
    keeps_level: bool = False  # clip peaks above full scale, so that the unedited part keeps its level

    @property
    def controls(self) -> list[Control]:
        return [control for group in self.groups for control in group.controls]


def pages_of(model: AudioModel) -> list[Page]:
    """Return the pages of a model, the main one first, each with a slider per loaded adapter."""
    pages = [_FIRST_PAGE[model.facts.use](model)]
    if model.facts.inpaints:
        pages.append(_inpainting(model))
    if mel_of(model) is not None:
        pages.append(_spectrogram(model, pages[0]))
    return [_with_adapters(page, model) for page in pages]


# ------------------------------------------------------------------ main pages


def _text_to_audio(model: AudioModel) -> Page:
    """The page of a conditional diffusion model."""
    groups = (*_main_groups(model), variation_group(model.facts))
    return Page("Generate", "Generate", "generate", groups, partial(request_from, model))


def _main_groups(model: AudioModel) -> tuple[Group, ...]:
    conditions = list(condition_controls(model))
    if "prompt" in model.conditions:
        place = 1 + next((i for i, control in enumerate(conditions) if control.name == "prompt"), -1)
        conditions.insert(place, _NEGATIVE_PROMPT)
    return (
        Group(tuple(conditions)),
        Group((SEED, NUM_SAMPLES, *_looping(model))),
        Group((*sampler_controls(model.facts), PREVIEW_EVERY), "Sampling"),
        Group(guidance_controls(model), "Guidance"),
    )


def _looping(model: AudioModel) -> tuple[Control, ...]:
    """Return the switch for loops, which are closed within the window of a model."""
    return () if model.facts.window is None else (LOOP,)


def _unconditional(model: AudioModel) -> Page:
    """The page of an unconditional diffusion model."""
    groups = (
        Group((*condition_controls(model), SEED, NUM_SAMPLES, *_looping(model))),
        Group((*sampler_controls(model.facts), PREVIEW_EVERY), "Sampling"),
        variation_group(model.facts),
    )
    return Page("Generate", "Generate", "generate", groups, partial(request_from, model))


def _autoencoder(model: AudioModel) -> Page:
    """The page of an autoencoder; one that decodes by diffusion has steps."""
    steps = (control_of("steps", _CODEC_STEPS),) if model.facts.has_steps else ()
    groups = (Group((Control("init_audio", "audio", "Audio"),)), Group((*steps, SEED), "Settings"))

    def request(values: Values) -> Arguments:
        if values["init_audio"] is None:
            raise ValueError("there is no audio to pass through the autoencoder; upload or record some")
        return dict(values)

    return Page("Reconstruct", "Encode and decode", "process", groups, request, shows_source=True)


def _language_model(model: AudioModel) -> Page:
    """The page of a language model, which writes from the start or continues other audio."""
    conditions = list(condition_controls(model))
    if "prompt" in model.conditions:
        conditions.append(_NEGATIVE_PROMPT)
    use = Control("use_init", "switch", "Continue audio", False, info="Off: the audio below has no effect.")
    draws = [("temp", 1.0), ("top_k", 250), ("top_p", 0.0)]
    drawing = (*(control_of(name, value) for name, value in draws), control_of("cfg_scale", 1.0, maximum=15))
    groups = (
        Group(tuple(conditions)),
        Group((SEED, NUM_SAMPLES)),
        Group(drawing, "Drawing of codes"),
        Group((use, Control("init_audio", "audio", "Audio to continue")), "Continuation"),
    )

    def request(values: Values) -> Arguments:
        arguments = request_from(model, {**values, "use_init": False})
        if values["use_init"]:
            if values["init_audio"] is None:
                raise ValueError("Continue audio is on, but there is no audio; add some, or switch it off")
            arguments["init_audio"] = values["init_audio"]
        return arguments | {name: values[name] for name, _ in draws}

    return Page("Generate", "Generate", "generate", groups, request)


_FIRST_PAGE: dict[ModelUse, Callable[[AudioModel], Page]] = {
    "conditional diffusion": _text_to_audio,
    "unconditional diffusion": _unconditional,
    "codec": _autoencoder,
    "language model": _language_model,
}


# ------------------------------------------------------------------ editing


def _inpainting(model: AudioModel) -> Page:
    """The page that regenerates spans of audio of any length, or continues it."""
    spans = Control(
        "spans",
        "spans",
        "Regenerate (seconds)",
        "",
        info="Drag over the waveform, or write spans such as 0.5-1.2, 3-4. Empty: continue after the end.",
        of="inpaint_audio",
    )
    more = Control(
        "continue_seconds",
        "number",
        "Continue by (seconds)",
        0,
        0,
        LONGEST_SECONDS,
        info="Used without spans. 0: up to the model's window, or half a window more if the audio fills it.",
    )

    def request(values: Values) -> Arguments:
        rate, clip = _audio_to_edit(values)
        return _edit(
            request_from(model, values),
            (rate, clip),
            parse_spans(values["spans"]),
            float(values.get("continue_seconds") or 0),
            clip.shape[-1] / rate,
            model.facts.window_seconds,
        )

    groups = (Group((_EDITED_AUDIO, spans, more)), *_main_groups(model))
    return Page("Inpaint", "Inpaint", "inpaint", groups, request, shows_source=True, keeps_level=True)


def _audio_to_edit(values: Values) -> tuple[int, Tensor]:
    if values["inpaint_audio"] is None:
        raise ValueError("there is no audio to edit; upload some, or take one of your earlier runs")
    rate, clip = values["inpaint_audio"]
    return rate, clip


def _edit(
    arguments: Arguments, audio: tuple[int, Tensor], spans: list[Span], more: float, length: float, window: float
) -> Arguments:
    """Return keywords for one window, or for longer audio, whose length is then that of the audio."""
    lengthless = {name: value for name, value in arguments.items() if name not in ("clip_length", "seconds")}
    if spans:
        base = lengthless if length > window else arguments
        return base | {"inpaint_audio": audio, "inpaint": spans}
    if more == 0 and length < window:
        return arguments | {"inpaint_audio": audio}
    total = length + (more or window / 2)
    if total <= window:
        return lengthless | {"inpaint_audio": audio, "clip_length": total}
    overlap = {"overlap": length} if length < window / 4 else {}
    return lengthless | {"mode": "outpaint", "audio": audio, "seconds": total, **overlap}


def _spectrogram(model: AudioModel, main: Page) -> Page:
    """The page that regenerates areas of a spectrogram, with the controls of the main page except the variation."""
    mel = mel_of(model)
    assert mel is not None and model.facts.window is not None
    frames = model.facts.window // mel.downsampling_ratio
    areas = Control(
        "areas",
        "areas",
        "Regenerate (seconds:bands)",
        "",
        info="Draw rectangles on the spectrogram, or write areas such as 0.5-1.2:10-40, 2-3 (all bands).",
        of="inpaint_audio",
    )
    omitted = ("seconds", "use_init", "init_audio", "init_noise_level")
    groups = [
        replace(group, controls=tuple(control for control in group.controls if control.name not in omitted))
        for group in main.groups
    ]

    def request(values: Values) -> Arguments:
        rate, clip = _audio_to_edit(values)
        length, window = clip.shape[-1] / rate, model.facts.window_seconds
        if length > window + 0.01:
            raise ValueError(f"the audio lasts {length:.2f} s, but areas apply to {window:.2f} s; shorten it first")
        mask = keep_mask(parse_areas(values["areas"]), mel, frames)
        return request_from(model, values) | {"inpaint_audio": (rate, clip), "inpaint_bands": mask}

    return Page(
        "Spectrogram",
        "Regenerate",
        "spectrogram",
        (Group((_EDITED_AUDIO, areas)), *(group for group in groups if group.controls)),
        request,
        shows_source=True,
        keeps_level=True,
    )


# ------------------------------------------------------------------ adapters


def _with_adapters(page: Page, model: AudioModel) -> Page:
    """Return the page with a strength slider per adapter; unchanged if the model has none."""
    names: dict[str, str] = {}  # control -> adapter
    for adapter in model.adapters:
        word = "lora_" + re.sub(r"\W", "_", adapter)
        names[f"{word}_{len(names) + 1}" if word in names else word] = adapter
    if not names:
        return page
    sliders = []
    for control, name in names.items():
        strength = model.adapters[name].strength
        low, high = min(_LOWEST_STRENGTH, strength), max(_HIGHEST_STRENGTH, strength)
        sliders.append(Control(control, "slider", name, strength, low, high, 0.01))
    sliders[0] = replace(sliders[0], info="Strength of the adapter; 0 is the model without it.")

    def request(values: Mapping[str, object]) -> Arguments:
        arguments = page.request({name: value for name, value in values.items() if name not in names})
        return arguments | {"lora": {name: values[control] for control, name in names.items()}}

    group = Group(tuple(sliders), "Adapters", is_open=True)
    return replace(page, groups=(*page.groups, group), request=request)
