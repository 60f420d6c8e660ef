"""The base of the pretransforms: fixed, invertible steps between audio and the space that a model works in.

This is the seam between codecs and everything that works on latents: generation, training and evaluation know no more
of a codec than this class.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Pretransform(nn.Module):
    """`downsampling_ratio` samples of audio (b, io_channels, n) make one frame of (b, encoded_channels, t)."""

    encoded_channels: int
    downsampling_ratio: int
    num_quantizers: int | None = None
    codebook_size: int | None = None
    is_scaled: bool = False  # whether `scale` is a setting of this pretransform

    def __init__(self, enable_grad: bool, io_channels: int, is_discrete: bool) -> None:
        super().__init__()
        self.enable_grad = enable_grad
        self.io_channels = io_channels
        self.is_discrete = is_discrete

    @property
    def scale(self) -> float:
        """The number by which `encode` divides latents, and by which `decode` multiplies them."""
        return 1.0

    def encode(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Audio (b, c, n) to (b, d, t)."""
        raise NotImplementedError

    def decode(self, z: Tensor, **kwargs: Any) -> Tensor:
        """(b, d, t) to audio (b, c, n)."""
        raise NotImplementedError

    def tokenize(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Audio (b, c, n) to codes (b, q, t)."""
        raise ValueError(f"{type(self).__name__} makes no tokens; only a discrete pretransform does")

    def decode_tokens(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """Codes (b, q, t) to audio (b, c, n)."""
        raise ValueError(f"{type(self).__name__} has no tokens to decode; only a discrete pretransform has")

    def unlike(self, node: Mapping[str, Any], sample_rate: int) -> str | None:
        """Why latents that the pretransform `node` made are not this one's; None where they are, or nobody can tell."""
        return None


def facts(
    *, io_channels: int, encoded_channels: int, downsampling_ratio: int | None, codes: tuple[int, int] | None = None
) -> dict[str, Any]:
    """What a model that holds a pretransform needs to know of it; `codes` is (codebooks, entries of each)."""
    known: dict[str, Any] = {
        "io_channels": io_channels,
        "encoded_channels": encoded_channels,
        "is_discrete": codes is not None,
    }
    if downsampling_ratio is not None:
        known["downsampling_ratio"] = downsampling_ratio
    if codes is not None:
        known.update(num_quantizers=codes[0], codebook_size=codes[1])
    return known
