"""What the pages ask follows the model: one control per condition, samplers and defaults by objective."""

import math
from typing import Any

import pytest
import torch

from stable_audio_tools.inference.generation.facts import Recommended
from stable_audio_tools.interface.controls import request_from, sampler_controls
from stable_audio_tools.interface.pages import pages_of

EVERY = [
    "prompted",
    "tiny_diffusion_cond",
    "tiny_diffusion_cond_inpaint",
    "tiny_diffusion_uncond",
    "tiny_autoencoder",
    "tiny_codec",
    "tiny_diffusion_autoencoder",
    "tiny_lm",
]


def controls_of(model: Any) -> dict[str, Any]:
    return {control.name: control for control in pages_of(model)[0].controls}


def test_every_kind_of_condition_has_its_widget(loaded: Any) -> None:
    prompt = controls_of(loaded("prompted"))
    assert prompt["prompt"].kind == "prompt" and prompt["negative_prompt"].kind == "prompt"
    assert (prompt["seconds_total"].kind, prompt["seconds_total"].maximum) == ("slider", 1)
    listed = controls_of(loaded("tiny_diffusion_cond"))
    assert listed["sound"].kind == "choice"
    assert listed["sound"].choices == ("drums", "bass", "chords", "rain", "bells")
    assert "negative_prompt" not in listed


def test_defaults_are_those_of_the_other_ways_to_generate(loaded: Any) -> None:
    v = {control.name: control.default for control in sampler_controls(loaded("prompted").facts)}
    assert v == {"steps": 100, "sampler_type": "dpmpp-3m-sde", "sigma_min": 0.3, "sigma_max": 500, "rho": 1}
    flow = controls_of(loaded("tiny_diffusion_cond"))
    assert (flow["steps"].default, flow["sampler_type"].default, flow["cfg_scale"].default) == (50, "euler", 7)
    assert flow["sampler_type"].choices == ("euler", "rk4", "dpmpp", "pingpong")


@pytest.mark.parametrize("name", EVERY)
def test_defaults_are_a_valid_request(loaded: Any, name: str) -> None:
    """Every page generates with its defaults, but for the number of steps and the audio that it needs."""
    model = loaded(name)
    for page in pages_of(model):
        values = {control.name: control.default for control in page.controls}
        for control in page.controls:
            if control.kind == "audio" and control.name in ("init_audio", "inpaint_audio"):
                values[control.name] = (model.sample_rate, torch.zeros(2, 4096))
            if control.minimum is not None:
                assert control.minimum <= control.default <= (control.maximum or math.inf), control
        if "steps" in values:
            values["steps"] = 1
        assert torch.isfinite(model.generate(**page.request(values)).audio).all()


def test_what_a_backbone_does_by_itself_is_not_asked_of_it(loaded: Any) -> None:
    model = loaded("tiny_diffusion_cond")
    page = pages_of(model)[0]
    values = {control.name: control.default for control in page.controls}
    plain = request_from(model, values)
    assert not {"cfg_interval", "scale_phi", "sigma_min", "init_audio"} & set(plain)
    asked = request_from(model, {**values, "cfg_interval_min": 0.2, "cfg_rescale": 0.5})
    assert asked["cfg_interval"] == (0.2, 1) and asked["scale_phi"] == 0.5


def test_steps_of_a_few_step_model() -> None:
    from stable_audio_tools.inference.generation.facts import ModelFacts
    from stable_audio_tools.models.diffusion.objectives import parse_objective

    facts = ModelFacts("diffusion_cond", 44100, 65536, parse_objective("rf_denoiser"))
    assert facts.recommended == Recommended(8, 1.0, "pingpong")
    assert [control.default for control in sampler_controls(facts)] == [8, "pingpong"]


@pytest.mark.parametrize("name", ["tiny_autoencoder", "tiny_lm", "tiny_diffusion_uncond"])
def test_missing_audio_is_told(loaded: Any, name: str) -> None:
    page = pages_of(loaded(name))[0]
    values = {control.name: control.default for control in page.controls} | {"use_init": True}
    with pytest.raises(ValueError, match="there is no audio"):
        page.request(values)


def test_inpainting_keeps_songs_that_are_longer_than_the_window(loaded: Any) -> None:
    """Spans anywhere in it, and its continuation; what is not marked stays sample by sample."""
    model = loaded("tiny_diffusion_cond_inpaint")
    page = next(page for page in pages_of(model) if page.api_name == "inpaint")
    song = 0.2 * torch.randn(2, 3 * 8192, generator=torch.Generator().manual_seed(0))
    values = {control.name: control.default for control in page.controls} | {"steps": 1, "seed": 1}
    values["inpaint_audio"] = (model.sample_rate, song)
    made = model.generate(**page.request({**values, "spans": "0.9-1.0"})).audio[0]
    start, end = round(0.88 * model.sample_rate), round(1.02 * model.sample_rate)
    assert made.shape == song.shape and not torch.allclose(made[:, start:end], song[:, start:end], atol=1e-3)
    assert torch.equal(made[:, :start], song[:, :start]) and torch.equal(made[:, end:], song[:, end:])
    with pytest.raises(ValueError, match="goes past the end of the audio"):
        model.generate(**page.request({**values, "spans": "1.2-1.3"}))
    for seconds, frames in ((0, 3 * 8192 + 4096), (0.3, 3 * 8192 + 6615)):
        longer = model.generate(**page.request({**values, "continue_seconds": seconds})).audio[0]
        assert longer.shape == (2, frames) and torch.equal(longer[:, : 2 * 8192], song[:, : 2 * 8192])
    short = {**values, "inpaint_audio": (model.sample_rate, song[:, :1000])}
    assert model.generate(**page.request(short)).audio.shape[-1] == 8192
    assert model.generate(**page.request({**short, "continue_seconds": 0.1})).audio.shape[-1] == 1000 + 2205
    assert model.generate(**page.request({**short, "continue_seconds": 0.6})).audio.shape[-1] == 1000 + 13230
