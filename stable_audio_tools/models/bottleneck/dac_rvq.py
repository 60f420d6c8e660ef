"""The residual quantiser of the Descript Audio Codec (Kumar et al. 2023), with descript-audio-codec's state-dict names.

Entries are compared by direction, in few dimensions, and learn by gradient.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d
from stable_audio_tools.models.bottleneck.base import (
    Compressed,
    DiscreteBottleneck,
    append_noise,
    facts,
    in_full_precision,
)
from stable_audio_tools.models.bottleneck.simple import NoiseChannels
from stable_audio_tools.models.bottleneck.vae import sample_encoded

_InputDim = Annotated[int, Field(ge=1, description="channels of the latents")]
_Count = Annotated[int, Field(ge=1, description="codebooks")]
_Size = Annotated[int, Field(ge=1, description="entries of each codebook")]
_Width = Annotated[int, Field(ge=1)]
_CodebookDim = Annotated[_Width | Sequence[_Width], Field(description="channels of the entries, of all or of each")]
_Dropout = Annotated[float, Field(ge=0, le=1, description="share of items trained with a random number of codebooks")]
_OnDecode = Annotated[bool, Field(description="leave the latents continuous and quantise them before the decoder")]


class Quantized(NamedTuple):
    """Output of one codebook, with losses per item, or of several, with losses averaged and summed over codebooks."""

    values: Tensor  # (b, d, t)
    codes: Tensor  # (b, t), of several codebooks (b, q, t)
    projected: Tensor  # (b, sum of codebook dims, t), what was compared with the entries
    commitment_loss: Tensor
    codebook_loss: Tensor


class Codebook(nn.Module):
    """Nearest entries by direction, between two projections."""

    def __init__(self, input_dim: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj = WNConv1d(input_dim, codebook_dim, kernel_size=1)
        self.out_proj = WNConv1d(codebook_dim, input_dim, kernel_size=1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def forward(self, x: Tensor) -> Quantized:  # (b, d, t)
        projected = self.in_proj(x)
        codes = self._nearest(projected)
        entries = self._entries(codes)
        commitment = F.mse_loss(projected, entries.detach(), reduction="none").mean((1, 2))
        codebook = F.mse_loss(entries, projected.detach(), reduction="none").mean((1, 2))
        straight_through = projected + (entries - projected).detach()
        return Quantized(self.out_proj(straight_through), codes, projected, commitment, codebook)

    def lookup(self, codes: Tensor) -> Tensor:  # (b, t) -> (b, d, t)
        values: Tensor = self.out_proj(self._entries(codes))
        return values

    def _entries(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook.weight).mT

    def _nearest(self, projected: Tensor) -> Tensor:
        found, known = F.normalize(projected.mT, dim=-1), F.normalize(self.codebook.weight)
        distance = found.pow(2).sum(-1, keepdim=True) - 2 * found @ known.T + known.pow(2).sum(-1)
        return distance.argmin(-1)


class DACResidualVQ(nn.Module):
    """Codebooks in sequence, each of which quantises the residual of the previous ones."""

    def __init__(
        self,
        input_dim: int,
        n_codebooks: int,
        codebook_size: int,
        codebook_dim: int | Sequence[int],
        quantizer_dropout: float,
    ) -> None:
        super().__init__()
        widths = [codebook_dim] * n_codebooks if isinstance(codebook_dim, int) else list(codebook_dim)
        self.quantizers = nn.ModuleList(Codebook(input_dim, codebook_size, width) for width in widths)
        self.quantizer_dropout = quantizer_dropout

    def forward(self, x: Tensor, n_quantizers: int | None = None) -> Quantized:
        """Quantise by the first `n_quantizers` codebooks at inference, and in training by all, except for dropout."""
        used, counts = self._codebooks_of_each_item(x, n_quantizers)
        residual, values = x, torch.zeros_like(x)
        commitment = codebook = x.new_zeros(())
        made: list[Quantized] = []
        for index, quantizer in enumerate(self.quantizers[:used]):
            step: Quantized = quantizer(residual)
            keep = index < counts
            values = values + step.values * keep[:, None, None]
            residual = residual - step.values
            commitment = commitment + (step.commitment_loss * keep).mean()
            codebook = codebook + (step.codebook_loss * keep).mean()
            made.append(step)
        codes = torch.stack([step.codes for step in made], dim=1)
        projected = torch.cat([step.projected for step in made], dim=1)
        return Quantized(values, codes, projected, commitment, codebook)

    def lookup(self, codes: Tensor) -> Tensor:  # (b, q, t) -> (b, d, t)
        values: Any = 0.0
        for quantizer, indices in zip(self.quantizers, codes.unbind(1)):
            assert isinstance(quantizer, Codebook)
            values = values + quantizer.lookup(indices)
        assert isinstance(values, Tensor)
        return values

    def _codebooks_of_each_item(self, x: Tensor, n_quantizers: int | None) -> tuple[int, Tensor]:
        """Return how many codebooks run, and how many of them count for each item (b,)."""
        total = len(self.quantizers)
        if not self.training:
            used = n_quantizers or total
            return used, torch.full((len(x),), used, device=x.device)
        drawn = torch.randint(1, total + 1, (len(x),))  # drawn without dropout too: the random state depends on it
        dropped = int(len(x) * self.quantizer_dropout)
        counts = torch.full((len(x),), total)
        counts[:dropped] = drawn[:dropped]
        return total, counts.to(x.device)


class DACBottleneck(DiscreteBottleneck):
    """The base of `dac_rvq` and `dac_rvq_vae`."""

    is_residual = True
    quantizer: DACResidualVQ
    quantize_on_decode: bool

    def quantize(self, x: Tensor, n_quantizers: int | None) -> Compressed:
        """Quantise values (b, d, t), or return them unchanged if quantising happens in `decode`."""
        if self.quantize_on_decode:
            if n_quantizers is not None:
                raise ValueError("n_quantizers: this bottleneck quantises on decode (quantize_on_decode); leave it out")
            return Compressed(x, {"pre_quantizer": x})
        quantized = self.quantizer(x, n_quantizers)
        info = {
            "pre_quantizer": x,
            "z": quantized.values,
            "codes": quantized.codes,
            "latents": quantized.projected,
            "vq/commitment_loss": quantized.commitment_loss / self.num_quantizers,
            "vq/codebook_loss": quantized.codebook_loss / self.num_quantizers,
        }
        return Compressed(quantized.values, info)

    def tokens(self, info: dict[str, Tensor]) -> Tensor:
        if self.quantize_on_decode:
            codes: Tensor = self.quantizer(info["pre_quantizer"]).codes
            return codes
        return super().tokens(info)

    def lookup(self, codes: Tensor) -> Tensor:  # (b, q, t) -> (b, d, t)
        return self.quantizer.lookup(codes)

    def decode(self, x: Tensor) -> Tensor:
        if self.quantize_on_decode:
            with torch.autocast(x.device.type, enabled=False):
                x = self.quantizer(in_full_precision(x)).values.to(x.dtype)
        return self.expand(x)


def _facts(config: SimpleNamespace, encoder_multiple: int = 1) -> JsonObject:
    return facts(
        dim=config.input_dim,
        encoder_multiple=encoder_multiple,
        extra_channels=getattr(config, "noise_augment_dim", 0),
        codes=(config.n_codebooks, config.codebook_size),
    )


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if not isinstance(config.codebook_dim, int) and len(config.codebook_dim) != config.n_codebooks:
        yield (
            "codebook_dim",
            f"has {len(config.codebook_dim)} entries, n_codebooks is {config.n_codebooks}: give one each, or a number",
        )


@register("bottleneck", "dac_rvq", facts=_facts, check=_check)
class DACRVQBottleneck(DACBottleneck):
    """Descript Audio Codec's residual vector quantisation."""

    def __init__(
        self,
        quantize_on_decode: _OnDecode = False,
        noise_augment_dim: NoiseChannels = 0,
        *,
        input_dim: _InputDim = 512,
        n_codebooks: _Count = 9,
        codebook_size: _Size = 1024,
        codebook_dim: _CodebookDim = 8,
        quantizer_dropout: _Dropout = 0.0,
    ) -> None:
        super().__init__(n_codebooks, codebook_size, tokens_id="codes")
        self.quantizer = DACResidualVQ(input_dim, n_codebooks, codebook_size, codebook_dim, quantizer_dropout)
        self.quantize_on_decode = quantize_on_decode
        self.noise_augment_dim = noise_augment_dim

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        return self.quantize(x, n_quantizers)

    def expand(self, latents: Tensor) -> Tensor:
        return append_noise(latents, self.noise_augment_dim)


@register("bottleneck", "dac_rvq_vae", facts=lambda config: _facts(config, encoder_multiple=2), check=_check)
class DACRVQVAEBottleneck(DACBottleneck):
    """A sample as in a VAE, then Descript Audio Codec's residual vector quantisation."""

    def __init__(
        self,
        quantize_on_decode: _OnDecode = False,
        *,
        input_dim: _InputDim = 512,
        n_codebooks: _Count = 9,
        codebook_size: _Size = 1024,
        codebook_dim: _CodebookDim = 8,
        quantizer_dropout: _Dropout = 0.0,
    ) -> None:
        super().__init__(n_codebooks, codebook_size, tokens_id="codes")
        self.quantizer = DACResidualVQ(input_dim, n_codebooks, codebook_size, codebook_dim, quantizer_dropout)
        self.quantize_on_decode = quantize_on_decode

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        sample, kl = sample_encoded(x)
        latents, info = self.quantize(sample, n_quantizers)
        return Compressed(latents, {"kl": kl, **info})
