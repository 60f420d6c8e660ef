"""Does an adapter move one sound of a model to a new set of recordings, and leave the other sound where it was?

A base learns two sounds, noise in two bands. An adapter is then trained by `train_lora.py` on new recordings of one of
them, in a third band. Its output for each sound before and after is compared with recordings by the overlap of
their mean spectra, from 0 (nothing in common) to 1 (the same). Two models: the shape of `tiny_diffusion_cond`, and
Stable Audio Open scaled down (v objective, start and length as further conditions). Both have patches of audio in place
of the autoencoder.

    python benchmarks/lora_adaptation.py --seeds 3
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile as sf
import torch
from torch import Tensor

from stable_audio_tools.cli import train
from stable_audio_tools.inference.generation.model import AudioModel, load

RATE = 8000
BASE = {"low": (150, 500), "high": (2800, 3600)}  # Hz
NEW = (1000, 1700)
ADAPTED, OTHER = "low", "high"
BANDS = 32


class Shape(NamedTuple):
    """A model, its `lora` section, and how long both train."""

    config: dict[str, Any]
    lora: dict[str, Any]
    base_steps: int
    lora_steps: int
    sampling: dict[str, Any]


class Moved(NamedTuple):
    """Overlaps with the new recordings and, of the other sound, with its own; the file's share of the base's size."""

    before: float
    after: float
    other_before: float
    other_after: float
    file_share: float


def tiny(base_steps: int = 120, lora_steps: int = 80) -> Shape:
    """The shape of `tiny_diffusion_cond`: a rectified flow conditioned on one of a list of sounds."""
    config = _config(
        "rectified_flow",
        {"cross_attention_cond_ids": ["sound"], "global_cond_ids": ["sound", "seconds_total"]},
        [_sounds(), _number("seconds_total")],
        {"embed_dim": 64, "depth": 2, "num_heads": 2, "cond_token_dim": 32, "global_cond_dim": 64},
        channels=1,
        patch=16,
        window=1024,
        cond_dim=32,
        rate=4e-3,
    )
    lora = {"include": ["transformer"], "rank": 8, "lr": 1e-2}
    return Shape(config, lora, base_steps, lora_steps, {"steps": 16, "cfg_scale": 1})


def scaled_open(base_steps: int = 150, lora_steps: int = 100) -> Shape:
    """Stable Audio Open with fewer and narrower layers."""
    config = _config(
        "v",
        {
            "cross_attention_cond_ids": ["sound", "seconds_start", "seconds_total"],
            "global_cond_ids": ["seconds_start", "seconds_total"],
        },
        [_sounds(), _number("seconds_start"), _number("seconds_total")],
        {
            "embed_dim": 128,
            "depth": 4,
            "num_heads": 4,
            "cond_token_dim": 128,
            "global_cond_dim": 256,
            "project_cond_tokens": False,
            "transformer_type": "continuous_transformer",
        },
        channels=2,
        patch=32,
        window=1024,
        cond_dim=128,
        rate=2e-3,
    )
    lora = {"include": ["transformer"], "adapter_type": "lora-xs", "rank": 16, "lr": 2e-2}
    return Shape(config, lora, base_steps, lora_steps, {"steps": 25, "cfg_scale": 1})


def adapt(shape: Shape, folder: Path, seed: int = 0, clips: int = 8) -> Moved:
    """Train a base and an adapter in `folder`, and listen before and after."""
    old, new = folder / "old", folder / "new"
    size = (shape.config["audio_channels"], shape.config["sample_size"])
    recorded = {sound: write_clips(old, sound, band, clips, size, seed) for sound, band in BASE.items()}
    target = spectrum(write_clips(new, ADAPTED, NEW, clips, size, seed + 1))
    config = folder / "model.json"
    config.write_text(json.dumps({**shape.config, "lora": shape.lora}))
    common: list[Any] = ["--batch-size", "8", "--num-workers", "0", "--logger", "none", "--accelerator", "cpu"]
    common += ["--model-config", config]
    common += ["--save-dir", folder / "runs", "--seed", seed]
    _run(train.main, [*common, "--name", "base", "--dataset-config", _dataset(old), "--max-steps", shape.base_steps])
    base = folder / "base.safetensors"
    _run(train.unwrap, ["--ckpt-path", folder / "runs" / "base", "--name", base.with_suffix(""), "--use-safetensors"])
    lora = ["--pretrained-ckpt-path", base, "--dataset-config", _dataset(new), "--max-steps", shape.lora_steps]
    _run(train.train_lora, [*common, "--name", "lora", *lora])
    (adapter,) = (folder / "runs" / "lora").glob("*/adapters/*.safetensors")

    model = load(config, base, "cpu")
    heard = {sound: made(model, sound, clips, shape.sampling) for sound in BASE}
    model.load_lora(adapter)
    changed = {sound: made(model, sound, clips, shape.sampling) for sound in BASE}
    others = spectrum(recorded[OTHER])
    return Moved(
        overlap(heard[ADAPTED], target),
        overlap(changed[ADAPTED], target),
        overlap(heard[OTHER], others),
        overlap(changed[OTHER], others),
        adapter.stat().st_size / base.stat().st_size,
    )


def made(model: AudioModel, sound: str, count: int, sampling: dict[str, Any]) -> Tensor:
    """The mean spectrum of what a model makes of a sound."""
    return spectrum(model.generate(sound=sound, num_samples=count, seed=100, **sampling).audio)


def spectrum(audio: Tensor) -> Tensor:
    """(b, c, n) -> shares of the mean power in equal bands: (bands,)"""
    power = torch.fft.rfft(audio.double()).abs().square().mean((0, 1))
    bands = power[1:].unflatten(0, (BANDS, -1)).mean(1)
    return bands / bands.sum()


def overlap(a: Tensor, b: Tensor) -> float:
    """Return the overlap of two spectra: 1 minus half the sum of their differences."""
    return float(torch.minimum(a, b).sum())


def write_clips(
    folder: Path, sound: str, band: tuple[int, int], count: int, size: tuple[int, int], seed: int
) -> Tensor:
    """Noise within a band, with sidecars that name the sound -> (b, c, n)"""
    generator = np.random.default_rng((seed, *band))
    lines = np.fft.rfftfreq(size[1], 1 / RATE)
    clips = []
    for index in range(count):
        noise = np.fft.rfft(generator.normal(size=size)) * ((lines >= band[0]) & (lines <= band[1]))
        wave = np.fft.irfft(noise)
        wave *= 0.33 / wave.std()
        path = folder / f"{sound}_{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, wave.T, RATE, subtype="FLOAT")
        path.with_suffix(".json").write_text(json.dumps({"sound": sound}))
        clips.append(torch.from_numpy(wave))
    return torch.stack(clips)


def _config(
    objective: str,
    routes: dict[str, Any],
    conditions: list[dict[str, Any]],
    options: dict[str, Any],
    *,
    channels: int,
    patch: int,
    window: int,
    cond_dim: int,
    rate: float,
) -> dict[str, Any]:
    latents = channels * patch
    adam = {"type": "AdamW", "config": {"lr": rate, "betas": [0.9, 0.99], "weight_decay": 1e-3}}
    return {
        "model_type": "diffusion_cond",
        "sample_size": window,
        "sample_rate": RATE,
        "audio_channels": channels,
        "model": {
            "pretransform": {"type": "patched", "config": {"channels": channels, "patch_size": patch}},
            "conditioning": {"configs": conditions, "cond_dim": cond_dim},
            "diffusion": {
                "type": "dit",
                "diffusion_objective": objective,
                **routes,
                "config": {"io_channels": latents, **options},
            },
            "io_channels": latents,
        },
        "training": {"cfg_dropout_prob": 0.1, "optimizer_configs": {"diffusion": {"optimizer": adam}}},
    }


def _sounds() -> dict[str, Any]:
    return {"id": "sound", "type": "list", "config": {"options": list(BASE)}}


def _number(name: str) -> dict[str, Any]:
    return {"id": name, "type": "number", "config": {"min_val": 0, "max_val": 8}}


def _dataset(folder: Path) -> Path:
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": str(folder)}]}))
    return path


def _run(command: Any, words: list[Any]) -> None:
    assert command([str(word) for word in words]) == 0


def main() -> None:
    made_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made_parser.add_argument("--seeds", type=int, default=3)
    made_parser.add_argument("--models", nargs="+", default=["tiny", "scaled_open"])
    options = made_parser.parse_args()
    for name in options.models:
        shape, results, start = {"tiny": tiny, "scaled_open": scaled_open}[name](), [], time.perf_counter()
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                moved = adapt(shape, Path(folder), seed)
            results.append(moved)
            print(
                f"{name} seed {seed}: overlap with the new recordings {moved.before:.2f} -> {moved.after:.2f}, of the "
                f"other sound with its own {moved.other_before:.2f} -> {moved.other_after:.2f}, file "
                f"{moved.file_share:.2%} of the base"
            )
        gains = [moved.after - moved.before for moved in results]
        seconds = (time.perf_counter() - start) / options.seeds
        print(f"{name}: gain {statistics.mean(gains):.2f}, least {min(gains):.2f}; {seconds:.0f} s a seed")


if __name__ == "__main__":
    main()
