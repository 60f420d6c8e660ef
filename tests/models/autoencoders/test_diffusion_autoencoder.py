"""The diffusion autoencoder: what steers the denoising, the sampler, and what its config must agree on."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.autoencoders import (
    DiffusionAutoencoder,
    create_diffAE_from_config,
    create_encoder_from_config,
)
from stable_audio_tools.models.factory import create_model_from_config

ENCODER = {"type": "oobleck", "config": {"in_channels": 2, "channels": 4, "c_mults": [1, 2], "strides": [2, 4]}}
DAU = {"io_channels": 2, "depth": 3, "n_attn_layers": 0, "channels": [8, 8, 8], "strides": [2, 2], "cond_dim": 4}


def config(**changes: Any) -> dict[str, Any]:
    encoder = copy.deepcopy(ENCODER)
    encoder["config"]["latent_dim"] = 4
    model = {
        "encoder": encoder,
        "bottleneck": {"type": "tanh"},
        "diffusion": {"type": "DAU1d", "config": dict(DAU)},
        "latent_dim": 4,
        "downsampling_ratio": 8,
        "io_channels": 2,
        **changes,
    }
    return {"model_type": "diffusion_autoencoder", "sample_rate": 16000, "sample_size": 512, "model": model}


def build(**changes: Any) -> DiffusionAutoencoder:
    torch.manual_seed(0)
    model = create_model_from_config(config(**changes)).eval()
    assert isinstance(model, DiffusionAutoencoder)
    return model


@pytest.fixture
def audio() -> Tensor:
    return 0.1 * torch.randn(2, 2, 512, generator=torch.Generator().manual_seed(1))


def test_round_trip(audio: Tensor) -> None:
    model = build()
    latents = model.encode(audio)
    assert latents.shape == (2, 4, 64)
    torch.manual_seed(3)
    decoded = model.decode(latents, steps=2)
    assert decoded.shape == audio.shape
    torch.manual_seed(3)
    assert torch.equal(model.decode(latents, steps=2), decoded)
    assert model.min_length == 8 * 4


class Steered(nn.Module):
    """The exact v of data that is known: the condition itself."""

    io_channels = 1

    def forward(self, x: Tensor, t: Tensor, input_concat_cond: Tensor) -> Tensor:
        angle = (t * math.pi / 2)[:, None, None]
        return (x * angle.cos() - input_concat_cond) / angle.sin()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_network_is_followed_to_its_data(steps: int) -> None:
    """Each frame of latents steers as many samples as it stands for."""
    model = DiffusionAutoencoder(
        Steered(), 1, encoder=None, decoder=None, latent_dim=1, downsampling_ratio=4, sample_rate=16000, io_channels=1
    )
    latents = torch.tensor([[[1.0, -2.0, 0.5]]])
    torch.testing.assert_close(model.decode(latents, steps=steps), latents.repeat_interleave(4, dim=-1))


def test_noise_is_drawn_once_for_the_batch_whatever_its_split() -> None:
    model, latents = build(), torch.randn(3, 4, 16)
    torch.manual_seed(3)
    whole = model.decode(latents, steps=2)
    torch.manual_seed(3)
    torch.testing.assert_close(model.decode(latents, steps=2, iterate_batch=True), whole, rtol=0, atol=1e-5)


def test_a_decoder_between_latents_and_diffusion(audio: Tensor) -> None:
    decoder = {
        "type": "oobleck",
        "config": {"out_channels": 3, "latent_dim": 4, "channels": 4, "c_mults": [1, 2], "strides": [2, 4]},
    }
    model = build(decoder=decoder, diffusion={"type": "DAU1d", "config": {**DAU, "cond_dim": 3}})
    latents = model.encode(audio)
    assert model.condition_on(latents).shape == (2, 3, 512)
    assert model.decode(latents, steps=1).shape == audio.shape


@pytest.mark.parametrize("ratio", [8, 16], ids=["counted-after-the-pretransform", "counted-in-samples"])
def test_a_pretransform_around_it(ratio: int) -> None:
    encoder = copy.deepcopy(ENCODER)
    encoder["config"].update(latent_dim=4, in_channels=4)
    model = build(
        pretransform={"type": "patched", "config": {"channels": 2, "patch_size": 2}},
        encoder=encoder,
        diffusion={"type": "DAU1d", "config": {**DAU, "io_channels": 4}},
        io_channels=4,
        downsampling_ratio=ratio,
    )
    audio = torch.randn(1, 2, 1024)
    latents = model.encode(audio)
    assert latents.shape == (1, 4, 64)
    assert model.downsampling_ratio == 16
    assert model.decode(latents, steps=1).shape == audio.shape


@pytest.mark.parametrize(
    "diffusion",
    [
        {
            "type": "dit",
            "config": {"io_channels": 2, "embed_dim": 32, "depth": 1, "num_heads": 2, "input_concat_dim": 4},
        },
        {
            "type": "adp_1d",
            "config": {
                "in_channels": 2,
                "channels": 8,
                "multipliers": [1, 2],
                "factors": [2],
                "num_blocks": [1],
                "attentions": [0, 0],
                "resnet_groups": 4,
                "context_channels": [4],
            },
        },
    ],
    ids=lambda node: node["type"],
)
def test_other_backbones(audio: Tensor, diffusion: dict[str, Any]) -> None:
    model = build(diffusion=diffusion)
    assert model.decode(model.encode(audio), steps=2).shape == audio.shape


def test_the_encoder_starts_at_half_its_weights() -> None:
    model = build()
    assert model.encoder is not None
    torch.manual_seed(0)
    plain = create_encoder_from_config(config()["model"]["encoder"])
    for halved, whole in zip(model.encoder.parameters(), plain.parameters()):
        torch.testing.assert_close(halved, whole / 2)


def test_tokens_of_a_discrete_bottleneck_decode(audio: Tensor) -> None:
    model = build(bottleneck={"type": "fsq", "config": {"levels": [5, 5, 5, 5]}})
    latents, info = model.encode(audio, return_info=True)
    torch.manual_seed(2)
    wanted = model.decode(latents, steps=1)
    torch.manual_seed(2)
    torch.testing.assert_close(model.decode_tokens(info["quantizer_indices"], steps=1), wanted, rtol=0, atol=1e-5)


def test_half_precision(audio: Tensor) -> None:
    model = build().bfloat16()
    decoded = model.decode(model.encode(audio.bfloat16()), steps=2)
    assert decoded.dtype == torch.bfloat16
    assert decoded.isfinite().all()


def test_builds_without_memory() -> None:
    with torch.device("meta"):
        empty = create_diffAE_from_config(config())
    shapes = {name: value.shape for name, value in build().state_dict().items()}
    assert {name: value.shape for name, value in empty.state_dict().items()} == shapes
    assert {name.split(".")[0] for name in shapes} == {"encoder", "diffusion"}


def test_steps_must_be_positive(audio: Tensor) -> None:
    model = build()
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        model.decode(model.encode(audio), steps=0)


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(downsampling_ratio=16), r"model\.downsampling_ratio: is 16, but encoder.* set it to 8"),
        (lambda m: m.update(latent_dim=6), r"encoder\.config\.latent_dim: is 4, but latent_dim is 6"),
        (lambda m: m["diffusion"]["config"].update(cond_dim=5), r"cond_dim: is 5, but the latents have 4 channels"),
        (lambda m: m.update(io_channels=1), r"io_channels: is 1, but the diffusion model denoises 2: use 2"),
        (lambda m: m.update(bottleneck={"type": "vae"}), r"set encoder\.config\.latent_dim to 8"),
        (
            lambda m: m.update(bottleneck={"type": "fsq", "config": {"levels": [5]}}),
            r"bottleneck\.config outputs 1 channels",
        ),
        (lambda m: m["diffusion"].update(type="DAU"), "did you mean 'DAU1d'"),
        (lambda m: m.pop("diffusion"), r"model\.diffusion: missing"),
    ],
)
def test_mistakes_are_named(change: Change, message: str) -> None:
    wrong = config()
    change(wrong["model"])
    with pytest.raises(ConfigError, match=message):
        create_model_from_config(wrong)


def test_a_config_without_its_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="sample_rate: missing; a diffusion autoencoder needs it"):
        create_diffAE_from_config({"model": config()["model"]})
