"""The shipped tiny models, made smaller still, with random weights in a file."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

import stable_audio_tools
from stable_audio_tools.core.config import load, save
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_weights

CONFIGS = Path(stable_audio_tools.__file__).parent / "configs" / "model_configs"


class SmallModel(NamedTuple):
    config: Path
    weights: Path


def small_model(name: str, folder: Path) -> SmallModel:
    """`small_model("tiny_lm", folder)`: config and weights of that shipped config, narrowed."""
    made = SmallModel(folder / f"{name}.json", folder / f"{name}.safetensors")
    if made.weights.exists():
        return made
    config = narrowed(load(next(CONFIGS.rglob(f"{name}.json"))))
    save(config, made.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():  # what begins at zero would hide most of the network
                if not parameter.any():
                    parameter.normal_(0, 0.02)
    save_weights(model, made.weights, model_config=config)
    return made


def narrowed(node: Any) -> Any:
    """A config with the same parts, less wide, and a window of a third of a second."""
    smaller = {"sample_size": 8192, "embed_dim": 32, "depth": 1, "num_heads": 2, "dim_heads": 16}
    if not isinstance(node, dict):
        return [narrowed(entry) for entry in node] if isinstance(node, list) else node
    made = {key: narrowed(value) for key, value in node.items()}
    if made.get("type") == "oobleck":
        made["config"] |= {"channels": 4}
    if made.get("type") == "DAU1d" and "io_channels" in made["config"]:
        made["config"] |= {"depth": 3, "channels": [8, 8, 8], "strides": [4, 4], "n_attn_layers": 0}
    is_transformer = "embed_dim" in made
    return {
        key: smaller[key] if key == "sample_size" or (is_transformer and key in smaller) else value
        for key, value in made.items()
    }
