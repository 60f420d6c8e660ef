"""Finite scalar quantisation against vector-quantize-pytorch, and what its levels promise."""

import math

import pytest
import torch

from stable_audio_tools.models.bottleneck import DitheredFSQBottleneck, FSQBottleneck

LEVELS = [8, 5, 2, 3]


@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_fsq_gives_the_values_and_codes_of_the_package(num_codebooks: int) -> None:
    from vector_quantize_pytorch import FSQ

    torch.manual_seed(0)
    levels = [8, 5, 4, 3]  # newer releases take 2 levels only by another rule
    x = 2 * torch.randn(2, len(levels) * num_codebooks, 200)
    reference = FSQ(levels, num_codebooks=num_codebooks, keep_num_codebooks_dim=True)
    values, codes = reference(x.mT)
    latents, info = FSQBottleneck(levels=levels, num_codebooks=num_codebooks).encode(x, return_info=True)
    torch.testing.assert_close(latents, values.mT)
    # The package truncates sums such as 2.9999998; its levels are exact all the same, so at most few codes differ.
    assert (info["quantizer_indices"] == codes.mT).float().mean() > 0.99


def test_every_code_is_its_own_value() -> None:
    bottleneck = FSQBottleneck(levels=LEVELS)
    codes = torch.arange(math.prod(LEVELS))[None, None]
    latents = bottleneck.decode_tokens(codes)
    assert latents.shape == (1, 4, math.prod(LEVELS))
    assert latents.abs().max() <= 1
    # tanh bends values on their way in: this inverse of the bound leads back to the middle of each level
    half = (torch.tensor(LEVELS) - 1) * (1 + 1e-3) / 2
    offset = torch.where(torch.tensor(LEVELS) % 2 == 0, 0.5, 0.0)
    steps = latents[0].T * (torch.tensor(LEVELS) // 2)
    unbounded = torch.atanh((steps + offset) / half) - torch.atanh(offset / half)
    _, info = bottleneck.encode(unbounded.T[None], return_info=True)
    assert torch.equal(info["quantizer_indices"], codes)


def test_projections_are_learned_and_named() -> None:
    bottleneck = FSQBottleneck(levels=[5, 5], dim=8, projection_has_bias=False)
    assert set(bottleneck.state_dict()) == {"quantizer.project_in.weight", "quantizer.project_out.weight"}
    assert FSQBottleneck(levels=[5, 5]).state_dict() == {}


def test_one_number_of_levels_for_every_channel() -> None:
    bottleneck = FSQBottleneck(dim=6, levels=5)
    assert bottleneck.codebook_size == 5**6
    assert bottleneck.num_quantizers == 1


def test_dithered_rounds_to_even_steps_at_inference() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 100)
    latents = DitheredFSQBottleneck(dim=3, levels=[3, 5, 9]).eval().encode(x)
    for channel, levels in enumerate([3, 5, 9]):
        grid = torch.linspace(-1, 1, levels)
        nearest = (torch.tanh(x[:, channel, :, None]) - grid).abs().argmin(-1)
        torch.testing.assert_close(latents[:, channel], grid[nearest])


def test_dither_has_the_width_of_a_step_and_spares_some_items() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 2, 200)
    bottleneck = DitheredFSQBottleneck(dim=2, levels=5, noise_dropout=0.5).train()
    latents, info = bottleneck.encode(x, return_info=True)
    squashed = torch.tanh(x)
    difference = (latents - squashed).abs().amax((1, 2))
    untouched = difference < 1e-6
    assert (difference <= 0.25 + 1e-6).all()  # half a step, of noise and of rounding
    assert 4 <= untouched.sum() <= 32  # 16 expected: both draws spare an item with probability a half
    assert info["quantizer_indices"].min() >= 0
    assert info["quantizer_indices"].max() < 25


def test_without_dropout_all_items_are_dithered() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 5000)
    latents = DitheredFSQBottleneck(dim=2, levels=5, noise_dropout=0.0).train().encode(x)
    noise = latents - torch.tanh(x)
    assert noise.std() == pytest.approx(0.5 / math.sqrt(12), rel=0.03)  # a uniform law over one step


def test_levels_and_dim_must_agree_outside_configs_too() -> None:
    with pytest.raises(ValueError, match="levels has 2 entries, dim is 3"):
        DitheredFSQBottleneck(dim=3, levels=[5, 5])
