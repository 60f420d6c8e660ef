"""The same weights and seeds give the recorded numbers, and every state dict has the recorded names and shapes."""

import json
from pathlib import Path

import pytest
import torch
from support.parity_cases import CASES
from support.parity_figures import check, state_shapes

from stable_audio_tools.models import create_model_from_config

OFFICIAL = sorted((Path(__file__).parent / "official").glob("*.keys.json"))
SHIPPED = {path.stem: path for path in Path("stable_audio_tools/configs/model_configs").rglob("*.json")}


@pytest.mark.parametrize("name", sorted(CASES))
def test_figures(name: str) -> None:
    check(name, CASES[name])


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.name.split(".")[0])
def test_full_size_configs_have_the_published_tensors(path: Path) -> None:
    config = json.loads(SHIPPED[path.name.removesuffix(".keys.json")].read_text())
    with torch.device("meta"):
        assert state_shapes(create_model_from_config(config)) == json.loads(path.read_text())
