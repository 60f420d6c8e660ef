"""The figures of stable-audio-tools 0.0.20 and Stable Audio 3, and the names of their full-size models."""

import json
from pathlib import Path

import pytest
import torch
from support import next_training_cases  # noqa: F401 - adds its cases
from support.next_cases import CASES
from support.parity_figures import check, state_shapes

from stable_audio_tools.models import create_model_from_config

HERE = Path(__file__).parent
OFFICIAL = sorted((HERE / "official_next").glob("*.keys.json"))


@pytest.mark.parametrize("name", sorted(CASES))
def test_figures(name: str) -> None:
    check(name, CASES[name], HERE / "golden_next")


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.name.split(".")[0])
def test_full_size_configs_have_the_published_tensors(path: Path) -> None:
    config = json.loads(path.with_name(path.name.replace(".keys.", ".config.")).read_text())
    with torch.device("meta"):
        assert state_shapes(create_model_from_config(config)) == json.loads(path.read_text())
