"""A field of the request is declared once: flags, keys of prompt files, keywords, controls and manifests have it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.small_models import small_model

import stable_audio_tools
from stable_audio_tools.cli.generate import main as generate
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.settings import flag_of
from stable_audio_tools.inference.batch.plan import plan_batch
from stable_audio_tools.inference.batch.prompt_file import settings_of_leaves
from stable_audio_tools.inference.batch.run import describe
from stable_audio_tools.inference.generation.checks import validate, with_recommended
from stable_audio_tools.inference.generation.facts import ModelFacts
from stable_audio_tools.inference.generation.request import FIELDS, OPTIONS, GenerationRequest, given_fields
from stable_audio_tools.interface.controls import control_of
from stable_audio_tools.models.diffusion.objectives import V

# A value of each kind of field that differs from the default; None: the field has no flag.
VALUES: dict[str, Any] = {
    "negative_prompt": "hiss",
    "sampler_type": "euler",
    "seed": 7,
    "mode": "variation",
    "audio": "a.wav",
    "to_audio": "b.wav",
    "spans": "0.5-1,2-3",
    "format": "flac",
    "bits": 24,
}


def flag_values() -> dict[str, Any]:
    flagged = [name for name, about in OPTIONS.items() if about.group]
    return {name: VALUES.get(name, True if FIELDS[name].default is False else 2) for name in flagged}


def test_every_flag_reaches_its_field() -> None:
    values = flag_values()
    assert {"sigma_min", "eta", "clip_length", "keep_latents", "overlap", "num_samples"} <= set(values)
    words = ["--output-dir", "out"]
    for name, value in values.items():
        words += [flag_of(name)] if value is True else [flag_of(name), str(value)]
    request = generate.parse(words).request
    expected = {**values, "spans": ((0.5, 1.0), (2.0, 3.0))}
    assert given_fields(request) == expected
    published = ["--output-dir", "out", "--sample-steps", "9", "--n_sample_per_cond", "4"]
    assert given_fields(generate.parse(published).request) == {"steps": 9, "num_samples": 4, "seed": 0}


def test_without_flags_the_model_decides() -> None:
    assert given_fields(generate.parse(["--output-dir", "out"]).request) == {"seed": 0}


def test_a_bound_is_one_for_python_flags_and_files(tmp_path: Path) -> None:
    files = small_model("tiny_diffusion_cond", tmp_path)
    model = stable_audio_tools.load(files.config, files.weights, device="cpu")
    with pytest.raises(ValueError, match=r"^steps: expected 1 to 100000, got 0$"):
        model.generate(sound="rain", steps=0)
    with pytest.raises(ConfigError, match=r"^--steps: expected 1 to 100000, got 0$"):
        generate.parse(["--output-dir", "out", "--sample-steps", "0"])
    (tmp_path / "p.yaml").write_text("a: {sound: rain, seconds_total: 1, steps: 0}")
    with pytest.raises(ConfigError, match=r"p.yaml: a: steps: expected at least 1, got 0$"):
        plan_batch(tmp_path / "p.yaml", model.facts)


def test_keys_of_prompt_files_are_those_of_the_fields() -> None:
    keys = set(settings_of_leaves().model_fields)
    assert keys == {name for name, about in OPTIONS.items() if about.key} | {"sampler", "n_sample_per_cond"}


@pytest.mark.parametrize("name", [name for name, about in OPTIONS.items() if about.control is not None])
def test_controls_keep_within_the_bounds_of_their_field(name: str) -> None:
    control = control_of(name, 1)
    for value in (control.minimum, control.maximum):
        assert value is not None and OPTIONS[name].bound_broken_by(value) is None
    assert control.name == name and control.label


def test_what_changes_a_file_stands_in_its_settings(tmp_path: Path) -> None:
    files = small_model("tiny_diffusion_cond", tmp_path)
    model = stable_audio_tools.load(files.config, files.weights, device="cpu")
    plain = GenerationRequest(conditions={"sound": "rain"}, seed=1)
    values = {"steps": 3, "sigma_min": 0.2, "eta": 0.0, "temp": 0.0, "init_noise_level": 0.5, "rho": 2.0, "bits": 24}
    told = describe(model, dataclasses.replace(plain, **values))  # type: ignore[arg-type]
    assert told.items() >= values.items(), "also those that are 0"
    memory = describe(model, dataclasses.replace(plain, decode_frames=8, offload=True, format="flac"))
    assert memory == describe(model, plain)


def test_a_model_without_a_window_asks_for_the_length() -> None:
    facts = ModelFacts("diffusion_uncond", 8000, None, V)
    assert list(validate(with_recommended(GenerationRequest(), facts), facts)) == [
        "seconds: missing; the model's config names no sample_size, so say how long"
    ]
    for length in ({"seconds": 1.0}, {"sample_size": 8000}):
        request = GenerationRequest(**length)  # type: ignore[arg-type]
        assert not list(validate(with_recommended(request, facts), facts))
