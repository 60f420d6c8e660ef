"""Every model type: train, see the loss fall, export, load, run; and the two stages from VAE to diffusion."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_training import arc_section

from stable_audio_tools.cli.train import unwrap
from stable_audio_tools.core.config import load
from stable_audio_tools.inference.generation import (
    generate_diffusion_cond,
    generate_diffusion_cond_inpaint,
    generate_diffusion_uncond,
)
from stable_audio_tools.models.pretrained import load_model

# steps, and the largest share of its start that the loss may still have at the end
MARGINS = {
    "tiny_autoencoder": (24, 0.9),
    "tiny_codec": (24, 0.9),
    "tiny_diffusion_autoencoder": (24, 0.9),
    "tiny_diffusion_uncond": (24, 0.9),
    "tiny_diffusion_cond": (120, 0.95),
    "tiny_diffusion_cond_inpaint": (120, 0.95),
    "tiny_lm": (24, 0.9),
    "tiny_stable_audio_3": (120, 0.95),
}


def heard(config: dict[str, Any], model: Any) -> torch.Tensor:
    """Audio out of a model of any type."""
    size = config["sample_size"]
    about = [{"sound": "drums", "prompt": "drums", "seconds_total": 3, "seconds_start": 0}]
    kind = config["model_type"]
    if kind in ("autoencoder", "diffusion_autoencoder"):
        audio = torch.rand(1, 2, size) - 0.5
        return model.decode(model.encode(audio), **({"steps": 2} if kind == "diffusion_autoencoder" else {}))
    if kind == "diffusion_uncond":
        return generate_diffusion_uncond(model, steps=2, sample_size=size, seed=0, device="cpu")
    if kind == "lm":
        return model.generate_audio(batch_size=1, max_gen_len=4, conditioning=about)
    if kind == "diffusion_cond_inpaint":
        return generate_diffusion_cond_inpaint(
            model, steps=2, conditioning=about, sample_size=size, seed=0, device="cpu"
        )
    return generate_diffusion_cond(model, steps=2, conditioning=about, sample_size=size, seed=0, device="cpu")


def quicker(config: dict[str, Any]) -> None:
    """A rate at which a hundred steps show something."""
    for entry in config["training"].get("optimizer_configs", {}).values():
        entry["optimizer"]["config"]["lr"] = 3e-3
        entry.pop("scheduler", None)


@pytest.mark.parametrize("name", MARGINS)
def test_trains_exports_and_runs(
    name: str, write_config: Any, run_training: Any, losses_of: Any, checkpoint_of: Any, tmp_path: Path
) -> None:
    steps, share = MARGINS[name]
    path = write_config(name, quicker)
    folder = run_training(path, "--max-steps", str(steps))
    losses = losses_of(folder)
    third = len(losses) // 3
    start, end = sum(losses[:third]) / third, sum(losses[-third:]) / third
    assert end < share * start
    assert list((folder / "demos" / "step_00000001").glob("*.wav"))

    target = tmp_path / "exported"
    arguments = ["--ckpt-path", str(checkpoint_of(folder)), "--name", str(target), "--use-safetensors"]
    assert unwrap([*arguments, "--model-config", str(path)]) == 0
    model = load_model(load(path), f"{target}.safetensors").eval()
    with torch.no_grad():
        audio = heard(json.loads(path.read_text()), model)
    assert audio.ndim == 3 and audio.shape[1] == 2 and audio.isfinite().all()


def test_arc_trains_both_networks(write_config: Any, run_training: Any, checkpoint_of: Any) -> None:
    folder = run_training(
        write_config("tiny_diffusion_cond", arc_section), "--max-steps", "4", "--checkpoint-every", "2"
    )
    first, last = sorted((folder / "checkpoints").glob("*.ckpt"))
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (first, last))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed >= {"diffusion", "discriminator", "discriminator_head", "diffusion_ema"}
