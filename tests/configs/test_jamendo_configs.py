"""The three configs of the Jamendo guide train different things, and hold the same model."""

from pathlib import Path

import pytest
import torch

import stable_audio_tools
from stable_audio_tools.core.config import load
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training.factory import (
    check_training_config,
    create_demo_callback_from_config,
)

FOLDER = Path(stable_audio_tools.__file__).parent / "configs" / "model_configs" / "txt2audio"


def trainable(name: str) -> set[str]:
    with torch.device("meta"):
        model = create_model_from_config(load(FOLDER / f"{name}.json"))
    names = {key for key, value in model.named_parameters() if value.requires_grad}
    return {".".join(key.split(".")[:3]) if key.startswith("pretransform") else key.split(".")[0] for key in names}


def test_full_trains_what_the_fork_trains() -> None:
    """The decoder gets no gradient from the diffusion loss and is frozen: distributed training would refuse it."""
    assert trainable("jamendo_full") == {"model", "conditioner"}
    assert trainable("jamendo_full_encoder") == {"model", "conditioner", "pretransform.model.encoder"}
    assert trainable("jamendo_freeze_vae") == {"model", "conditioner"}


def test_they_hold_one_model() -> None:
    shapes = []
    for name in ("jamendo_full", "jamendo_full_encoder", "jamendo_freeze_vae", "jamendo_lora", "stable_audio_open_1_0"):
        with torch.device("meta"):
            state = create_model_from_config(load(FOLDER / f"{name}.json")).state_dict()
        shapes.append({key: tuple(value.shape) for key, value in state.items()})
    assert all(shape == shapes[0] for shape in shapes)


def test_demos_can_be_switched_off() -> None:
    config = load(FOLDER / "jamendo_freeze_vae.json")
    config["training"]["demo"]["enabled"] = False
    assert create_demo_callback_from_config(config) is None
    config["training"]["demo"]["enabled"] = "no"
    with pytest.raises(ConfigError, match=r"training.demo.enabled: expected true or false, got 'no'"):
        check_training_config(config)
