"""Configs for the scripts of the spectrogram guide: datasets of spectrograms, autoencoders and U-Nets over them."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from safetensors.torch import save_file
from torch import Tensor

from stable_audio_tools.core.config.json_files import JsonObject, load
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.data.sources.huggingface import ArrowRows, as_bands
from stable_audio_tools.latents.text import read_pickled_encodings
from stable_audio_tools.latents.writing import DETAILS, read_details
from stable_audio_tools.mel.bigvgan import PUBLISHED
from stable_audio_tools.mel.dataset import PLAN
from stable_audio_tools.mel.transforms import BIGVGAN_RANGE
from stable_audio_tools.models.autoencoders.kl_2d import Size, level_widths
from stable_audio_tools.models.conditioners.precomputed import read_encodings

_VOCODERS = {128: "bigvgan_v2_44khz_128band_256x", 100: "bigvgan_v2_24khz_100band_256x", 80: "bigvgan_22khz_80band"}


class Spectrograms(NamedTuple):
    """A dataset of spectrograms of one size, and the transform that computed them."""

    dataset: JsonObject  # its config
    mel: JsonObject  # node of the mel pretransform
    sample_rate: int
    frames: int
    bands: int
    name_key: str  # metadata key of the audio file that a spectrogram is from

    @property
    def sample_size(self) -> int:
        hop: int = self.mel["config"]["hop_length"]
        return self.frames * hop


class ImageOptions(NamedTuple):
    """Options of the mel transform, for a dataset that does not record them; None: the usual value."""

    sample_rate: int | None = None
    n_fft: int | None = None
    hop_length: int | None = None


def read_spectrograms(folder: Path, options: ImageOptions) -> Spectrograms:
    """Describe a folder of `audio_to_images.py`, or an Arrow folder of an older spectrogram trainer."""
    if (folder / DETAILS).is_file():
        about = read_details(folder) or {}
        if "pretransform" not in about:
            raise ConfigError(f"--dataset-name: {folder} holds latents, not spectrograms of audio_to_images.py")
        mel, rate = _with_vocoder(about["pretransform"]), int(about["sample_rate"])
        frames = int(about["sample_size"]) // int(mel["config"]["hop_length"])
        dataset = {"dataset_type": "pre_encoded", "datasets": [{"id": "spectrograms", "path": str(folder)}]}
        found = Spectrograms(dataset, mel, rate, frames, _bands(mel), "path")
    elif folder.is_dir():
        found = _read_arrow(folder, options)
    else:
        raise ConfigError(
            f"--dataset-name: {folder} is not a folder; write it with scripts/audio_to_images.py, or a dataset of the "
            "Hub with datasets.load_dataset(NAME).save_to_disk(FOLDER)"
        )
    recorded = ImageOptions(found.sample_rate, found.mel["config"]["n_fft"], found.mel["config"]["hop_length"])
    problems = [
        f"--{name.replace('_', '-')}: the spectrograms of {folder} have {value}, not {given}; leave the flag out"
        for name, value, given in zip(ImageOptions._fields, recorded, options)
        if given not in (None, value)
    ]
    if problems:
        raise ConfigError(problems)
    return found


def _read_arrow(folder: Path, options: ImageOptions) -> Spectrograms:
    rows = ArrowRows(folder)
    column = next((name for name in ("image", "mel") if name in rows.columns), None)
    if column is None or not len(rows):
        raise ConfigError(f"--dataset-name: {folder} has no column 'image' or 'mel' (found: {', '.join(rows.columns)})")
    dataset = {
        "dataset_type": "huggingface",
        "datasets": [{"id": "spectrograms", "path": str(folder)}],
        "spectrogram_column": column,
    }
    bands, frames = as_bands(rows[0][column], BIGVGAN_RANGE, f"{folder}, row 0").shape
    if (folder / PLAN).is_file():
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        mel, rate = _with_vocoder({"type": "mel", "config": plan["the mel transform"]}), int(plan["sample_rate"])
    elif column == "image":
        config = {"variant": "db_image", "ref": "slice_max", "quantize": 8, "n_mels": bands}
        config |= {"n_fft": options.n_fft or 1024, "hop_length": options.hop_length or 256}
        mel, rate = _with_vocoder({"type": "mel", "config": config}), options.sample_rate or 22050
    else:
        if bands not in _VOCODERS:
            known = ", ".join(map(str, _VOCODERS))
            raise ConfigError(f"{folder}: spectrograms of {bands} bands have no published vocoder; known: {known}")
        vocoder = PUBLISHED[_VOCODERS[bands]]
        config = {"variant": "bigvgan", "n_fft": vocoder.n_fft, "hop_length": vocoder.hop_size, "n_mels": bands}
        config |= {"fmin": vocoder.fmin, "fmax": vocoder.fmax}
        config["vocoder"] = {"type": "bigvgan", "config": {"source": _VOCODERS[bands]}}
        mel, rate = {"type": "mel", "config": config}, vocoder.sampling_rate
    return Spectrograms(dataset, mel, rate, frames, bands, "audio_file")


def _with_vocoder(node: JsonObject) -> JsonObject:
    config = {"vocoder": {"type": "griffin_lim", "config": {"n_iter": 32}}, **node["config"]}
    return {"type": "mel", "config": config}


def _bands(node: JsonObject) -> int:
    bands: int = node["config"]["n_mels"] * node["config"].get("channels", 1)
    return bands


# ------------------------------------------------------------------ the autoencoder


class AutoencoderRecipe(NamedTuple):
    """The settings that a YAML file of CompVis' latent diffusion has; the defaults follow the guide."""

    latent_channels: int = 1
    width: int = 32
    layers_per_block: int = 2
    learning_rate: float = 4.5e-6
    kl_weight: float = 1e-6
    critic_start: int = 50001  # steps of both optimisers together
    critic_weight: float = 0.5


def read_recipe(path: Path) -> AutoencoderRecipe:
    """Read the YAML file of an autoencoder."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = content["model"]
        params = model["params"]
        inside, loss = params["ddconfig"], params["lossconfig"]["params"]
        return AutoencoderRecipe(
            int(inside["z_channels"]),
            int(inside["ch"]),
            int(inside["num_res_blocks"]),
            float(model["base_learning_rate"]),
            float(loss.get("kl_weight", 1e-6)),
            int(loss.get("disc_start", 50001)),
            float(loss.get("disc_weight", 0.5)),
        )
    except FileNotFoundError:
        raise ConfigError(f"--ldm-config-file: {path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--ldm-config-file: {path}: expected model.base_learning_rate, model.params.ddconfig with ch, z_channels "
            f"and num_res_blocks, and model.params.lossconfig.params ({reason})"
        ) from None


def count_halvings(resolution: tuple[int, int], latent_dims: tuple[int, int]) -> int:
    """Return how often the autoencoder halves bands and frames: the ratio of the larger sides decides."""
    if max(latent_dims) > max(resolution):
        raise ConfigError(f"--latent-dims: {max(latent_dims)} is more than the larger side of the spectrograms")
    return int(math.log2(max(resolution) / max(latent_dims)))


def autoencoder_config(
    data: Spectrograms, recipe: AutoencoderRecipe, halvings: int, size: Size, demo_every: int
) -> JsonObject:
    """Return the model config of an autoencoder that trains on the spectrograms."""
    part: JsonObject = {
        "bands": data.bands,
        "latent_channels": recipe.latent_channels,
        "downsamplings": halvings,
        "layers_per_block": recipe.layers_per_block,
    }
    if recipe.width == AutoencoderRecipe().width:
        part["size"] = size
    else:
        part["block_out_channels"] = [
            width * recipe.width // AutoencoderRecipe().width for width in level_widths(size, halvings)
        ]
    optimizer = {"type": "Adam", "config": {"lr": recipe.learning_rate, "betas": [0.5, 0.9]}}
    return {
        "model_type": "autoencoder",
        "sample_size": data.sample_size,
        "sample_rate": data.sample_rate,
        "audio_channels": 1,
        "model": {
            "encoder": {"type": "kl_2d", "config": part},
            "decoder": {"type": "kl_2d", "config": dict(part)},
            "bottleneck": {"type": "kl"},
            "pretransform": data.mel,
            "latent_dim": recipe.latent_channels * -(-data.bands // 2**halvings),
            "downsampling_ratio": data.mel["config"]["hop_length"] * 2**halvings,
            "io_channels": 1,
        },
        "training": {
            "use_ema": False,
            "pre_encoded": True,
            "loss_space": "pretransform",
            "warmup_steps": recipe.critic_start // 2,
            "warmup_mode": "full",
            "optimizer_configs": {name: {"optimizer": optimizer} for name in ("autoencoder", "discriminator")},
            "loss_configs": {
                "image": {"type": "multi_resolution", "weights": {"image": 1.0}},
                "time": {"type": "l1", "weights": {"l1": 1.0}},
                "discriminator": {
                    "type": "patch",
                    "config": {"filters": 64},
                    "weights": {"adversarial": recipe.critic_weight, "feature_matching": 0.0},
                },
                "bottleneck": {"type": "kl", "weights": {"kl": recipe.kl_weight}},
            },
            "demo": {"demo_every": demo_every, "max_num_sample": 4},
        },
    }


# ------------------------------------------------------------------ the U-Net


class UNetRecipe(NamedTuple):
    """Optimiser, schedule and demos of a U-Net."""

    preset: Literal["tiny", "small", "large"]
    optimizer: JsonObject
    scheduler: JsonObject
    timesteps: int
    use_ema: bool
    demo_every: int
    demo_steps: int
    num_demos: int


def unet_config(
    data: Spectrograms, recipe: UNetRecipe, codec: JsonObject | None, encodings: tuple[str, int] | None
) -> JsonObject:
    """Return the model config of a U-Net over spectrograms, or over the latents of `codec` (a model config).

    `encodings` are a file of vectors by name, and their width.
    """
    objective: JsonObject = {"num_train_timesteps": recipe.timesteps, "beta_schedule": "linear"}
    if codec is None:
        objective["clip_sample"] = 1.0
        channels, pretransform = data.bands, data.mel
    else:
        channels = codec["model"]["latent_dim"]
        pretransform = {"type": "autoencoder", "scale": "auto", "config": codec["model"]}
    backbone: JsonObject = {"io_channels": channels, "preset": recipe.preset}
    if codec is not None:
        backbone["image_channels"] = codec["model"]["encoder"]["config"]["latent_channels"]
    ddpm = {"type": "ddpm", "config": objective}
    demo: JsonObject = {"demo_every": recipe.demo_every, "demo_steps": recipe.demo_steps, "num_demos": recipe.num_demos}
    model: JsonObject
    if encodings is None:
        model = {"type": "unet2d", "config": backbone, "diffusion_objective": ddpm}
    else:
        path, width = encodings
        vector = {"id": data.name_key, "type": "precomputed", "config": {"path": path, "dim": width}}
        network = {"type": "unet2d_cond", "config": {**backbone, "cond_token_dim": width}}
        model = {
            "io_channels": channels,
            "conditioning": {"cond_dim": width, "configs": [vector]},
            "diffusion": {**network, "diffusion_objective": ddpm, "cross_attention_cond_ids": [data.name_key]},
        }
        demo |= {"demo_cond_from_batch": True, "demo_cfg_scales": [1.0]}
    return {
        "model_type": "diffusion_uncond" if encodings is None else "diffusion_cond",
        "sample_size": data.sample_size,
        "sample_rate": data.sample_rate,
        "audio_channels": 1,
        "model": {**model, "pretransform": pretransform},
        "training": {
            "pre_encoded": codec is None,
            "use_ema": recipe.use_ema,
            "optimizer_configs": {"diffusion": {"optimizer": recipe.optimizer, "scheduler": recipe.scheduler}},
            "demo": demo,
        },
    }


def audio_dataset(data: Spectrograms, folder: Path) -> JsonObject:
    """Return the config of the audio files that the spectrograms are from, which an autoencoder encodes."""
    files = sorted(set(audio_files(data)))
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise ConfigError(f"--vae: {missing[0]} is missing; latents are encoded from the audio of the spectrograms")
    root = os.path.commonpath([str(Path(file).parent) for file in files])
    listing = folder / "audio_files.txt"
    with atomic_path(listing) as temporary:
        temporary.write_text("".join(f"{file}\n" for file in files), encoding="utf-8")
    return {
        "dataset_type": "audio_dir",
        "datasets": [{"id": "audio", "path": root}],
        "include_paths_file": str(listing),
        "random_crop": True,
    }


def audio_files(data: Spectrograms) -> list[str]:
    """Return the audio file of each spectrogram."""
    folder = Path(data.dataset["datasets"][0]["path"])
    if data.dataset["dataset_type"] == "huggingface":
        rows = ArrowRows(folder)
        if data.name_key not in rows.columns:
            raise ConfigError(f"{folder}: has no column {data.name_key!r} with the audio file of each row")
        return [str(rows[row][data.name_key]) for row in range(len(rows))]
    sidecars = sorted(path for path in folder.rglob("*.json") if path.with_suffix(".npy").exists())
    return [str(load(path)["path"]) for path in sidecars]


def save_encodings(source: Path, data: Spectrograms, target: Path) -> int:
    """Write the vector of each audio file of the dataset, by its path, and return their width.

    The names in `source` are paths, or file names with or without suffix.
    """
    pickled = source.suffix not in (".safetensors", ".npz")
    known = read_pickled_encodings(source) if pickled else read_encodings(source)
    found: dict[str, Tensor] = {}
    missing = []
    for file in dict.fromkeys(audio_files(data)):
        name = next((name for name in (file, Path(file).name, Path(file).stem) if name in known), None)
        if name is None:
            missing.append(file)
        else:
            found[file] = known[name].reshape(-1, known[name].shape[-1])[0].float().contiguous()
    if missing:
        raise UserError(f"--encodings: {source} has no encoding of {missing[0]} ({len(missing)} files are without one)")
    with atomic_path(target) as temporary:
        save_file({name: tensor.clone() for name, tensor in found.items()}, temporary)
    return next(iter(found.values())).shape[-1]


def with_iterations(config: JsonObject, count: int) -> JsonObject:
    """Return a model config whose Griffin-Lim vocoder runs `count` iterations."""
    changed: JsonObject = json.loads(json.dumps(config))
    vocoders = list(_vocoders_in(changed["model"]))
    if not vocoders:
        raise ConfigError("--n-iter: the model decodes without Griffin-Lim; leave it out")
    for vocoder in vocoders:
        vocoder.setdefault("config", {})["n_iter"] = count
    return changed


def _vocoders_in(node: Any) -> Iterable[JsonObject]:
    if isinstance(node, list):
        for item in node:
            yield from _vocoders_in(item)
    elif isinstance(node, dict):
        if node.get("type") == "mel":
            vocoder = node["config"].setdefault("vocoder", {"type": "griffin_lim"})
            if vocoder.get("type") == "griffin_lim":
                yield vocoder
        for value in node.values():
            yield from _vocoders_in(value)
