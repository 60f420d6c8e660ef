"""The base of the pretransforms: fixed, invertible steps between audio and the space that a model works in.

This class is the interface between codecs and everything that works on latents: generation, training and evaluation use
nothing else of a codec.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stable_audio_tools.core.config.json_files import JsonObject


class Pretransform(nn.Module):
    """A codec: `downsampling_ratio` samples of audio (b, io_channels, n) are one frame of (b, encoded_channels, t)."""

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
        """Encode audio (b, c, n) to (b, d, t)."""
        raise NotImplementedError

    def decode(self, z: Tensor, **kwargs: Any) -> Tensor:
        """Decode (b, d, t) to audio (b, c, n)."""
        raise NotImplementedError

    def tokenize(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Encode audio (b, c, n) to codes (b, q, t)."""
        raise ValueError(f"{type(self).__name__} has no tokens; only a discrete pretransform has")

    def decode_tokens(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """Decode codes (b, q, t) to audio (b, c, n)."""
        raise ValueError(f"{type(self).__name__} has no tokens to decode; only a discrete pretransform has")

    def unlike(self, node: Mapping[str, object], sample_rate: int) -> str | None:
        """Return why latents of the pretransform `node` do not suit this one; None if they do, or if it is unknown."""
        return None


def facts(
    *, io_channels: int, encoded_channels: int, downsampling_ratio: int | None, codes: tuple[int, int] | None = None
) -> JsonObject:
    """Return the facts that a model containing a pretransform reads; `codes` is (codebooks, entries of each)."""
    known: JsonObject = {
        "io_channels": io_channels,
        "encoded_channels": encoded_channels,
        "is_discrete": codes is not None,
    }
    if downsampling_ratio is not None:
        known["downsampling_ratio"] = downsampling_ratio
    if codes is not None:
        known.update(num_quantizers=codes[0], codebook_size=codes[1])
    return known
