"""`mel train-vae`, `mel train-unet`, `mel inference-unet`: the scripts of the spectrogram guide, with its flags.

Each command writes the configs that its flags stand for, prints the equivalent commands of the toolkit, and runs them.
"""

import json
import math
import random
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.settings import Settings, option

if TYPE_CHECKING:
    from stable_audio_tools.mel.guide import Spectrograms

_CONFIG, _WEIGHTS = "model_config.json", "model.safetensors"
_PRECISIONS = {"no": "32", "fp16": "16-mixed", "bf16": "bf16-mixed"}

Words = list[str | Path | int | float]
S = TypeVar("S", bound=Settings)


def _run(command: Command[S], script: str, words: Words) -> None:
    """Print a command line of the toolkit, and run it in this process."""
    texts = [str(word) for word in words]
    print(f"$ python {script} {shlex.join(texts)}", flush=True)
    command.run(command.parse(texts))


def _pair(text: str) -> tuple[int, int]:
    """Parse `W,H`, or `N` for both."""
    parts = text.split(",")
    return int(parts[0]), int(parts[-1])


@dataclass(frozen=True, kw_only=True)
class SpectrogramSettings(Settings):
    """Spectrograms to train on."""

    dataset_name: Path = option(
        help="folder written by audio_to_images.py, or an Arrow dataset with a column image or mel", metavar="DIR"
    )
    mel_spec_method: Literal["image", "bigvgan"] | None = option(
        None, "refuse a dataset of the other kind (default: the kind of the dataset)"
    )
    hop_length: int | None = option(None, "samples between frames (default: as recorded, or 256)", ge=1)
    sample_rate: int | None = option(None, "sample rate (default: as recorded, or 22050)", ge=1)
    n_fft: int | None = option(None, "samples of a spectrum (default: as recorded, or 1024)", ge=2)


# ------------------------------------------------------------------ the autoencoder


@dataclass(frozen=True, kw_only=True)
class TrainVAESettings(SpectrogramSettings):
    """Settings of `mel train-vae`."""

    dataset_name: Path = option(
        help="folder written by audio_to_images.py, or an Arrow dataset with a column image or mel",
        metavar="DIR",
        flags=("-d",),
    )
    batch_size: int = option(1, "items per step", flags=("-b",), ge=1)
    ldm_config_file: Path | None = option(
        None, "YAML file of CompVis' latent diffusion (default: the values of the guide)", flags=("-c",), metavar="FILE"
    )
    ldm_checkpoint_dir: Path = option(Path("models/ldm-autoencoder-kl"), "folder for configs and runs", metavar="DIR")
    hf_checkpoint_dir: Path = option(
        Path("models/autoencoder-kl"), "folder for the finished autoencoder, for --vae", metavar="DIR"
    )
    resume_from_checkpoint: Path | None = option(None, "training checkpoint to resume", flags=("-r",), metavar="CKPT")
    gradient_accumulation_steps: int = option(1, "batches per step", flags=("-g",), ge=1)
    save_images_batches: int = option(1000, "steps between demos", ge=1)
    save_every_n_batches: int = option(1000, "steps between checkpoints", ge=1)
    max_epochs: int = option(100, "passes over the data", ge=1)
    max_samples: int | None = option(None, "items per pass (default: all)", ge=1)
    latent_dims: str = option("4,4", "size of the latent image", metavar="W,H")
    resolution: str | None = option(None, "frames and bands, to verify (default: as in the dataset)", metavar="W,H")
    model_size: Literal["small", "medium", "large"] = option("small", "width of the autoencoder")
    train_flags: tuple[str, ...] = option((), "further flags of train.py", after_dashes=True)

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        for flag, text in (("--latent-dims", self.latent_dims), ("--resolution", self.resolution)):
            if text is not None and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)?", text):
                yield f"{flag}: expected N or W,H, as in 2048,128; got {text!r}"


def run_train_vae(settings: TrainVAESettings) -> None:
    from stable_audio_tools.core.config import save
    from stable_audio_tools.mel.guide import AutoencoderRecipe, autoencoder_config, count_halvings, read_recipe

    data = _read(settings)
    shape = (data.frames, data.bands)
    if settings.resolution is not None and _pair(settings.resolution) != shape:
        raise ConfigError(f"--resolution: the spectrograms are {shape[0]},{shape[1]}; leave the flag out")
    recipe = read_recipe(settings.ldm_config_file) if settings.ldm_config_file else AutoencoderRecipe()
    halvings = count_halvings(shape, _pair(settings.latent_dims))
    folder = settings.ldm_checkpoint_dir
    save(
        autoencoder_config(data, recipe, halvings, settings.model_size, settings.save_images_batches),
        folder / _CONFIG,
    )
    save(data.dataset, folder / "dataset_config.json")
    words: Words = ["--batch-size", settings.batch_size, "--max-epochs", settings.max_epochs]
    words += ["--accum-batches", settings.gradient_accumulation_steps]
    words += ["--checkpoint-every", settings.save_every_n_batches]
    if settings.max_samples is not None:
        words += ["--num-train-samples", settings.max_samples]
    _train(folder, "vae", settings.resume_from_checkpoint, words, settings.train_flags)
    _export(folder, "vae", settings.hf_checkpoint_dir)


# ------------------------------------------------------------------ the U-Net


@dataclass(frozen=True, kw_only=True)
class TrainUNetSettings(SpectrogramSettings):
    """Settings of `mel train-unet`."""

    model_size: Literal["tiny", "small", "large"] = option("small", "width and depth of the U-Net")
    output_dir: Path = option(Path("ddpm-model-64"), "folder for configs, runs and the finished model", metavar="DIR")
    train_batch_size: int = option(16, "items per step", ge=1)
    eval_batch_size: int = option(16, "items of a demo", ge=1)
    num_epochs: int = option(100, "passes over the data", ge=1)
    max_training_num_steps: int = option(10000, "steps after which training stops", ge=1)
    save_images_steps: tuple[int, ...] = option(
        (10000, 25000, 100000, 200000), "steps with demos; there is one at each multiple of their common divisor"
    )
    save_model_steps: tuple[int, ...] = option(
        (10000, 25000, 100000, 200000), "steps whose model is written to model_step_N"
    )
    gradient_accumulation_steps: int = option(1, "batches per step", ge=1)
    learning_rate: float = option(1e-4, "highest learning rate", gt=0)
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = option(
        "cosine", "schedule of the learning rate"
    )
    lr_warmup_steps: int = option(500, "steps of warm-up", ge=0)
    adam_beta1: float = option(0.95, "of AdamW", ge=0, lt=1)
    adam_beta2: float = option(0.999, "of AdamW", ge=0, lt=1)
    adam_weight_decay: float = option(1e-6, "of AdamW", ge=0)
    adam_epsilon: float = option(1e-8, "of AdamW", gt=0)
    use_ema: Literal["True", "False"] = option("True", "average the weights, with inv_gamma 1, power 0.75, 0.9999")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "precision of training")
    from_pretrained: Path | None = option(
        None, "training checkpoint to resume, or a model folder to start from", metavar="PATH"
    )
    num_train_steps: int = option(1000, "noise levels in training", ge=2)
    num_inference_steps: int = option(1000, "sampling steps of the demos", ge=1)
    train_scheduler: Literal["ddpm", "ddim"] = option("ddpm", "noise levels; those of both are the same")
    test_scheduler: Literal["ddpm", "ddim"] = option("ddpm", "sampler recommended for inference_unet.py")
    vae: Path | None = option(None, "folder of the finished autoencoder of train_vae.py", metavar="DIR")
    encodings: Path | None = option(None, "vectors by audio file: a pickle, .npz or .safetensors", metavar="FILE")
    train_flags: tuple[str, ...] = option((), "further flags of train.py", after_dashes=True)


def run_train_unet(settings: TrainUNetSettings) -> None:
    from stable_audio_tools.core.config import load, save
    from stable_audio_tools.mel.guide import UNetRecipe, audio_dataset, save_encodings, unet_config
    from stable_audio_tools.training.run_folder import checkpoints_in

    data, folder = _read(settings), settings.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    codec: JsonObject | None = None
    dataset = data.dataset
    if settings.vae is not None:
        if not (settings.vae / _CONFIG).is_file():
            raise ConfigError(f"--vae: {settings.vae} has no {_CONFIG}; train_vae.py writes one to --hf-checkpoint-dir")
        codec, dataset = load(settings.vae / _CONFIG), audio_dataset(data, folder)
        if codec["model"].get("pretransform", {}).get("config", {}).get("n_mels") != data.bands:
            raise ConfigError(f"--vae: {settings.vae} is for other spectrograms than {settings.dataset_name}")
    encodings = None
    if settings.encodings is not None:
        target = folder / "encodings.safetensors"
        encodings = (str(target), save_encodings(settings.encodings, data, target))
    shape = settings.lr_scheduler.replace("constant_with_warmup", "constant")
    warmup = 0 if settings.lr_scheduler == "constant" else settings.lr_warmup_steps
    total = max(settings.max_training_num_steps, warmup + 1)
    betas = [settings.adam_beta1, settings.adam_beta2]
    adam = {"lr": settings.learning_rate, "betas": betas, "eps": settings.adam_epsilon}
    recipe = UNetRecipe(
        settings.model_size,
        {"type": "AdamW", "config": {**adam, "weight_decay": settings.adam_weight_decay}},
        {"type": "WarmupLR", "config": {"warmup_steps": warmup, "total_steps": total, "shape": shape}},
        settings.num_train_steps,
        settings.use_ema == "True",
        math.gcd(*settings.save_images_steps),
        settings.num_inference_steps,
        settings.eval_batch_size,
    )
    config = unet_config(data, recipe, codec, encodings)
    save(config, folder / _CONFIG)
    save(dataset, folder / "dataset_config.json")
    words: Words = ["--batch-size", settings.train_batch_size, "--max-epochs", settings.num_epochs]
    words += ["--max-steps", settings.max_training_num_steps, "--gradient-clip-val", 1.0]
    words += ["--accum-batches", settings.gradient_accumulation_steps]
    words += ["--precision", _PRECISIONS[settings.mixed_precision]]
    words += ["--checkpoint-every", math.gcd(*settings.save_model_steps)]
    if settings.vae is not None:
        words += ["--pretransform-ckpt-path", settings.vae / _WEIGHTS]
    resumed = settings.from_pretrained
    if resumed is not None and resumed.is_dir():
        words += ["--pretrained-ckpt-path", resumed / _WEIGHTS]
        resumed = None
    run = _train(folder, "unet", resumed, words, settings.train_flags)
    _export(folder, "unet", folder)
    for checkpoint in checkpoints_in(run / "checkpoints"):
        step = int(checkpoint.stem.rpartition("step=")[2])
        if step in settings.save_model_steps:
            _unwrap(folder, checkpoint, folder / f"model_step_{step}")
    print(f"wrote {folder}; next: python scripts/inference_unet.py --pretrained_model_path {folder} "
          f"--scheduler {settings.test_scheduler}")  # fmt: skip


# ------------------------------------------------------------------ generation


@dataclass(frozen=True, kw_only=True)
class InferenceUNetSettings(Settings):
    """Settings of `mel inference-unet`."""

    pretrained_model_path: Path = option(help="folder of train_unet.py, or a pipeline of diffusers", metavar="DIR")
    mel_spec_method: Literal["image", "bigvgan"] = option(
        "image", "bigvgan: also keep the spectrograms (.npy) of new files"
    )
    num_images: int = option(10, "number of files", ge=1)
    num_inference_steps: int = option(50, "sampling steps", ge=1)
    n_iter: int | None = option(None, "iterations of Griffin-Lim (default: the setting of the model)", ge=1)
    seed: int = option(42, "random seed", ge=0)
    eval_batch_size: int = option(32, "items in one batch", ge=1)
    scheduler: Literal["ddim", "ddpm"] = option("ddim", "sampler")
    eta: float | None = option(None, "fresh noise of ddim, 0 to 1 (default: 0)", ge=0, le=1)
    encodings: Path | None = option(
        None, "vectors by name: one file is generated for each (default: those of training)", metavar="FILE"
    )
    continuous_outpainting: bool = option(False, "continue audio files instead")
    target_length: float = option(60, "length of the continued files, in seconds", gt=0)
    percentage_overlap: float = option(0.5, "share of a window that the next one keeps", gt=0, lt=1)
    gold_label_path: Path | None = option(None, "folder of the audio files to continue", metavar="DIR")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.continuous_outpainting and self.gold_label_path is None:
            yield "--gold-label-path: missing; --continuous-outpainting continues its files"
        if self.gold_label_path is not None and not self.continuous_outpainting:
            yield "--gold-label-path: needs --continuous-outpainting"


def run_inference_unet(settings: InferenceUNetSettings) -> None:
    from stable_audio_tools.core.config import save
    from stable_audio_tools.inference.generation.model import find_config
    from stable_audio_tools.mel.guide import with_iterations

    folder = settings.pretrained_model_path
    known = (folder / _CONFIG).is_file() or (folder / "model_index.json").is_file()
    config = find_config(folder) if known else None
    if config is None:
        raise ConfigError(f"--pretrained-model-path: {folder} is not a folder with {_CONFIG} or model_index.json")
    output = folder / "samples" / f"sch_{settings.scheduler}_nisteps_{settings.num_inference_steps}"
    words: Words = ["--pretrained-name", folder]
    if settings.n_iter is not None:
        if not (folder / _WEIGHTS).is_file():
            raise ConfigError(f"--n-iter: convert {folder} first, with scripts/convert_pipeline.py")
        output /= f"gl{settings.n_iter}"
        save(with_iterations(config, settings.n_iter), output / _CONFIG)
        words = ["--model-config", output / _CONFIG, "--ckpt-path", folder / _WEIGHTS]
    words += ["--sample-steps", settings.num_inference_steps, "--sampler-type", settings.scheduler]
    words += ["--seed", settings.seed, "--batch-size", settings.eval_batch_size]
    if settings.eta is not None:
        words += ["--eta", settings.eta]
    if settings.mel_spec_method == "bigvgan" and not settings.continuous_outpainting:
        words.append("--keep-latents")
    prompts = _write_prompts(config, settings, output)
    if prompts is not None:
        words += ["--cond-yaml-path", prompts]
    _generate_all(settings, config, output, words, settings.num_images if prompts is None else 1)


def _generate_all(settings: InferenceUNetSettings, config: JsonObject, output: Path, words: Words, count: int) -> None:
    from stable_audio_tools.cli.generate import main as generate

    if not settings.continuous_outpainting:
        _run(generate, "generate.py", [*words, "--output-dir", output, "--n-sample-per-cond", count])
        return
    assert settings.gold_label_path is not None
    files = sorted(settings.gold_label_path.rglob("*.wav"))
    if not files:
        raise ConfigError(f"--gold-label-path: {settings.gold_label_path} has no .wav file")
    overlap = settings.percentage_overlap * config["sample_size"] / config["sample_rate"]
    words += [
        "--n-sample-per-cond",
        1,
        "--mode",
        "outpaint",
        "--seconds",
        settings.target_length,
        "--overlap",
        round(overlap, 3),
    ]
    for file in random.Random(settings.seed).sample(files, min(settings.num_images, len(files))):
        _run(generate, "generate.py", [*words, "--audio", file, "--output-dir", output / file.stem])


def _write_prompts(config: JsonObject, settings: InferenceUNetSettings, output: Path) -> Path | None:
    """Write a file of prompts for a conditional model: one for each of its vectors, or of those that are given."""
    from stable_audio_tools.core.files import write_text
    from stable_audio_tools.latents.text import read_pickled_encodings
    from stable_audio_tools.models.conditioners.precomputed import read_encodings

    conditioners = config["model"].get("conditioning", {}).get("configs", [])
    if not conditioners:
        if settings.encodings is not None:
            raise ConfigError("--encodings: the model takes no conditions; leave it out")
        return None
    vector = next((one for one in conditioners if one["type"] == "precomputed"), None)
    source = settings.encodings or (vector and vector["config"].get("path") and Path(vector["config"]["path"]))
    if vector is None or source is None:
        raise ConfigError("--encodings: missing; the model takes a vector for each file")
    known = read_encodings(source) if source.suffix in (".safetensors", ".npz") else read_pickled_encodings(source)
    rows = [
        {"name": f"{index:04d}_{Path(name).stem}", vector["id"]: tensor.reshape(-1, tensor.shape[-1])[0].tolist()}
        for index, (name, tensor) in enumerate(list(known.items())[: settings.num_images])
    ]
    target = output / "prompts.jsonl"
    write_text(target, "".join(f"{json.dumps(row)}\n" for row in rows))
    return target


# ------------------------------------------------------------------ steps


def _read(settings: SpectrogramSettings) -> "Spectrograms":
    from stable_audio_tools.mel.guide import ImageOptions, read_spectrograms

    options = ImageOptions(settings.sample_rate, settings.n_fft, settings.hop_length)
    data = read_spectrograms(settings.dataset_name, options)
    kind = "bigvgan" if data.mel["config"].get("variant") == "bigvgan" else "image"
    if settings.mel_spec_method not in (None, kind):
        raise ConfigError(f"--mel-spec-method: the spectrograms of {settings.dataset_name} are of the kind {kind}")
    return data


def _train(folder: Path, name: str, resumed: Path | None, words: Words, flags: Iterable[str]) -> Path:
    """Train with the configs in `folder`, and return the folder of the run."""
    from stable_audio_tools.cli.train import main as train

    first: Words = ["--model-config", folder / _CONFIG, "--dataset-config", folder / "dataset_config.json"]
    first += ["--name", name, "--save-dir", folder / "runs"]
    if resumed is not None:
        first += ["--ckpt-path", resumed]
    _run(train, "train.py", [*first, *words, *flags])
    return max((folder / "runs" / name).iterdir(), key=lambda run: run.stat().st_mtime)


def _export(folder: Path, name: str, target: Path) -> None:
    from stable_audio_tools.training.run_folder import checkpoint_at

    _unwrap(folder, checkpoint_at(folder / "runs" / name), target)


def _unwrap(folder: Path, checkpoint: Path, target: Path) -> None:
    """Write config and weights of a checkpoint to `target`."""
    from stable_audio_tools.cli.train import unwrap
    from stable_audio_tools.core.config import load, save

    if target != folder:
        save(load(folder / _CONFIG), target / _CONFIG)
    words: Words = ["--ckpt-path", checkpoint, "--model-config", target / _CONFIG]
    _run(unwrap, "unwrap_model.py", [*words, "--name", target / "model", "--use-safetensors"])


train_vae = Command(
    TrainVAESettings,
    run_train_vae,
    "Train an autoencoder on spectrograms, with the flags of the spectrogram guide; flags after -- go to train.py. "
    "Writes configs and runs to --ldm-checkpoint-dir, and the finished autoencoder to --hf-checkpoint-dir.",
)
train_unet = Command(
    TrainUNetSettings,
    run_train_unet,
    "Train a U-Net on spectrograms, or on the latents of --vae, with the flags of the spectrogram guide; flags after "
    "-- go to train.py. Writes configs, runs and the finished model to --output-dir.",
)
inference_unet = Command(
    InferenceUNetSettings,
    run_inference_unet,
    "Generate audio with a U-Net over spectrograms, with the flags of the spectrogram guide. Files are written to "
    "samples/ in the folder of the model.",
)
