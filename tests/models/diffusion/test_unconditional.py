"""Unconditional models from configs: backbone, objective, denoiser, mistakes."""

import pytest
import torch

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.diffusion import DiTUncondWrapper

DIT = {"in_channels": 2, "embed_dim": 32, "depth": 1, "num_heads": 1}


def config(type="dit", config=DIT, **model):
    return {
        "model_type": "diffusion_uncond",
        "sample_size": 64,
        "sample_rate": 16000,
        "model": {"type": type, "config": config, **model},
    }


def test_a_config_runs_and_can_be_sampled():
    model = create_model_from_config(config(config={**DIT, "patch_size": 4}))
    x, t = torch.randn(2, 2, 16), torch.rand(2)
    out = model(x, t)
    assert out.shape == x.shape and torch.equal(model.denoiser()(x, t), out)
    assert (model.diffusion_objective, model.io_channels, model.sample_size) == ("v", 2, 64)
    assert model.min_input_length == 4


@pytest.mark.parametrize(
    ("inside", "beside", "objective"),
    [
        ({}, {}, "v"),
        ({"diffusion_objective": "rectified_flow"}, {}, "rectified_flow"),
        ({}, "rf_denoiser", "rf_denoiser"),
    ],
)
def test_the_objective_stands_beside_or_inside_the_backbones_config(inside, beside, objective):
    model = create_model_from_config(
        config(config={**DIT, **inside}, **({"diffusion_objective": beside} if beside else {}))
    )
    assert model.diffusion_objective == objective


def test_initial_weights_are_half_as_large():
    torch.manual_seed(0)
    scale = DiTUncondWrapper(**DIT).model.transformer.layers[0].pre_norm.gamma
    assert torch.equal(scale, torch.full_like(scale, 0.5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (config(type="dti"), r"model\.type: no unconditional diffusion model named 'dti'; did you mean 'dit'\?"),
        (config(config={**DIT, "dept": 2}), r"model\.config\.dept: unknown key; did you mean 'depth'\?"),
        (config(config={**DIT, "io_channels": 2}), r"model\.config\.io_channels: unknown key"),
        (config(config={}), r"model\.config\.in_channels: missing"),
        (
            config(config={**DIT, "num_heads": 3}),
            r"model\.config\.embed_dim: is 32; it must be a multiple of num_heads",
        ),
        (
            config(pretransform={"type": "patched", "config": {"channels": 2, "patch_size": 4}}),
            r"model\.config\.in_channels: is 2, but the pretransform delivers 8 channels: use 8",
        ),
        (config(diffusion_objective="w"), r"diffusion_objective: expected 'v', 'rectified_flow' or 'rf_denoiser'"),
    ],
)
def test_mistakes(wrong, message):
    with pytest.raises(ConfigError, match=message):
        create_model_from_config(wrong)
