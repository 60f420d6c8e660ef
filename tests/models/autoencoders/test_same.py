"""SAME: lengths, how far attention reaches, strides, freezing, refusals."""

from typing import Any

import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.autoencoders import SAMEDecoder, SAMEEncoder, TransformerResamplingBlock

SMALL: dict[str, Any] = {"channels": 16, "c_mults": [2], "strides": [4], "transformer_depths": [2], "dim_heads": 16}


def awake(module: torch.nn.Module) -> torch.nn.Module:
    """Fresh branches end in zeros; give them weights, so that attention matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def reach(encoder: torch.nn.Module, frame: int, length: int) -> list[int]:
    """Latents that one frame of the input changes."""
    x = torch.randn(1, 2, length, generator=torch.Generator().manual_seed(1)).requires_grad_()
    latents = encoder(x)
    changed = []
    for index in range(latents.shape[-1]):
        (gradient,) = torch.autograd.grad(latents[0, :, index].sum(), x, retain_graph=True)
        if gradient[0, :, frame].abs().max() > 0:
            changed.append(index)
    return changed


@pytest.mark.parametrize(("length", "latents"), [(16, 4), (17, 8), (1, 4)])
def test_chunks_pad_lengths_to_whole_chunks(length: int, latents: int) -> None:
    encoder, decoder = (
        SAMEEncoder(**SMALL, chunk_size=16, latent_dim=8),
        SAMEDecoder(**SMALL, chunk_size=16, latent_dim=8),
    )
    encoded = encoder(torch.randn(2, 2, length))
    assert encoded.shape == (2, 8, latents)
    assert decoder(encoded).shape == (2, 2, 4 * latents)
    assert decoder(encoded[..., :1]).shape == (2, 2, 16)


def test_windows_pad_to_whole_strides_only() -> None:
    encoder = SAMEEncoder(**SMALL, sliding_window=[1, 1], latent_dim=8)
    assert encoder(torch.randn(1, 2, 17)).shape == (1, 8, 5)


def test_chunks_do_not_see_each_other_without_a_shift() -> None:
    plain = awake(SAMEEncoder(**SMALL, chunk_size=8, latent_dim=8))
    shifted = awake(SAMEEncoder(**SMALL, chunk_size=8, chunk_midpoint_shift=True, latent_dim=8))
    assert reach(plain, 9, 24) == [2, 3]
    assert reach(shifted, 9, 24) == [1, 2, 3, 4]


def test_a_window_reaches_as_far_as_its_layers_allow() -> None:
    encoder = awake(SAMEEncoder(**{**SMALL, "transformer_depths": [1]}, sliding_window=[1, 0], latent_dim=8))
    # Five tokens back from a query are its own four frames and the query before: the second layer reaches on.
    assert reach(encoder, 9, 24) == [2]
    deeper = awake(SAMEEncoder(**SMALL, sliding_window=[1, 0], latent_dim=8))
    assert reach(deeper, 9, 24) == [2, 3]


def test_query_noise_is_drawn_at_inference_too() -> None:
    encoder = awake(SAMEEncoder(**SMALL, chunk_size=8, mask_noise=0.5, latent_dim=8))
    x = torch.randn(1, 2, 16)
    assert encoder.draws_noise
    assert not torch.equal(encoder(x), encoder(x))
    assert not SAMEEncoder(**SMALL, chunk_size=8, latent_dim=8).draws_noise


def test_strides_can_change_per_call() -> None:
    encoder = SAMEEncoder(**SMALL, chunk_size=8, variable_stride=True, latent_dim=8)
    assert encoder(torch.randn(1, 2, 16), override_stride=[2]).shape[-1] == 8
    with pytest.raises(ValueError, match="has 2 entries; this model has 1 stages"):
        encoder(torch.randn(1, 2, 16), override_stride=[2, 2])
    with pytest.raises(ValueError, match="needs variable_stride"):
        SAMEEncoder(**SMALL, chunk_size=8, latent_dim=8)(torch.randn(1, 2, 16), override_stride=[2])


def test_a_frozen_backbone_trains_only_what_maps_between_widths() -> None:
    decoder = SAMEDecoder(**SMALL, freeze_backbone=True, chunk_size=8, latent_dim=8)
    trained = {name for name, value in decoder.named_parameters() if value.requires_grad}
    assert trained == {"layers.3.mapping.weight_g", "layers.3.mapping.weight_v", "layers.3.mapping.bias"}


def test_the_last_layers_but_one_have_sine_gates() -> None:
    block = TransformerResamplingBlock(32, 32, 4, transformer_depth=4, sinusoidal_blocks=3, dim_heads=16)
    gates = [type(layer.ff.ff[0].act).__name__ for layer in block.transformers]
    assert gates == ["SiLU", "SiLU", "Sine", "Sine"]


@pytest.mark.parametrize("window", [None, [1, 1]])
def test_recomputing_activations_changes_no_gradient(window: list[int] | None) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        encoder = awake(
            SAMEEncoder(**SMALL, sliding_window=window, chunk_size=8, latent_dim=8, checkpointing=checkpointing)
        )
        encoder(torch.ones(1, 2, 16).cumsum(-1)).square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters() if parameter.grad is not None])
    assert all(torch.allclose(first, second, rtol=1e-4, atol=1e-5) for first, second in zip(*gradients))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chunk_size": 10}, r"chunk_size: is 10, not a multiple of strides\[0\], 4"),
        ({"chunk_size": 12, "chunk_midpoint_shift": True}, "holds 3 of 4: use 24"),
        ({"strides": [4, 2]}, "has 2 entries for 1 c_mults"),
        ({"dim_heads": 24}, "attention heads are 24 wide"),
        ({"sliding_windw": [1, 1]}, "did you mean 'sliding_window'"),
    ],
)
def test_mistakes_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("encoder", {"type": "same", "config": {**SMALL, **config}})
