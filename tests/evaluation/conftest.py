"""Tiny models of the published kinds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small_models
from support.small_clap import small_clap, write_checkpoint, write_folder

from stable_audio_tools.core.config import load, save
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_weights


@pytest.fixture(scope="session")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_folder(small_clap(64), tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="session")
def clap_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(small_clap(64), tmp_path_factory.mktemp("laion"))


def caption_model_config() -> dict[str, Any]:
    """The narrowed tiny model, told a prompt out of five words."""
    config: dict[str, Any] = small_models.narrowed(load(next(small_models.CONFIGS.rglob("tiny_diffusion_cond.json"))))
    text = json.dumps(config).replace('"sound"', '"prompt"')
    renamed: dict[str, Any] = json.loads(text)
    return renamed


@pytest.fixture(scope="session")
def caption_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("model")
    config = caption_model_config()
    torch.manual_seed(0)
    made = create_model_from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    save(config, folder / "model.json")
    save_weights(made, folder / "model.safetensors")
    return folder / "model.json", folder / "model.safetensors"
