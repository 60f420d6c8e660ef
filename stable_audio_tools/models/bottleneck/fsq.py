"""Finite scalar quantisation (Mentzer et al. 2023): each channel is rounded to a few levels; nothing is learned.

The code of a frame is the number whose digits, lowest first, are the levels of its channels.
"""

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.models.bottleneck.base import Compressed, DiscreteBottleneck, append_noise, facts
from stable_audio_tools.models.bottleneck.simple import NoiseChannels

_Level = Annotated[int, Field(ge=2)]
_Levels = Annotated[
    int | Sequence[_Level], Field(description="levels of each channel of a codebook; a number: of each of dim channels")
]
_Codebooks = Annotated[int, Field(ge=1, description="codes per frame, each from separate channels")]
_BOUND_MARGIN = 1e-3


def round_straight_through(x: Tensor) -> Tensor:
    """Round, with the gradient of not rounding."""
    return x + (x.round() - x).detach()


def digits_to_codes(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """Convert levels (..., d), counted from 0, to codes (...)."""
    places = [math.prod(levels[:index]) for index in range(len(levels))]
    return (digits.long() * torch.tensor(places, device=digits.device)).sum(-1)


def codes_to_digits(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """Convert codes (...) to levels (..., d), counted from 0."""
    digits = []
    for level in levels:
        digits.append(codes % level)
        codes = codes // level
    return torch.stack(digits, dim=-1)


class FSQ(nn.Module):
    """Values (b, t, dim) to quantised values in [-1, 1] and codes (b, t, q).

    Even numbers of levels reach -1 but not 1: zero is always a level.
    """

    def __init__(self, levels: Sequence[int], num_codebooks: int, dim: int, projection_has_bias: bool) -> None:
        super().__init__()
        self.levels = list(levels)
        self.num_codebooks = num_codebooks
        quantized = len(self.levels) * num_codebooks
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if dim != quantized:
            self.project_in = nn.Linear(dim, quantized, bias=projection_has_bias)
            self.project_out = nn.Linear(quantized, dim, bias=projection_has_bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.project_in(x).unflatten(-1, (self.num_codebooks, -1))
        steps = round_straight_through(self._bound(x))
        middle = self._middle(x)
        codes = digits_to_codes(steps.detach() + middle, self.levels)
        return self.project_out((steps / middle).flatten(-2)), codes

    def lookup(self, codes: Tensor) -> Tensor:  # (b, t, q) -> (b, t, dim)
        digits = codes_to_digits(codes, self.levels).float()
        middle = self._middle(digits)
        values: Tensor = self.project_out(((digits - middle) / middle).flatten(-2))
        return values

    def _bound(self, x: Tensor) -> Tensor:
        """Squash so that rounding gives exactly as many steps as there are levels."""
        levels = x.new_tensor(self.levels)
        half = (levels - 1) * (1 + _BOUND_MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset

    def _middle(self, like: Tensor) -> Tensor:
        return like.new_tensor([level // 2 for level in self.levels])


def _levels_of(levels: int | Sequence[int], dim: int | None) -> list[int]:
    return [levels] * (dim or 1) if isinstance(levels, int) else list(levels)


def _check_fsq(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if not isinstance(config.levels, int):
        return
    if config.levels < 2:
        yield "levels", f"is {config.levels}; a channel needs at least 2 levels"
    if config.dim is None:
        yield "dim", "missing; where levels is one number, dim says how many channels have that many levels"
    elif config.dim % config.num_codebooks:
        yield "dim", f"is {config.dim}, not a multiple of num_codebooks ({config.num_codebooks})"


def _fsq_facts(config: SimpleNamespace) -> JsonObject:
    levels = _fsq_levels(config.levels, config.dim, config.num_codebooks)
    return facts(
        dim=config.dim or len(levels) * config.num_codebooks,
        extra_channels=config.noise_augment_dim,
        codes=(config.num_codebooks, math.prod(levels)),
    )


def _fsq_levels(levels: int | Sequence[int], dim: int | None, num_codebooks: int) -> list[int]:
    return _levels_of(levels, dim // num_codebooks if dim is not None else None)


@register(
    "bottleneck",
    "fsq",
    facts=_fsq_facts,
    check=_check_fsq,
    ignored=("keep_num_codebooks_dim", "scale", "channel_first", "return_indices"),
)
class FSQBottleneck(DiscreteBottleneck):
    """Every channel rounded to a few levels."""

    def __init__(
        self,
        noise_augment_dim: NoiseChannels = 0,
        *,
        levels: _Levels,
        dim: Annotated[
            int | None,
            Field(ge=1, description="channels of the latents; projected where the levels are of fewer or more"),
        ] = None,
        num_codebooks: _Codebooks = 1,
        projection_has_bias: Annotated[bool, Field(description="add a bias to the projections")] = True,
    ) -> None:
        per_codebook = _fsq_levels(levels, dim, num_codebooks)
        super().__init__(num_codebooks, math.prod(per_codebook), tokens_id="quantizer_indices")
        self.noise_augment_dim = noise_augment_dim
        self.quantizer = FSQ(per_codebook, num_codebooks, dim or len(per_codebook) * num_codebooks, projection_has_bias)

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        values, codes = self.quantizer(x.mT)
        return Compressed(values.mT, {"quantizer_indices": codes.mT})

    def lookup(self, codes: Tensor) -> Tensor:  # (b, q, t) -> (b, d, t)
        return self.quantizer.lookup(codes.mT).mT

    def expand(self, latents: Tensor) -> Tensor:
        return append_noise(latents, self.noise_augment_dim)


class DitheredQuantizer(nn.Module):
    """Values (b, t, q * d), squashed by tanh, to values on even levels from -scale to scale and codes (b, t, q).

    In training most items get noise of one step's width instead of rounding, which the decoder sees as similar and
    which passes gradients.
    """

    def __init__(self, levels: Sequence[int], num_codebooks: int, noise_dropout: float, scale: float = 1.0) -> None:
        super().__init__()
        self.levels = list(levels)
        self.num_codebooks = num_codebooks
        self.noise_dropout = noise_dropout
        self.scale = scale

    def forward(self, x: Tensor, skip_tanh: bool = False) -> tuple[Tensor, Tensor]:
        x = x.unflatten(-1, (self.num_codebooks, -1))
        x = x if skip_tanh else torch.tanh(x)
        step = self._step(x)
        values = self._dither(x, step) if self.training else self._round(x, step)
        return values.flatten(-2), digits_to_codes(self._digits(values, step), self.levels)

    def lookup(self, codes: Tensor) -> Tensor:  # (b, t, q) -> (b, t, q * d)
        digits = codes_to_digits(codes, self.levels).float()
        return (digits * self._step(digits) - self.scale).flatten(-2)

    def _dither(self, x: Tensor, step: Tensor) -> Tensor:
        """Draw twice per item: round unless the first draw drops it, add noise unless the second one drops that."""
        unrounded = self._draw_per_item(x)
        values = torch.where(unrounded, x, self._round(x, step))
        undithered = self._draw_per_item(x)
        return torch.where(undithered, values, x + (torch.rand_like(x) - 0.5) * step)

    def _draw_per_item(self, x: Tensor) -> Tensor:
        return torch.bernoulli(torch.full((len(x), 1, 1, 1), self.noise_dropout, device=x.device)).bool()

    def _round(self, x: Tensor, step: Tensor) -> Tensor:
        return round_straight_through((x + self.scale) / step) * step - self.scale

    def _digits(self, values: Tensor, step: Tensor) -> Tensor:
        highest = values.new_tensor(self.levels) - 1
        return ((values.detach() + self.scale) / step).round().clamp(min=torch.zeros_like(highest), max=highest)

    def _step(self, like: Tensor) -> Tensor:
        return 2 * self.scale / (like.new_tensor(self.levels) - 1)


def _check_dithered(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if isinstance(config.levels, int):
        if config.levels < 2:
            yield "levels", f"is {config.levels}; a channel needs at least 2 levels"
    elif len(config.levels) != config.dim:
        yield (
            "levels",
            f"has {len(config.levels)} entries, dim is {config.dim}: give one for each channel, or one number",
        )


@register(
    "bottleneck",
    "dithered_fsq",
    facts=lambda config: facts(
        dim=config.dim * config.num_codebooks,
        codes=(config.num_codebooks, math.prod(_levels_of(config.levels, config.dim))),
    ),
    check=_check_dithered,
)
class DitheredFSQBottleneck(DiscreteBottleneck):
    """Every channel rounded to evenly spaced levels; in training, noise mostly replaces the rounding."""

    codebooks_first = False

    def __init__(
        self,
        dim: Annotated[int, Field(ge=1, description="channels of one codebook")],
        levels: _Levels,
        num_codebooks: _Codebooks = 1,
        dither_inference: Annotated[
            bool, Field(description="kept for old configs: at inference values are rounded")
        ] = (True),
        noise_dropout: Annotated[float, Field(ge=0, le=1, description="share of items trained without noise")] = 0.05,
    ) -> None:
        per_channel = _levels_of(levels, dim)
        if len(per_channel) != dim:
            raise ValueError(f"levels has {len(per_channel)} entries, dim is {dim}: give one for each channel")
        super().__init__(num_codebooks, math.prod(per_channel), tokens_id="quantizer_indices")
        self.dither_inference = dither_inference
        self.quantizer = DitheredQuantizer(per_channel, num_codebooks, noise_dropout)

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        values, codes = self.quantizer(x.mT)
        return Compressed(values.mT, {"quantizer_indices": codes})

    def lookup(self, codes: Tensor) -> Tensor:  # (b, t, q) -> (b, d, t)
        return self.quantizer.lookup(codes).mT

    def decode_tokens(self, codes: Tensor) -> Tensor:
        """Convert codes (b, t, q) to values (b, t, d), in the published layout, which callers transpose."""
        return self.decode_codes(codes).mT
