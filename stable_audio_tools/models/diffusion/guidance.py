"""Classifier-free guidance (Ho & Salimans 2022): which passes run, and how their outputs are combined."""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from stable_audio_tools.core.generations import current_generation
from stable_audio_tools.models.transformer.cache import KeyValue
from stable_audio_tools.models.transformer.local_conditions import LocalConditions
from stable_audio_tools.models.transformer.rotary import Rotary


class Guided(NamedTuple):
    """The guided output, and the unconditional one: the same tensor where guidance did not apply.

    CFG++ (Chung et al. 2024) takes the data from the former and the noise from the latter.
    """

    output: Tensor
    unconditional: Tensor

    def to(self, dtype: torch.dtype) -> "Guided":
        """Both in `dtype`, and still one tensor where they were."""
        output = self.output.to(dtype)
        return Guided(output, output if self.unconditional is self.output else self.unconditional.to(dtype))


class Denoiser(Protocol):
    """x (b, d, n), t (b,) from 0 at data to 1 at noise -> the prediction, (b, d, n)."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        """The guided and the unconditional prediction, for CFG++."""
        ...


# Times (b,) on a device, and the time of their first item where the host knows it.
_times_on_host: MutableMapping[Tensor, float] = WeakTensorKeyDictionary()


def time_of_batch(t: float, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return t for every item of x, (b,); `on_host` knows its value without waiting for the device."""
    return with_known_time(x.new_full((len(x),), t, dtype=dtype), t)


def with_known_time(times: Tensor, t: float) -> Tensor:
    """Return `times` (b,), whose first item is t, after noting t for `on_host`."""
    _times_on_host[times] = t
    return times


def on_host(times: Tensor) -> Tensor:
    """Return the time of the first item, (1,), on the CPU if it is known there, else on the device."""
    known = _times_on_host.get(times)
    return times[:1] if known is None else torch.tensor([known], dtype=times.dtype)


@dataclass(frozen=True)
class Guidance:
    """The scale of guidance, the distance from the unconditional output through the conditioned one, and its limits.

    It applies at noise levels within `interval` (Kynkäänniemi et al. 2024). `rescale`, 0 to 1, is the share by which
    the deviation over channels is restored to the conditioned output's (Lin et al. 2023, eq. 15-16); None
    leaves it to the backbone: 0 for transformers, 0.4 for the U-Net with guidance.

    `apg_scale`, 0 to 1, is the share by which the part of the difference that is parallel to the conditioned data is
    left out (Sadat et al. 2024, adaptive projected guidance); None is what the generation has: 0 in 0.0.19, 1 since
    then. `norm_threshold`, if not 0, bounds the norm of the difference between the two predictions of the data.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float | None = None
    batched: bool = True  # both passes as one batch: faster, and twice the activations

    apg_scale: float | None = None
    norm_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.apg_scale is not None and not 0 <= self.apg_scale <= 1:
            raise ValueError(
                f"apg_scale must be from 0 (plain guidance) to 1 (fully projected), got {self.apg_scale:g}"
            )
        if self.norm_threshold < 0:
            raise ValueError(f"cfg_norm_threshold must be at least 0 (no limit), got {self.norm_threshold:g}")

    @property
    def projection(self) -> float:
        """`apg_scale`, or the default of the generation."""
        if self.apg_scale is None:
            return 0.0 if current_generation() == "0.0.19" else 1.0
        return self.apg_scale

    def resolved(self) -> "Guidance":
        """The same with the default of the generation that holds now written out."""
        return replace(self, apg_scale=self.projection)

    @property
    def works_on_data(self) -> bool:
        """Does it need the data that the outputs imply?"""
        return self.projection > 0 or self.norm_threshold > 0

    @property
    def is_on(self) -> bool:
        return self.scale != 1.0

    def covers(self, sigma: Tensor) -> bool:
        """Return True if the noise level (b,) of the batch's first item is within the interval."""
        low, high = self.interval
        if low <= 0.0 and high >= 1.0:
            return True  # reading sigma would wait for the device
        bounds = torch.tensor([low, high], dtype=sigma.dtype)  # rounded as sigma is, so that an equal level is within
        return bool(bounds[0] <= float(sigma[0]) <= bounds[1])

    def combine(
        self,
        conditioned: Tensor,
        unconditioned: Tensor,
        data: Callable[[Tensor], Tensor] | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Outputs of the two passes, (b, d, n) each -> the guided output, in float32 or more

        The difference of two halved numbers, times the scale, would lose most of their digits. `data` gives the data
        that an output implies; if omitted, outputs are combined directly. The difference of outputs is that of data
        times one number per item, so projecting and clipping it is the same in both, and finite at t = 0. Only frames
        where `padding_mask` (b, n) is True count.
        """
        wide = torch.promote_types(conditioned.dtype, torch.float32)
        conditioned, unconditioned = conditioned.to(wide), unconditioned.to(wide)
        if data is not None and self.works_on_data:
            guided = conditioned + (self.scale - 1) * self._bounded(conditioned, unconditioned, data, padding_mask)
        else:
            guided = unconditioned + (conditioned - unconditioned) * self.scale
        if not self.rescale:
            return guided
        ratio = conditioned.std(dim=1, keepdim=True) / guided.std(dim=1, keepdim=True)
        return self.rescale * (guided * ratio) + (1 - self.rescale) * guided

    def _bounded(
        self, conditioned: Tensor, unconditioned: Tensor, data: Callable[[Tensor], Tensor], padding_mask: Tensor | None
    ) -> Tensor:
        """Return the difference of the outputs, clipped and projected."""
        difference = conditioned - unconditioned
        seen = None if padding_mask is None else padding_mask[:, None].to(difference.dtype)
        reference = data(conditioned)
        if self.norm_threshold > 0:
            gap = reference - data(unconditioned)
            norm = (gap if seen is None else gap * seen).norm(dim=(-1, -2), keepdim=True)
            difference = difference * (self.norm_threshold / norm.clamp(min=1e-12)).clamp(max=1.0)
        if self.projection > 0:
            orthogonal = _orthogonal(difference, reference, seen)
            difference = self.projection * orthogonal + (1 - self.projection) * difference
        return difference


def _orthogonal(x: Tensor, reference: Tensor, seen: Tensor | None) -> Tensor:
    """Remove from x its part along the reference, per item; frames outside `seen` become zero."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    exact, along = x.to(dtype), reference.to(dtype)
    along = along if seen is None else along * seen.to(dtype)
    along = along / along.norm(dim=(-1, -2), keepdim=True).clamp(min=1e-12)
    exact = exact - (exact * along).sum(dim=(-1, -2), keepdim=True) * along
    return (exact if seen is None else exact * seen.to(dtype)).to(x.dtype)


class Conditions(NamedTuple):
    """The conditions of one pass of the diffusion transformer."""

    cross_attn: Tensor | None = None  # (b, s, c)
    cross_attn_mask: Tensor | None = None  # (b, s), true at real tokens
    input_concat: Tensor | None = None  # (b, c, any length)
    global_embed: Tensor | None = None  # (b, g)
    prepend: Tensor | None = None  # (b, p, c)
    prepend_mask: Tensor | None = None  # (b, p)
    mask: Tensor | None = None  # (b, n), true at real frames; for transformers with use_padding_mask
    padding_mask: Tensor | None = None  # (b, n), the same for all transformers
    local: Tensor | None = None  # (b, c, any length)
    modular: Mapping[str, Tensor] | None = None  # (b, c, any length) each

    def to(self, dtype: torch.dtype) -> "Conditions":
        """Convert tensors to `dtype` and masks to booleans."""
        return Conditions(
            **{
                name: _convert(value, torch.bool if name.endswith("mask") else dtype)
                for name, value in self._asdict().items()
            }
        )

    def can_be_dropped(self) -> bool:
        """Return True if there is a condition that training drops."""
        return self.cross_attn is not None or self.prepend is not None

    def dropped(self, probability: float) -> "Conditions":
        """Drop the cross-attention condition and, drawn separately, the prepended tokens of random items."""
        return self._replace(cross_attn=_drop(self.cross_attn, probability), prepend=_drop(self.prepend, probability))

    def unconditional(self, negative: Tensor | None = None, negative_mask: Tensor | None = None) -> "Conditions":
        """Replace the condition by zeros, or by the negative condition with its own mask.

        Global and concatenated conditions stay. Tokens that the mask of the negative condition hides are zeros, too,
        since published models attend to all tokens.
        """
        mask = self.cross_attn_mask
        if negative is not None and negative_mask is not None:
            seen = negative_mask.bool()
            negative = torch.where(seen[..., None], negative, torch.zeros_like(negative))
            mask = seen if mask is None else seen.expand_as(mask)
        elif negative is not None and mask is not None:
            mask = torch.ones_like(mask)
        return self._replace(
            cross_attn_mask=mask,
            cross_attn=self._instead(negative),
            prepend=None if self.prepend is None else torch.zeros_like(self.prepend),
        )

    def _instead(self, negative: Tensor | None) -> Tensor | None:
        """Return the replacement of the cross-attention condition."""
        if self.cross_attn is None:
            return None
        if negative is None:
            return torch.zeros_like(self.cross_attn)
        if negative.shape[1:] != self.cross_attn.shape[1:]:
            raise ValueError(
                f"the negative condition has {negative.shape[1]} tokens of width {negative.shape[2]}, the condition "
                f"{self.cross_attn.shape[1]} of {self.cross_attn.shape[2]}; give both the same conditioners"
            )
        return negative.to(self.cross_attn.dtype).expand_as(self.cross_attn)

    def joined(self, other: "Conditions") -> "Conditions":
        """Return one batch of both."""
        return Conditions(*map(_join, self, other))

    @property
    def batch_size(self) -> int:
        """Items in the batch."""
        return next(len(value) for value in self if torch.is_tensor(value))


_Value = Tensor | Mapping[str, Tensor] | None


def _convert(value: _Value, dtype: torch.dtype) -> Any:
    if isinstance(value, Mapping):
        return {id: tensor.to(dtype) for id, tensor in value.items()}
    return None if value is None else value.to(dtype)


def _join(first: _Value, second: _Value) -> Any:
    if first is None or second is None:
        return None
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {id: torch.cat([tensor, second[id]]) for id, tensor in first.items()}
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    return torch.cat([first, second])


def _drop(condition: Tensor | None, probability: float) -> Tensor | None:
    if condition is None:
        return None
    drawn = torch.bernoulli(torch.full((len(condition), 1, 1), probability, device=condition.device))
    return torch.where(drawn.bool(), torch.zeros_like(condition), condition)


@dataclass(frozen=True)
class Projected:
    """Projected conditions, which a sampling run computes once."""

    input_concat: Tensor | None = None  # (b, c, n)
    global_embed: Tensor | None = None  # (b, d)
    prepend: Tensor | None = None  # (b, p, d)
    context: Tensor | None = None  # (b, s, c); may cover only the first items; the rest skip cross-attention
    context_mask: Tensor | None = None  # (b, s)
    mask: Tensor | None = None  # (b, t)
    prepend_mask: Tensor | None = None  # (b, p)
    key_values: tuple[KeyValue | None, ...] | None = None  # of the context, for every layer
    rotary: Rotary | None = None
    local: LocalConditions | None = None

    def first(self, items: int) -> "Projected":
        """Return the conditions of the first items of the batch."""
        fewer: dict[str, Any] = {name: value[:items] for name, value in vars(self).items() if torch.is_tensor(value)}
        if self.key_values is not None:
            fewer["key_values"] = tuple(None if pair is None else pair.first(items) for pair in self.key_values)
        if self.local is not None:
            fewer["local"] = self.local.first(items)
        return replace(self, **fewer)

    def attending(self, items: int) -> "Projected":
        """Return the same conditions, with cross-attention for the first items only."""
        if items == 0:
            return replace(self, context=None, context_mask=None, key_values=None)
        fewer = self.first(items)
        return replace(self, context=fewer.context, context_mask=fewer.context_mask, key_values=fewer.key_values)
