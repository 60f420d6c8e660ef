"""Shared parts of the training tests: narrowed configs, the flags of a quick run, and what a run wrote."""

import csv
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.core.config import load
from support import small_models

SHIPPED = {path.stem: path for path in small_models.CONFIGS.rglob("tiny_*.json")}


def training_config(name: str) -> dict[str, Any]:
    """A shipped tiny config, narrowed, with demos of two sampling steps."""
    config: dict[str, Any] = small_models.narrowed(load(SHIPPED[name]))
    demo = config["training"]["demo"]
    demo["demo_every"] = 10_000
    demo.update({key: 2 for key in ("demo_steps", "num_demos", "max_num_sample") if key in demo})
    return config


def arc_section(config: dict[str, Any]) -> None:
    """ARC training against a critic that is the narrowed model itself."""
    config["model"]["diffusion"]["config"]["depth"] = 2
    optimizer = {"optimizer": {"type": "AdamW", "config": {"lr": 1e-3}}}
    head = {"channels": 8, "c_mults": [1], "strides": [2], "num_blocks": [1]}
    config["training"] = {
        "arc": {
            "use_model_as_discriminator": True,
            "discriminator": {
                "type": "convnext",
                "dit_hidden_layer": 0,
                "contrastive": True,
                "include_grad_penalties": True,
                "config": head,
            },
        },
        "optimizer_configs": {"diffusion": optimizer, "discriminator": optimizer},
    }


def column(folder: Path, name: str) -> list[float]:
    """The logged values of one metric."""
    with (folder / "metrics" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of nested containers, by its path."""
    if isinstance(value, dict):
        entries: Any = value.items()
    elif isinstance(value, list | tuple):
        entries = enumerate(value)
    else:
        return {name: value}
    return {path: leaf for key, inner in entries for path, leaf in flattened(inner, f"{name}/{key}").items()}


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two checkpoints: weights, averages, optimisers, schedulers, random states, data position."""
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "stable_audio_tools", "global_step", "epoch")
    contents = []
    for path in (first, second):
        loaded = torch.load(path, weights_only=True)
        parts = {key: loaded[key] for key in kept}
        parts["data"] = loaded["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        contents.append(flattened(parts))
    a, b = contents
    assert len(a) > 50
    return [
        name
        for name in sorted({*a, *b})
        if name not in a
        or name not in b
        or not (torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name])
    ]


def flags(config: Path, dataset: Path, save_dir: Path, steps: int, *more: str) -> list[str]:
    words = ["--model-config", config, "--dataset-config", dataset, "--save-dir", save_dir, "--max-steps", steps]
    quick = ["--batch-size", 2, "--num-workers", 0, "--logger", "none", "--accelerator", "cpu", "--checkpoint-every", 1]
    return [str(word) for word in (*words, *quick, *more)]


def last(save_dir: Path, step: int) -> Path:
    (found,) = save_dir.glob(f"*/*/checkpoints/*step={step}.ckpt")
    return found
