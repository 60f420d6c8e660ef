"""An autoencoder inside a model: scale, precision, batches, chunks, weights, tokens."""

import copy
from typing import Any

import pytest
import torch

from stable_audio_tools.core.config import validate
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.factory import create_pretransform_from_config
from stable_audio_tools.models.pretransforms import AutoencoderPretransform

SHARED = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
VAE: dict[str, Any] = {
    "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 8, **SHARED}},
    "decoder": {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": 4, **SHARED}},
    "bottleneck": {"type": "vae"},
    "latent_dim": 4,
    "downsampling_ratio": 8,
    "io_channels": 2,
}


def autoencoder(bottleneck: dict[str, Any] | None, latent_dim: int = 4) -> dict[str, Any]:
    config = copy.deepcopy(VAE)
    config["encoder"]["config"]["latent_dim"] = latent_dim
    config["bottleneck"] = bottleneck
    return config


def build(config: dict[str, Any] = VAE, **beside: Any) -> AutoencoderPretransform:
    torch.manual_seed(0)
    node = {"type": "autoencoder", "config": config, **beside}
    pretransform = create_pretransform_from_config(node, sample_rate=16000)
    assert isinstance(pretransform, AutoencoderPretransform)
    return pretransform


@pytest.fixture
def audio() -> torch.Tensor:
    return 0.1 * torch.randn(3, 2, 1600, generator=torch.Generator().manual_seed(2))


def test_attributes_and_facts() -> None:
    pretransform = build()
    facts = validate("pretransform", {"type": "autoencoder", "config": VAE}).facts
    assert (pretransform.downsampling_ratio, pretransform.encoded_channels, pretransform.io_channels) == (8, 4, 2)
    assert facts == {"io_channels": 2, "encoded_channels": 4, "downsampling_ratio": 8, "is_discrete": False}
    assert pretransform.sample_rate == 16000
    assert pretransform.num_quantizers is None
    assert not pretransform.training


def test_it_is_frozen_unless_asked() -> None:
    assert not any(p.requires_grad for p in build().parameters())
    trained = build(enable_grad=True)
    assert trained.enable_grad
    assert all(p.requires_grad for p in trained.parameters())


def test_a_part_that_its_own_config_freezes_stays_frozen() -> None:
    config = autoencoder(None)
    config["decoder"]["requires_grad"] = False
    trained = build(config, enable_grad=True)
    assert {name.split(".")[1] for name, p in trained.named_parameters() if not p.requires_grad} == {"decoder"}
    assert all(p.requires_grad for p in trained.model.encoder.parameters())


def test_latents_are_divided_by_the_scale_and_multiplied_back(audio: torch.Tensor) -> None:
    plain, scaled = build(autoencoder({"type": "tanh"})), build(autoencoder({"type": "tanh"}), scale=0.5)
    latents = plain.encode(audio)
    torch.testing.assert_close(scaled.encode(audio), latents / 0.5)
    torch.testing.assert_close(scaled.decode(latents / 0.5), plain.decode(latents))


def test_items_one_by_one_are_the_batch(audio: torch.Tensor) -> None:
    together, alone = build(autoencoder(None)), build(autoencoder(None), iterate_batch=True)
    # Convolutions over one item and over three may sum in another order.
    torch.testing.assert_close(alone.encode(audio), together.encode(audio), rtol=1e-4, atol=1e-5)


def test_chunks_are_the_whole(audio: torch.Tensor) -> None:
    """32 frames of overlap cover the receptive field of these nets on either side of a cut."""
    whole, chunked = build(autoencoder(None)), build(autoencoder(None), chunked=True)
    latents = whole.encode(audio)
    torch.testing.assert_close(chunked.encode(audio), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunked.decode(latents), whole.decode(latents), rtol=1e-4, atol=1e-5)
    assert latents.shape[-1] > 128  # more than one chunk


def test_half_precision_inside_float_outside(audio: torch.Tensor) -> None:
    half = build(autoencoder({"type": "tanh"}), model_half=True)
    assert next(half.model.parameters()).dtype == torch.float16
    latents = half.encode(audio)
    assert latents.dtype == torch.float32
    assert half.decode(latents).dtype == torch.float32
    full = build(autoencoder({"type": "tanh"}))
    torch.testing.assert_close(latents, full.encode(audio), rtol=0, atol=5e-3)  # eleven bits of mantissa


def test_weights_assigned_in_float32_are_used_in_float32(audio: torch.Tensor) -> None:
    half, full = build(autoencoder(None), model_half=True), build(autoencoder(None))
    half.load_state_dict(full.model.state_dict(), assign=True)
    torch.testing.assert_close(half.encode(audio), full.encode(audio))


def test_weights_of_the_autoencoder_alone_load(audio: torch.Tensor) -> None:
    first = build(autoencoder(None))
    torch.manual_seed(7)
    node = {"type": "autoencoder", "config": autoencoder(None)}
    second = create_pretransform_from_config(node, sample_rate=16000)
    second.load_state_dict(first.model.state_dict())
    torch.testing.assert_close(second.encode(audio), first.encode(audio))
    assert all(name.startswith("model.") for name in first.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load_state_dict({})


@pytest.mark.parametrize(
    "bottleneck",
    [
        {"type": "dac_rvq", "config": {"input_dim": 4, "n_codebooks": 3, "codebook_size": 8, "codebook_dim": 2}},
        {"type": "rvq", "config": {"dim": 4, "num_quantizers": 3, "codebook_size": 8, "kmeans_init": False}},
        {"type": "fsq", "config": {"levels": [3, 3, 3, 3]}},
        {"type": "dithered_fsq", "config": {"dim": 4, "levels": 3}},
    ],
    ids=lambda node: node["type"],
)
@pytest.mark.parametrize("model_half", [False, True])
def test_tokens_of_every_layout_are_codebooks_by_frames(
    audio: torch.Tensor, bottleneck: dict[str, Any], model_half: bool
) -> None:
    pretransform = build(autoencoder(bottleneck), model_half=model_half)
    assert pretransform.is_discrete
    tokens = pretransform.tokenize(audio)
    assert tokens.shape == (3, pretransform.num_quantizers, 200)
    assert pretransform.codebook_size is not None
    assert tokens.max() < pretransform.codebook_size
    decoded = pretransform.decode_tokens(tokens)
    assert decoded.dtype == torch.float32
    tolerance = 2e-2 if model_half else 1e-5  # codes are looked up in float32, latents pass in float16
    torch.testing.assert_close(decoded, pretransform.decode(pretransform.encode(audio)), rtol=0, atol=tolerance)
    node = {"type": "autoencoder", "config": autoencoder(bottleneck)}
    facts = validate("pretransform", node).facts
    assert facts["is_discrete"]
    told = (facts["num_quantizers"], facts["codebook_size"])
    assert told == (pretransform.num_quantizers, pretransform.codebook_size)


def test_continuous_latents_are_no_tokens(audio: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="AutoencoderPretransform has no tokens"):
        build().tokenize(audio)
    with pytest.raises(ValueError, match="AutoencoderPretransform has no tokens to decode"):
        build().decode_tokens(torch.zeros(1, 1, 4, dtype=torch.long))


def test_mistakes_inside_are_named_with_their_path() -> None:
    config = copy.deepcopy(VAE)
    config["downsampling_ratio"] = 16
    config["bottleneck"] = {"type": "vaee"}
    with pytest.raises(ConfigError, match=r"pretransform\.config\.bottleneck\.type: .* did you mean 'vae'"):
        create_pretransform_from_config({"type": "autoencoder", "config": config}, sample_rate=16000)
