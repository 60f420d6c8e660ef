"""Base classes of the bottlenecks, which shape the distribution of the latents between encoder and decoder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.core.config.json_files import JsonObject

_LOW_PRECISION = (torch.float16, torch.bfloat16)


class Compressed(NamedTuple):
    """The output of a bottleneck."""

    latents: Tensor  # (b, d, t)
    info: dict[str, Tensor]  # losses by their name, codes under the bottleneck's `tokens_id`


class Bottleneck(nn.Module):
    """Base of the bottlenecks: subclasses define `compress`, and `decode` if the decoder takes other values."""

    is_residual = False  # whether the first few codebooks alone describe the latents, less precisely

    def __init__(self, is_discrete: bool = False) -> None:
        super().__init__()
        self.is_discrete = is_discrete

    def encode(self, x: Tensor, return_info: bool = False, n_quantizers: int | None = None) -> Any:
        """Convert encoder output (b, d or 2d, t) to latents (b, d, t); with `return_info`, also return losses and
        codes.

        `n_quantizers` keeps the first codebooks of a residual quantiser only; in training all are used.
        """
        if n_quantizers is not None and not self.is_residual:
            raise ValueError(
                f"n_quantizers: {type(self).__name__} has no residual codebooks to choose from; leave it out"
            )
        latents, info = self.compress(x, losses=self.training and return_info, n_quantizers=n_quantizers)
        return (latents, info) if return_info else latents

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        """Implement `encode`; `losses` requests losses that are costly or draw noise."""
        raise NotImplementedError

    def decode(self, x: Tensor) -> Tensor:
        """Convert latents (b, d, t) to the input of the decoder, (b, d', t)."""
        return x


class DiscreteBottleneck(Bottleneck):
    """A bottleneck whose latents are also codes: `num_quantizers` numbers below `codebook_size` for each frame.

    Quantising depends on small differences, so it runs in float32, and its weights stay there when the model is cast.
    """

    codebooks_first = True  # codes of `encode` are (b, q, t); False: (b, t, q)

    def __init__(self, num_quantizers: int, codebook_size: int, tokens_id: str) -> None:
        super().__init__(is_discrete=True)
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.tokens_id = tokens_id

    def encode(self, x: Tensor, return_info: bool = False, n_quantizers: int | None = None) -> Any:
        """Encode as every bottleneck does; the codes are in the info under `tokens_id`."""
        if n_quantizers is not None and self.is_residual and not 1 <= n_quantizers <= self.num_quantizers:
            raise ValueError(f"n_quantizers must be from 1 to {self.num_quantizers} for this model, got {n_quantizers}")
        with torch.autocast(x.device.type, enabled=False):
            latents, info = super().encode(in_full_precision(x), return_info=True, n_quantizers=n_quantizers)
        latents = latents.to(x.dtype)
        return (latents, info) if return_info else latents

    def tokens(self, info: dict[str, Tensor]) -> Tensor:
        """Return the codes in an info of `encode`, always as (b, q, t)."""
        codes: Tensor = info[self.tokens_id]
        return codes if self.codebooks_first else codes.mT

    def decode_tokens(self, codes: Tensor) -> Tensor:
        """Decode codes; published name of `decode_codes`."""
        return self.decode_codes(codes)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Convert codes, in the layout of `encode`, to the input of the decoder."""
        axis = 1 if self.codebooks_first else 2
        count = codes.shape[axis] if codes.ndim == 3 else 0
        if not (1 <= count <= self.num_quantizers if self.is_residual else count == self.num_quantizers):
            layout = "(batch, codebooks, frames)" if self.codebooks_first else "(batch, frames, codebooks)"
            raise ValueError(
                f"codes must be shaped {layout} with {self.num_quantizers} codebooks for this model, "
                f"got {tuple(codes.shape)}"
            )
        with torch.autocast(codes.device.type, enabled=False):
            return self.expand(self.lookup(codes.long()))

    def lookup(self, codes: Tensor) -> Tensor:
        """Convert codes, in the layout of `encode`, to the latents (b, d, t) that it returned."""
        raise NotImplementedError

    def expand(self, latents: Tensor) -> Tensor:
        """Apply the part of `decode` that follows quantisation."""
        return latents

    def decode(self, x: Tensor) -> Tensor:
        """Convert latents (b, d, t) to the input of the decoder, (b, d', t)."""
        return self.expand(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DiscreteBottleneck":
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            lowered = moved.dtype in _LOW_PRECISION and tensor.dtype not in _LOW_PRECISION
            return tensor.to(moved.device) if lowered else moved

        return super()._apply(keep_precision, recurse)


def in_full_precision(x: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; return float32 and float64 unchanged."""
    return x.float() if x.dtype in _LOW_PRECISION else x


def append_noise(x: Tensor, channels: int, scale: Tensor | None = None) -> Tensor:
    """Append noise channels for the decoder: (b, d, t) to (b, d + channels, t).

    The noise is drawn on the CPU, so that a seed gives the same noise on every device.
    """
    if channels == 0:
        return x
    noise = torch.randn(x.shape[0], channels, x.shape[-1])
    noise = noise.type_as(x) if scale is None else (scale * noise.to(scale)).type_as(x)
    return torch.cat([x, noise], dim=1)


def facts(
    *, dim: int | None = None, encoder_multiple: int = 1, extra_channels: int = 0, codes: tuple[int, int] | None = None
) -> JsonObject:
    """Return the facts that an autoencoder reads; `dim` is the number of latent channels if the bottleneck fixes it.

    `encoder_multiple` is encoder channels per latent channel, `extra_channels` are decoder channels besides the
    latents, `codes` is (codebooks, entries of each).
    """
    known: JsonObject = {
        "encoder_multiple": encoder_multiple,
        "extra_channels": extra_channels,
        "is_discrete": False,
    }
    if dim is not None:
        known["dim"] = dim
    if codes is not None:
        known.update(is_discrete=True, num_quantizers=codes[0], codebook_size=codes[1])
    return known
