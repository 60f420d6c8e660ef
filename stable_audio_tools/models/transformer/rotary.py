"""Positions: rotary, absolute and sinusoidal. Rotary angles are computed in float32 whatever the model's dtype."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Rotary(NamedTuple):
    """Cosine and sine of every angle, (positions, half of the rotated channels)."""

    cos: Tensor
    sin: Tensor


PublishedAngles = tuple[Tensor, float]  # (positions, rotated channels), scale


class RotaryEmbedding(nn.Module):
    """Angles of rotary positions over the first `dim` channels of a head (Su et al. 2021)."""

    inv_freq: Tensor

    def __init__(
        self,
        dim: int,
        use_xpos: bool = False,
        scale_base: int = 512,
        interpolation_factor: float = 1.0,
        base: float = 10000,
        base_rescale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if use_xpos:
            raise ValueError("use_xpos: length-extrapolating rotary positions are not offered; leave it false")
        if interpolation_factor < 1:
            raise ValueError(f"interpolation_factor is {interpolation_factor}; it must be at least 1")
        self.dim = dim
        # NTK-aware rescaling of the base stretches the longest wavelength without touching the shortest.
        self.base = base * base_rescale_factor ** (dim / (dim - 2)) if base_rescale_factor != 1 else base
        self.interpolation_factor = interpolation_factor
        self.register_buffer("inv_freq", self._frequencies())

    def _frequencies(self, device: torch.device | None = None) -> Tensor:
        return 1.0 / (self.base ** (torch.arange(0, self.dim, 2, device=device).float() / self.dim))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        """Load the frequencies; those that half precision rounded become exact again, whatever type holds them now."""
        name = f"{prefix}inv_freq"
        stored = state_dict.get(name)
        if stored is not None and not stored.is_meta and stored.shape == self.inv_freq.shape:
            exact = self._frequencies(stored.device)
            rounded = [exact.to(dtype).float() for dtype in (torch.float16, torch.bfloat16)]
            if any(torch.equal(stored.float(), values) for values in rounded):
                state_dict[name] = exact.to(torch.promote_types(stored.dtype, torch.float32))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward_from_seq_len(self, seq_len: int, start: int = 0) -> PublishedAngles:
        """Return the angles of `seq_len` positions from `start` on, as `forward` does."""
        angles: PublishedAngles = self(torch.arange(start, start + seq_len, device=self.inv_freq.device))
        return angles

    def forward(self, positions: Tensor) -> PublishedAngles:
        """Return the angles of positions (n,) as published, (n, dim) with two equal halves, and a scale of 1."""
        # A cast of the whole module also casts this buffer, and half precision is too coarse for positions past 1000.
        frequencies = self.inv_freq
        if frequencies.dtype not in (torch.float32, torch.float64):
            frequencies = self._frequencies(frequencies.device)
        angles = (positions.to(frequencies.dtype) / self.interpolation_factor)[:, None] * frequencies
        return torch.cat((angles, angles), dim=-1), 1.0

    def table(self, seq_len: int, start: int = 0) -> Rotary:
        """Return cosines and sines of `seq_len` positions from `start` on."""
        return as_rotary(self.forward_from_seq_len(seq_len, start))


def as_rotary(angles: Rotary | PublishedAngles) -> Rotary:
    """Return cosines and sines of published angles; a `Rotary` stays as it is."""
    if isinstance(angles, Rotary):
        return angles
    turns, scale = angles
    if not isinstance(scale, int | float) or scale != 1:
        raise ValueError("rotary positions with a scale (xpos) are not offered; pass (angles, 1.0)")
    half = turns[..., : turns.shape[-1] // 2]
    half = half.to(torch.promote_types(half.dtype, torch.float32))
    return Rotary(half.cos(), half.sin())


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn the first channels of each head; x (b, h, n, d) for n positions, the remaining channels stay as they are."""
    cos, sin = rotary
    half = cos.shape[-1]
    dtype = torch.promote_types(x.dtype, cos.dtype)
    # One split costs the backward pass one concatenation, where slices would each fill a tensor of zeros.
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    first, second = first.to(dtype), second.to(dtype)
    turned = (first * cos - second * sin).to(x.dtype), (second * cos + first * sin).to(x.dtype)
    return torch.cat([*turned, rest], dim=-1)


class ScaledSinusoidalEmbedding(nn.Module):
    """Sines and cosines of the position, times a learned scale: (b, n, d) -> (n, d)."""

    def __init__(self, dim: int, theta: float = 10000) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"sinusoidal positions need an even width, got {dim}")
        self.num_frequencies = dim // 2
        self.theta = theta
        self.scale = nn.Parameter(torch.full((1,), dim**-0.5))

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        steps = torch.arange(self.num_frequencies, device=x.device).float() / self.num_frequencies
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        angles = positions[:, None] * self.theta**-steps
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(x.dtype) * self.scale


class AbsolutePositionalEmbedding(nn.Module):
    """A learned vector per position: (b, n, d) -> (n, d)."""

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.max_seq_len = max_seq_len
        self.emb = nn.Embedding(max_seq_len, dim)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        end = start + x.shape[1]
        if end > self.max_seq_len:
            raise ValueError(
                f"sequence of {end} positions, with prepended and memory tokens; the learned positions "
                f"(abs_pos_emb_max_length) end at {self.max_seq_len}"
            )
        return self.emb.weight[start:end] * self.scale
