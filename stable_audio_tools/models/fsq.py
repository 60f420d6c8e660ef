"""Published import path of the dithered quantiser."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stable_audio_tools.models.bottleneck.fsq import DitheredQuantizer
from stable_audio_tools.models.bottleneck.fsq import round_straight_through as round_ste

__all__ = ["DitheredFSQ", "leaky_hard_clip", "round_ste"]


def leaky_hard_clip(x: Tensor, alpha: float = 1e-3) -> Tensor:
    """Clip x to [-1, 1], with a slope of `alpha` outside."""
    return torch.lerp(x.clamp(-1, 1), x, alpha)


class DitheredFSQ(DitheredQuantizer):
    """Values (b, t, q * d) to values on evenly spaced levels and codes (b, t, q), and codes back to values.

    `dither_inference` has no effect, as in the original: at inference values are rounded.
    """

    def __init__(
        self,
        levels: Sequence[int],
        dither_inference: bool = False,
        num_codebooks: int = 1,
        noise_dropout: float = 0.5,
        scale: float = 1.0,
    ) -> None:
        super().__init__(levels, num_codebooks, noise_dropout, scale)
        self.dither_inference = dither_inference
        self.codebook_dim = len(self.levels)
        self.codebook_size = int(torch.tensor(self.levels).prod())
        self.dim = self.codebook_dim * num_codebooks

    def forward(self, x: Tensor, skip_tanh: bool = False) -> tuple[Tensor, Tensor]:
        if x.shape[-1] != self.dim:
            raise ValueError(f"expected {self.dim} channels on the last axis, got {tuple(x.shape)}")
        return super().forward(x, skip_tanh)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Convert codes (b, t, q) to values (b, t, q * d)."""
        if indices.shape[-1] != self.num_codebooks:
            raise ValueError(f"expected {self.num_codebooks} codes on the last axis, got {tuple(indices.shape)}")
        return self.lookup(indices.long())
