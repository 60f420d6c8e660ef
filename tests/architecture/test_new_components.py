"""One file adds a component: what a temporary module registers is found by checks, requests, the app and the tables."""

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from support.small_diffusion import make, model_config

from stable_audio_tools.core.config import registry
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.dataset import check_dataset_config, contents_of
from stable_audio_tools.inference.generation.facts import facts_of
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.sampling.samplers import samplers_for
from stable_audio_tools.training.checks import wrong_kind
from stable_audio_tools.training.factory import check_training_config

MODULE = '''
from typing import Annotated, Any

import torch
from pydantic import Field

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.autoencoders.factory import autoencoder_facts
from stable_audio_tools.models.conditioners.base import Condition, Conditioner, as_token, reads
from stable_audio_tools.models.diffusion.objectives import FlowObjective, Recommended


@register("conditioner", "weather", facts=reads("choice"))
class WeatherConditioner(Conditioner):
    """The weather of a scene."""

    def __init__(
        self, options: Annotated[list[str], Field(description="kinds of weather")], *, cond_dim: Runtime[int]
    ) -> None:
        super().__init__(dim=4, cond_dim=cond_dim)
        self.options = options

    def encode(self, values: Any) -> Condition:
        return as_token(self.project(torch.zeros(len(values), self.dim)))


@register("conditioner", "motif", facts=reads("audio"))
class MotifConditioner(WeatherConditioner):
    """A motif to follow."""


@register("objective", "steep_flow")
class SteepFlow(FlowObjective):
    """A flow that wants many steps."""

    name = "steep_flow"
    recommended = Recommended(123, 2.5, "rk4")


@register("dataset", "field_notes", facts=lambda config: {"holds": "latents"})
def field_notes(datasets: Annotated[list[str], Field(description="where the notes are")]) -> None:
    """Latents of field recordings."""


@register("model", "echo", facts=autoencoder_facts)
def build_echo(latent_dim: int, downsampling_ratio: int, io_channels: int = 2) -> torch.nn.Module:
    """A model that passes audio through."""
    return torch.nn.Identity()
'''
ADDED = {
    "conditioner": ("weather", "motif"),
    "objective": ("steep_flow",),
    "dataset": ("field_notes",),
    "model": ("echo",),
}


@pytest.fixture(scope="module", autouse=True)
def components(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "new_components_of_a_test.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    for kind in ADDED:
        registry.components(kind)  # the package's own come first
    import_module("new_components_of_a_test")
    yield
    sys.path.remove(str(folder))
    for kind, tags in ADDED.items():
        for tag in tags:
            del registry._COMPONENTS[kind][tag]


def config() -> dict[str, Any]:
    config = model_config({"type": "steep_flow"})
    config["model"]["conditioning"]["configs"] = [
        {"id": "sky", "type": "weather", "config": {"options": ["rain", "sun"]}},
        {"id": "motif", "type": "motif", "config": {"options": []}},
    ]
    config["model"]["diffusion"] |= {"cross_attention_cond_ids": ["sky", "motif"], "global_cond_ids": ["sky"]}
    return config


def test_checks_of_configs_and_requests_know_them() -> None:
    facts = facts_of(config())
    assert {key: value.kind for key, value in facts.inputs.items()} == {"sky": "choice", "motif": "audio"}
    assert facts.inputs["sky"].options == ("rain", "sun")
    broken = config()
    broken["model"]["conditioning"]["configs"][0]["config"] = {"option": []}
    with pytest.raises(ConfigError, match="option: unknown key"):
        facts_of(broken)


def test_an_objective_brings_its_samplers_and_its_settings() -> None:
    facts = facts_of(config())
    assert facts.objective is not None and facts.recommended is not None
    assert facts.recommended.steps == 123
    assert samplers_for(facts.objective) == samplers_for("rectified_flow")


def test_a_model_generates_with_them() -> None:
    model = AudioModel(make(config()), config(), "cpu")
    result = model.generate(conditions={"sky": "rain", "motif": torch.zeros(2, 256)}, steps=1, seed=1)
    assert result.audio.shape[-1] == 256


def test_the_app_shows_their_controls() -> None:
    from stable_audio_tools.interface.pages import pages_of

    controls = {control.name: control for control in pages_of(AudioModel(make(config()), config(), "cpu"))[0].controls}
    assert controls["sky"].kind == "choice" and controls["sky"].choices == ("rain", "sun")
    assert controls["motif"].kind == "audio"
    assert controls["steps"].default == 123


def test_a_dataset_type_says_what_it_holds() -> None:
    dataset = {"dataset_type": "field_notes", "datasets": ["notes"]}
    assert check_dataset_config(dataset).type == "field_notes"
    assert contents_of(dataset) == "latents"
    section = check_training_config({**model_config(), "training": {"learning_rate": 1e-4}})
    (problem,) = wrong_kind("training.pre_encoded", section, "data.json", dataset)
    assert problem.startswith(
        "training.pre_encoded: is false, but data.json: dataset_type: 'field_notes' holds latents"
    )


def test_a_model_type_is_used_as_its_facts_say() -> None:
    body = {"latent_dim": 2, "downsampling_ratio": 4}
    echo = {"model_type": "echo", "sample_rate": 8000, "sample_size": 64, "model": body}
    facts = facts_of(echo)
    assert facts.is_codec and facts.window is None and not facts.has_steps


def test_the_reference_tables_list_them() -> None:
    from make_reference import pages

    text = "\n".join(pages().values())
    for sentence in ("The weather of a scene.", "A flow that wants many steps.", "Latents of field recordings."):
        assert sentence in text
