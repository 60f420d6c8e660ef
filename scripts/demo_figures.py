"""Figures of the demo with their bounds, measured on held-out clips."""

import csv
import itertools
import logging
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.core.config import load
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.evaluation.reconstruction.metrics import compare
from stable_audio_tools.inference.generation.reconstruction import reconstruct
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pretrained import load_model
from stable_audio_tools.training.factory import create_training_wrapper_from_config

OUT = Path("outputs/demo")
CLASSES = ("drums", "bass", "chords", "rain", "bells")
# Bounds: a run of the whole demo measured 0.37, 0.13 and 9.8.
VAE_SHARE = 0.6  # of the spectral distance of an untrained autoencoder
DIT_SHARE = 0.4  # of the held-out loss of an untrained transformer
APART = 3.0  # spectra of different classes against those of one class


class Figure(NamedTuple):
    """A measured value: its name on the page, before and after, and whether the bound is met."""

    name: str
    before: str
    after: str
    text: str
    met: bool


def measure(root: Path) -> list[Figure]:
    return [reconstruction(root), held_out_loss(root), spectra(root)]


def reconstruction(root: Path) -> Figure:
    """Spectral distance over the held-out clips, of the trained autoencoder and of the same one untrained."""
    with (root / OUT / "reconstructed" / "metrics.csv").open() as stream:
        trained = statistics.mean(float(row["mrstft"]) for row in csv.DictReader(stream) if row["source"])
    config = load(root / "example" / "models" / "vae.json")
    torch.manual_seed(0)
    model = create_model_from_config(config).eval()
    distances = []
    for path in sorted((root / "example" / "held_out").rglob("*.flac")):
        audio, rate = audio_io.read(path)
        made = reconstruct(model, audio, rate)
        distances.append(float(compare(made, audio, rate).mrstft))
    untrained = statistics.mean(distances)
    text = f"spectral distance of reconstructions {untrained:.2f} untrained, {trained:.2f} trained"
    bound = f"at most {VAE_SHARE:g} of untrained"
    return Figure(
        "spectral distance of reconstructions",
        f"{untrained:.2f}",
        f"{trained:.2f}",
        f"{text} ({bound})",
        trained <= VAE_SHARE * untrained,
    )


def held_out_loss(root: Path) -> Figure:
    """Mean loss over fixed noise levels on the held-out latents, before and after training."""
    config = load(root / "example" / "models" / "dit.json")
    torch.manual_seed(0)
    before = validation_loss(root, config, create_model_from_config(config))
    after = validation_loss(root, config, load_model(config, root / OUT / "dit.safetensors"))
    text = f"held-out loss of the transformer {before:.3f} untrained, {after:.3f} trained"
    bound = f"at most {DIT_SHARE:g} of untrained"
    return Figure("held-out loss", f"{before:.2f}", f"{after:.2f}", f"{text} ({bound})", after <= DIT_SHARE * before)


def validation_loss(root: Path, config: dict[str, Any], model: Any) -> float:
    """Return the loss that train.py logs as val/avg_loss."""
    import pytorch_lightning as pl

    for name in ("pytorch_lightning", "lightning.pytorch"):  # its advice does not apply here
        logging.getLogger(name).setLevel(logging.ERROR)
    dataset = load(root / "example" / "held_out_latents.json")
    dataset["datasets"][0]["path"] = str(root / dataset["datasets"][0]["path"])
    loader = create_dataloader_from_config(
        dataset, 10, config["sample_size"], config["sample_rate"], config["audio_channels"], 0, shuffle=False
    )
    wrapper = create_training_wrapper_from_config(config, model)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    return float(trainer.validate(wrapper, loader, verbose=False)[0]["val/avg_loss"])


def spectra(root: Path) -> Figure:
    """Compare distances of mean spectra between classes with distances within a class."""
    found = {name: [spectrum(path) for path in generated(root, name)] for name in CLASSES}
    pairs = [pair for files in found.values() for pair in itertools.combinations(files, 2)]
    within = statistics.mean(distance(*pair) for pair in pairs)
    between = statistics.mean(
        distance(a, b) for one in CLASSES for other in CLASSES if one < other for a in found[one] for b in found[other]
    )
    text = f"spectra of generated audio {between:.1f} dB apart between classes, {within:.1f} dB within one"
    bound = f"at least {APART:g} times as far"
    return Figure(
        "distance of spectra, between and within classes",
        f"{within:.1f} dB",
        f"{between:.1f} dB",
        f"{text} ({bound})",
        between >= APART * within,
    )


def generated(root: Path, name: str) -> list[Path]:
    return sorted((root / OUT / "generated").rglob(f"*{name}*.wav"))


def spectrum(path: Path) -> Tensor:
    """Mean power in 24 bands from 40 Hz to 10 kHz, in dB, whatever the loudness."""
    audio, rate = audio_io.read(path)
    window = torch.hann_window(2048)
    power = torch.stft(audio.mean(0), 2048, 512, window=window, return_complex=True).abs().square().mean(1)
    frequencies = torch.linspace(0, rate / 2, len(power))
    edges = np.geomspace(40, min(10_000, rate / 2), 25)
    bands = [power[(frequencies >= low) & (frequencies < high)].sum() for low, high in itertools.pairwise(edges)]
    decibels = 10 * torch.log10(torch.stack(bands) + 1e-8)
    return decibels - decibels.mean()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())
