"""What the guides ask their reader for: music, gated weights, configs; here small and random, of the same shape."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import stable_audio_tools
from stable_audio_tools.core.config import load, save
from stable_audio_tools.data.example_clips import write_example_clips
from stable_audio_tools.models.checkpoints import save_weights
from stable_audio_tools.models.factory import create_model_from_config
from support.small_clap import small_clap, write_checkpoint
from support.small_t5 import write_t5

CONFIGS = Path(stable_audio_tools.__file__).parent / "configs"
WIDTHS = ("embed_dim", "cond_token_dim", "global_cond_dim", "cond_dim")
NARROW = 24  # a width of 1536 becomes 64; widths that must agree still do
FIXED = {"num_heads": 4, "depth": 2, "filters": 2, "demo_steps": 1, "num_demos": 1, "t5_model_name": "models/t5"}


def scaled(node: Any) -> Any:
    """The same parts, keys and proportions, less wide and deep, and a window of a second or so."""
    if isinstance(node, list):
        return [scaled(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    made = {key: scaled(value) for key, value in node.items()}
    made |= {key: made[key] // NARROW for key in WIDTHS if key in made}
    made |= {key: value for key, value in FIXED.items() if key in made}
    if made.get("type") == "oobleck":
        made["config"] |= {"channels": 4}
    if "sample_size" in made:
        made["sample_size"] = 16384 if made["model_type"] == "autoencoder" else 32768
    if "demo_cond" in made:
        made["demo_cond"] = made["demo_cond"][:1]
        made["demo_cfg_scales"] = made["demo_cfg_scales"][:1]
    return made


def configs(folder: Path) -> None:
    """The shipped configs of the package under their own names, scaled; and a T5 where the scaled ones name it."""
    place = folder / "stable_audio_tools"
    if place.is_symlink():
        place.unlink()
    for path in CONFIGS.rglob("stable_audio_*.json"):
        save(scaled(load(path)), place / "configs" / path.relative_to(CONFIGS))
    t5(folder)


def t5(folder: Path) -> None:
    write_t5(folder / "models" / "t5")


def music(folder: Path) -> None:
    write_example_clips(folder / "data" / "music", per_class=1)
    (folder / "data" / "music" / "metadata.jsonl").unlink()


def clap(folder: Path) -> None:
    target = folder / "weights" / "music_audioset_epoch_15_esc_90.14.pt"
    target.parent.mkdir(parents=True)
    shutil.move(write_checkpoint(small_clap(), target.parent), target)


def random_model(config: dict[str, Any], weights: Path) -> None:
    torch.manual_seed(0)
    save_weights(create_model_from_config(config), weights)


def open_1_0(folder: Path) -> None:
    """A folder as the Hub holds it."""
    t5(folder)
    config = scaled(load(CONFIGS / "model_configs" / "txt2audio" / "stable_audio_open_1_0.json"))
    place = folder / "models" / "stable-audio-open-1.0"
    save(config, place / "model_config.json")
    random_model(config, place / "model.safetensors")


def open_small_config() -> dict[str, Any]:
    """Open 1.0's parts with the objective, window and conditions of Open Small, and no training section."""
    config: dict[str, Any] = scaled(load(CONFIGS / "model_configs" / "txt2audio" / "stable_audio_open_1_0.json"))
    del config["training"]
    model = config["model"]
    model["conditioning"]["configs"] = [c for c in model["conditioning"]["configs"] if c["id"] != "seconds_start"]
    model["diffusion"] |= {
        "diffusion_objective": "rf_denoiser",
        "cross_attention_cond_ids": ["prompt", "seconds_total"],
        "global_cond_ids": ["seconds_total"],
    }
    model["diffusion"]["config"] |= {"global_cond_dim": model["conditioning"]["cond_dim"]}
    return config


def small_config(folder: Path) -> None:
    t5(folder)
    save(open_small_config(), folder / "configs" / "model_config.json")


def small_weights(folder: Path) -> None:
    random_model(open_small_config(), folder / "models" / "model.ckpt")


def small_audio(folder: Path) -> None:
    write_example_clips(folder / "dataset" / "audio", per_class=1)
    for path in [*(folder / "dataset" / "audio").glob("*/*.flac")]:
        path.rename(folder / "dataset" / "audio" / path.name)


GUIDES: dict[str, Callable[[Path], None]] = {
    "scaled_configs": configs,
    "data/music": music,
    "weights/clap": clap,
    "models/stable-audio-open-1.0": open_1_0,
    "configs/model_config.json": small_config,
    "models/model.ckpt": small_weights,
    "dataset/audio": small_audio,
}
