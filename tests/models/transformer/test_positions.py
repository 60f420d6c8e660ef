"""Positions: rotary against complex multiplication, tables in half precision, offsets."""

import pytest
import torch

from stable_audio_tools.models.transformer import (
    AbsolutePositionalEmbedding,
    Attention,
    RotaryEmbedding,
    ScaledSinusoidalEmbedding,
    apply_rotary_pos_emb,
)
from stable_audio_tools.models.transformer.rotary import rotate


def test_rotation_is_multiplication_by_a_complex_number():
    x = torch.randn(2, 3, 11, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions, steps = torch.arange(11).double(), torch.arange(4).double()
    turns = torch.polar(torch.ones(11, 4).double(), positions[:, None] / 10000 ** (steps / 4))
    turned = torch.complex(x[..., :4], x[..., 4:8]) * turns
    wanted = torch.cat([turned.real, turned.imag, x[..., 8:]], dim=-1)
    # The table is float32.
    torch.testing.assert_close(rotate(x, RotaryEmbedding(8).table(11)), wanted, atol=1e-5, rtol=1e-5)


def test_later_positions_are_a_part_of_a_longer_table():
    table = RotaryEmbedding(8)
    whole, tail = table.table(20), table.table(5, start=15)
    assert torch.equal(whole.cos[15:], tail.cos) and torch.equal(whole.sin[15:], tail.sin)


def test_casting_the_module_keeps_exact_angles():
    exact = RotaryEmbedding(32).table(3000)
    cast = RotaryEmbedding(32).half().table(3000)
    assert torch.equal(cast.cos, exact.cos) and torch.equal(cast.sin, exact.sin)


def test_interpolation_squeezes_positions():
    plain, squeezed = RotaryEmbedding(8), RotaryEmbedding(8, interpolation_factor=2.0)
    torch.testing.assert_close(squeezed.table(9).cos[::2], plain.table(5).cos)


def test_a_larger_base_keeps_the_shortest_wavelength():
    plain, stretched = RotaryEmbedding(8), RotaryEmbedding(8, base_rescale_factor=4.0)
    assert plain.inv_freq[0] == stretched.inv_freq[0] and plain.inv_freq[-1] > stretched.inv_freq[-1]


@pytest.mark.parametrize("embedding", [ScaledSinusoidalEmbedding(12), AbsolutePositionalEmbedding(12, 20)])
def test_offsets(embedding):
    x = torch.zeros(1, 10, 12)
    assert torch.equal(embedding(x)[4:], embedding(x[:, 4:], start=4))


def test_sinusoids():
    out = ScaledSinusoidalEmbedding(4)(torch.zeros(1, 3, 4)) * 2  # undoes the initial scale, 4^-0.5
    angles = torch.arange(3)[:, None] * torch.tensor([1.0, 0.01])
    torch.testing.assert_close(out, torch.cat([angles.sin(), angles.cos()], dim=-1))


def test_mistakes():
    with pytest.raises(ValueError, match=r"sequence of 21 positions, .*abs_pos_emb_max_length"):
        AbsolutePositionalEmbedding(4, 20)(torch.zeros(1, 21, 4))
    with pytest.raises(ValueError, match="even width, got 3"):
        ScaledSinusoidalEmbedding(3)
    with pytest.raises(ValueError, match=r"interpolation_factor is 0\.5; it must be at least 1"):
        RotaryEmbedding(8, interpolation_factor=0.5)
    with pytest.raises(ValueError, match="use_xpos"):
        RotaryEmbedding(8, use_xpos=True)


def test_published_angles_turn_heads_as_the_transformer_does() -> None:
    """Other people's code takes the angles, and passes them on."""
    embedding = RotaryEmbedding(8)
    freqs, scale = embedding.forward_from_seq_len(11)
    assert freqs.shape == (11, 8) and scale == 1
    torch.testing.assert_close(freqs[:, :4], freqs[:, 4:])
    torch.testing.assert_close(freqs[3, :4], 3 * embedding.inv_freq)
    x = torch.randn(2, 3, 11, 16, generator=torch.Generator().manual_seed(0))
    wanted = rotate(x, embedding.table(11))
    torch.testing.assert_close(apply_rotary_pos_emb(x, freqs, scale), wanted)
    torch.manual_seed(0)
    attention = Attention(16, dim_heads=16)
    inputs = torch.randn(1, 11, 16)
    torch.testing.assert_close(
        attention(inputs, rotary_pos_emb=(freqs, scale)), attention(inputs, rotary_pos_emb=embedding.table(11))
    )
