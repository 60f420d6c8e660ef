"""Runs go on from training checkpoints of the original toolkit: weights, averages, optimisers, step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_training import training_config

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training import create_training_wrapper_from_config
from stable_audio_tools.training.module import STAMP, renumbered

CONSTANTS = ("sdstft.mrstft.stft_losses.0.prefilter.fir.weight", "losses_gen.losses.0.weight", "lrstft.x")


def as_the_original_writes(path: Path, name: str, target: Path) -> Path:
    """Optimisers over all parameters in another order, frozen ones without state; constants of losses."""
    content = torch.load(path, weights_only=True)
    del content[STAMP]
    content["state_dict"] = dict(reversed(content["state_dict"].items()))
    content["state_dict"] |= {name: torch.ones(1) for name in CONSTANTS} if name == "tiny_autoencoder" else {}
    config = training_config(name)
    wrapper = create_training_wrapper_from_config(config, create_model_from_config(config))
    networks = {"tiny_autoencoder": ("autoencoder", "discriminator"), "tiny_diffusion_cond": ("diffusion",)}[name]
    for network, state in zip(networks, content["optimizer_states"]):
        parameters = dict(getattr(wrapper, network).named_parameters())
        there = [key.removeprefix(f"{network}.") for key in content["state_dict"] if key.startswith(f"{network}.")]
        place = {name: index for index, name in enumerate(name for name in there if name in parameters)}
        here = [name for name, parameter in parameters.items() if parameter.requires_grad]
        state["state"] = {place[here[number]]: entry for number, entry in state["state"].items()}
        (group,) = state["param_groups"]
        group["params"] = list(range(len(parameters)))
    torch.save(content, target)
    return target


@pytest.mark.parametrize("name", ["tiny_autoencoder", "tiny_diffusion_cond"])
def test_a_run_goes_on(
    name: str,
    write_config: Any,
    run_training: Any,
    checkpoint_of: Any,
    tmp_path: Path,
    capfd: Any,
) -> None:
    config = write_config(name)
    ours = checkpoint_of(run_training(config, "--max-steps", "4"))
    theirs = as_the_original_writes(ours, name, tmp_path / "epoch=0-step=4.ckpt")
    folder = run_training(config, "--max-steps", "6", "--ckpt-path", str(theirs), name="resumed")
    before, after = (torch.load(path, weights_only=True) for path in (ours, checkpoint_of(folder)))
    assert after["global_step"] == 6 and before["state_dict"].keys() == after["state_dict"].keys()
    assert not any(key.startswith(("sdstft", "lrstft", "losses_gen", "spectral")) for key in after["state_dict"])
    steps = [
        {float(entry["step"]) for entry in state["state"].values()}
        for content in (before, after)
        for state in content["optimizer_states"]
    ]
    assert steps == ([{2.0}, {2.0}, {3.0}, {3.0}] if name == "tiny_autoencoder" else [{4.0}, {6.0}])
    shapes = [
        [tuple(entry["exp_avg"].shape) for _, entry in sorted(state["state"].items())]
        for content in (before, after)
        for state in content["optimizer_states"]
    ]
    assert shapes[: len(shapes) // 2] == shapes[len(shapes) // 2 :]
    assert "another program wrote the checkpoint" in capfd.readouterr().err


def test_optimisers_of_another_model_are_refused(
    write_config: Any, run_training: Any, checkpoint_of: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config("tiny_diffusion_uncond")
    content = torch.load(checkpoint_of(run_training(config, "--max-steps", "1")), weights_only=True)
    content["optimizer_states"][0]["param_groups"][0]["params"].pop()
    torch.save(content, tmp_path / "other.ckpt")
    run_training(config, "--max-steps", "2", "--ckpt-path", str(tmp_path / "other.ckpt"), status=2)
    told = capfd.readouterr().err
    assert "its optimisers do not fit what this config trains" in told and "--pretrained-ckpt-path" in told


def test_states_find_their_parameters_by_name() -> None:
    state = {
        "state": {0: "frozen", 1: "a", 3: "c"},
        "param_groups": [{"params": [0, 1], "lr": 0.1}, {"params": [2, 3]}],
    }
    made = renumbered(state, there=["x", "a", "b", "c"], here=["c", "b", "a"])
    assert made == {"state": {0: "c", 2: "a"}, "param_groups": [{"params": [0, 1, 2], "lr": 0.1}]}
