"""Classifier-free guidance (Ho & Salimans 2022): which passes are made, and how their outputs are combined."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class Guidance:
    """How far to go from the unconditional output through the conditioned one.

    It applies at noise levels within `interval` (Kynkäänniemi et al. 2024). `rescale`, 0 to 1, is the share by which
    the deviation over channels is brought back to that of the conditioned output (Lin et al. 2023, eq. 15-16); None
    leaves it to the backbone: 0 for transformers, 0.4 for the U-Net with guidance.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float | None = None
    batched: bool = True  # both passes as one batch: faster, and twice the activations

    @property
    def is_on(self) -> bool:
        return self.scale != 1.0

    def covers(self, sigma: Tensor) -> bool:
        """Is the noise level (b,) of a batch, taken from its first item, within the interval?"""
        low, high = self.interval
        if low <= 0.0 and high >= 1.0:
            return True  # without waiting for the device to tell sigma
        bounds = torch.tensor([low, high], dtype=sigma.dtype)  # rounded as sigma is, so that an equal level is within
        return bool(bounds[0] <= float(sigma[0]) <= bounds[1])

    def combine(self, conditioned: Tensor, unconditioned: Tensor) -> Tensor:
        """Outputs of the two passes, (b, d, n) each -> the guided output, in float32 or more

        The difference of two halved numbers, times the scale, would lose most of their digits.
        """
        wide = torch.promote_types(conditioned.dtype, torch.float32)
        conditioned, unconditioned = conditioned.to(wide), unconditioned.to(wide)
        guided = unconditioned + (conditioned - unconditioned) * self.scale
        if not self.rescale:
            return guided
        ratio = conditioned.std(dim=1, keepdim=True) / guided.std(dim=1, keepdim=True)
        return self.rescale * (guided * ratio) + (1 - self.rescale) * guided


class Conditions(NamedTuple):
    """What a pass of the diffusion transformer is conditioned on."""

    cross_attn: Tensor | None = None  # (b, s, c)
    cross_attn_mask: Tensor | None = None  # (b, s), true at real tokens
    input_concat: Tensor | None = None  # (b, c, any length)
    global_embed: Tensor | None = None  # (b, g)
    prepend: Tensor | None = None  # (b, p, c)
    prepend_mask: Tensor | None = None  # (b, p)
    mask: Tensor | None = None  # (b, n), true at real frames

    def to(self, dtype: torch.dtype) -> "Conditions":
        """Tensors in `dtype`, masks as booleans."""
        return Conditions(
            **{
                name: None if value is None else value.bool() if name.endswith("mask") else value.to(dtype)
                for name, value in self._asdict().items()
            }
        )

    def can_be_dropped(self) -> bool:
        """Is there a condition whose absence the model was trained on?"""
        return self.cross_attn is not None or self.prepend is not None

    def dropped(self, probability: float) -> "Conditions":
        """In training: zeros for the cross-attention and, drawn separately, the prepended tokens of random items."""
        return self._replace(cross_attn=_drop(self.cross_attn, probability), prepend=_drop(self.prepend, probability))

    def unconditional(self, negative: Tensor | None = None, negative_mask: Tensor | None = None) -> "Conditions":
        """Zeros, or the negative condition with its own mask, where the condition was.

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
        """What stands in place of the cross-attention condition."""
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
        """One batch of both."""
        return Conditions(*(None if a is None or b is None else torch.cat([a, b]) for a, b in zip(self, other)))


def _drop(condition: Tensor | None, probability: float) -> Tensor | None:
    if condition is None:
        return None
    drawn = torch.bernoulli(torch.full((len(condition), 1, 1), probability, device=condition.device))
    return torch.where(drawn.bool(), torch.zeros_like(condition), condition)
