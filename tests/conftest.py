"""What tests of several folders need: the shipped tiny models, made smaller still, with weights in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import stable_audio_tools
from stable_audio_tools.config import load, save
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_weights

CONFIGS = Path(stable_audio_tools.__file__).parent / "configs" / "model_configs"


class SmallModel(NamedTuple):
    config: Path
    weights: Path


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SmallModel]:
    """`small_model("tiny_lm")`: config and weights of that shipped config, narrowed; seconds become tenths."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def make(name: str) -> SmallModel:
        if name not in made:
            config = narrowed(load(next(CONFIGS.rglob(f"{name}.json"))))
            made[name] = SmallModel(folder / f"{name}.json", folder / f"{name}.safetensors")
            save(config, made[name].config)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = create_model_from_config(config)
                with torch.no_grad():
                    for parameter in model.parameters():  # what begins at zero would hide most of the network
                        if not parameter.any():
                            parameter.normal_(0, 0.02)
            save_weights(model, made[name].weights, model_config=config)
        return made[name]

    return make


def narrowed(node: Any) -> Any:
    """A config with the same parts at an eighth of the width."""
    smaller = {"sample_size": 8192, "embed_dim": 32, "depth": 1, "num_heads": 2, "dim_heads": 16, "global_cond_dim": 32}
    if not isinstance(node, dict):
        return [narrowed(entry) for entry in node] if isinstance(node, list) else node
    made = {key: narrowed(value) for key, value in node.items()}
    if made.get("type") == "oobleck":
        made["config"] |= {"channels": 4}
    is_transformer = "embed_dim" in made
    return {
        key: smaller[key] if key == "sample_size" or (is_transformer and key in smaller) else value
        for key, value in made.items()
    }
