"""Files that a block may use although no earlier block creates them: small clips, and weights with random values."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from stable_audio_tools.core.config import load, save
from stable_audio_tools.data.example_clips import write_example_clips
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_weights
from support import small_models

EXAMPLE = Path(__file__).parents[2] / "example" / "models"


def clips(folder: Path) -> None:
    """`clips/`: one clip of each kind, with sidecars and metadata.jsonl; `clips.json`: the config that reads them."""
    write_example_clips(folder / "clips", per_class=1)
    save({"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": "clips"}]}, folder / "clips.json")


def jamendo(folder: Path) -> None:
    """`dataset/`: what the guide to Jamendo downloads, which none of its blocks that are carried out looks into."""
    (folder / "dataset").mkdir()


def weights(folder: Path, config: str, name: str) -> None:
    """`NAME.json` and `NAME.safetensors`: a shipped tiny model, narrower, with random weights and its own window."""
    made = small_models.small_model(config, folder / ".stand_ins")
    window = load(next(small_models.CONFIGS.rglob(f"{config}.json")))["sample_size"]
    save({**load(made.config), "sample_size": window}, folder / f"{name}.json")
    made.weights.replace(folder / f"{name}.safetensors")


def example_weights(folder: Path, name: str) -> None:
    """Write `NAME.json`, exactly that of the example, and `NAME.safetensors` with random weights."""
    config = load(EXAMPLE / f"{name}.json")
    torch.manual_seed(0)
    save_weights(create_model_from_config(config), folder / f"{name}.safetensors", model_config=config)
    save(config, folder / f"{name}.json")


STAND_INS: dict[str, Callable[[Path], None]] = {
    "clips": clips,
    "dataset": jamendo,
    "vae.safetensors": partial(example_weights, name="vae"),
    "codec.safetensors": partial(weights, config="tiny_codec", name="codec"),
    "dit.safetensors": partial(example_weights, name="dit"),
    "inpaint.safetensors": partial(weights, config="tiny_diffusion_cond_inpaint", name="inpaint"),
    "lm.safetensors": partial(weights, config="tiny_lm", name="lm"),
}
