"""Tiny models with random weights, none of them zero: a second or less for a whole generation."""

import pytest
import torch

from stable_audio_tools.models import create_model_from_config


def codec_config() -> dict:
    shared = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
    return {
        "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 8, **shared}},
        "decoder": {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": 4, **shared}},
        "bottleneck": {"type": "vae"},
        "latent_dim": 4,
        "downsampling_ratio": 8,
        "io_channels": 2,
    }


def model_config(
    objective: str = "v", pretransform: bool = True, inpainting: bool = False, **diffusion: object
) -> dict:
    model: dict = {
        "io_channels": 4 if pretransform else 2,
        "conditioning": {
            "cond_dim": 8,
            "configs": [
                {"id": "mood", "type": "list", "config": {"options": ["calm", "bright"]}},
                {"id": "tempo", "type": "number", "config": {"max_val": 200}},
            ],
        },
        "diffusion": {
            "type": "dit",
            "diffusion_objective": objective,
            "cross_attention_cond_ids": ["mood", "tempo"],
            "global_cond_ids": ["tempo"],
            "config": {
                "io_channels": 4 if pretransform else 2,
                "embed_dim": 32,
                "depth": 1,
                "num_heads": 1,
                "cond_token_dim": 8,
                "global_cond_dim": 8,
            },
            **diffusion,
        },
    }
    if pretransform:
        model["pretransform"] = {"type": "autoencoder", "config": codec_config()}
    if inpainting:
        model["diffusion"]["input_concat_ids"] = ["inpaint_mask", "inpaint_masked_input"]
        model["diffusion"]["config"]["input_concat_dim"] = 1 + model["io_channels"]
    kind = "diffusion_cond_inpaint" if inpainting else "diffusion_cond"
    return {"model_type": kind, "sample_size": 256, "sample_rate": 16000, "audio_channels": 2, "model": model}


def with_random_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Also where initialisation leaves zeros, which would make the conditions have no effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def make(config: dict) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_random_weights(create_model_from_config(config))


@pytest.fixture(scope="session")
def build_config():
    """A config by the arguments of `model_config`."""
    return model_config


@pytest.fixture(scope="session")
def made():
    """A model of a config, none of its weights zero."""
    return make


@pytest.fixture(scope="session")
def build_model():
    """A conditional model by the arguments of `model_config`, built once for each."""
    built: dict[str, torch.nn.Module] = {}

    def build(*arguments, **options):
        key = repr((arguments, sorted(options.items())))
        if key not in built:
            built[key] = make(model_config(*arguments, **options))
        return built[key]

    return build


@pytest.fixture(scope="session", params=["v", "rectified_flow"])
def unconditional_model(request: pytest.FixtureRequest):
    model = {
        "type": "dit",
        "config": {"in_channels": 4, "embed_dim": 32, "depth": 1, "num_heads": 1, "diffusion_objective": request.param},
        "pretransform": {"type": "autoencoder", "config": codec_config()},
    }
    return make({"model_type": "diffusion_uncond", "sample_size": 256, "sample_rate": 16000, "model": model})
