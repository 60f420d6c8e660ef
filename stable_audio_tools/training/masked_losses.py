"""Errors of batches whose items differ in length: weighted, averaged and normalised over their real frames.

Masks (b, t) are True at real frames, errors and latents are (b, d, t).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.core.devices import send
from stable_audio_tools.data.transforms import create_padding_mask_from_lengths

LossNormalization = Literal["none", "timestep", "sample", "sample_channel"]

_TINY = 1e-8


def resize_padding_mask(padding_mask: Tensor, target_length: int) -> Tensor:
    """A mask (b, t) or (t,) at another length; a frame that is real in part is real."""
    scaled = padding_mask.sum(dim=-1).float() * target_length / padding_mask.shape[-1]
    lengths = scaled.ceil().clamp(max=target_length)
    if padding_mask.ndim == 1:
        return create_padding_mask_from_lengths(lengths[None], target_length)[0]
    return create_padding_mask_from_lengths(lengths, target_length)


def counted_frames(metadata: Sequence[Mapping[str, Any]], length: int, device: torch.device) -> Tensor | None:
    """Return a mask (b, length) of the frames in the `loss_spans` of their items; None if no item has spans."""
    if not any("loss_fractions" in entry for entry in metadata):
        return None
    centres = (torch.arange(length) + 0.5) / length
    rows = []
    for entry in metadata:
        spans = entry.get("loss_fractions", [(0.0, 1.0)])
        rows.append(sum((centres >= a) & (centres < b) for a, b in spans) + torch.zeros(length) > 0)
    return send(torch.stack(rows), device)


def create_augmented_padding_mask(
    padding_mask: Tensor,
    silence_extension_scale_seconds: float = 0.0,
    sample_rate: int = 44100,
    downsampling_ratio: int = 1,
) -> Tensor:
    """A mask with some of the silence after each item: exponentially distributed lengths with this mean."""
    if silence_extension_scale_seconds <= 0:
        return padding_mask
    mean = silence_extension_scale_seconds * sample_rate / downsampling_ratio
    more = torch.empty(len(padding_mask), device=padding_mask.device).exponential_(1 / mean).long()
    return create_padding_mask_from_lengths(padding_mask.sum(dim=-1) + more, padding_mask.shape[-1])


def compute_normalized_mse(
    pred: Tensor,
    target: Tensor,
    loss_mask: Tensor | None,
    loss_normalization: LossNormalization = "none",
    loss_norm_eps: float = 1e-6,
) -> Tensor:
    """Squared errors (b, d, t) divided by the variance of the target, so that quiet passages count as loud ones.

    The variance is over the channels of a frame ("timestep"), over all of an item ("sample") or over the frames of a
    channel ("sample_channel"). Errors of padding stay as they are.
    """
    error = (pred - target).square()
    if loss_normalization == "none":
        return error
    seen = torch.ones_like(target[:, :1], dtype=torch.bool) if loss_mask is None else loss_mask[:, None]
    with torch.no_grad():
        if loss_normalization == "timestep":
            variance = target.var(dim=1, keepdim=True, unbiased=False)
        else:
            axes = (1, 2) if loss_normalization == "sample" else (2,)
            real = torch.where(seen, target, torch.nan)
            deviation = real - real.nanmean(dim=axes, keepdim=True)
            variance = deviation.square().nanmean(dim=axes, keepdim=True)
        variance = torch.where(variance.isnan(), torch.ones_like(variance), variance + loss_norm_eps)
    return torch.where(seen, error / variance, error)


class MaskedLoss(NamedTuple):
    """The loss, and the mean error of real frames and of the rest."""

    loss: Tensor
    signal: Tensor
    padding: Tensor


def compute_masked_loss(
    loss_full: Tensor, loss_mask: Tensor, mask_padding_attention: bool, mask_loss_weight: float = 0.0
) -> MaskedLoss:
    """Mean of the items' mean errors; frames outside of the mask weigh `mask_loss_weight`, or nothing if masked."""
    seen = loss_mask[:, None]
    channels = loss_full.shape[1]
    signal, padding = torch.where(seen, loss_full, 0.0), torch.where(seen, 0.0, loss_full)
    counts = loss_mask.sum(1) * channels, (~loss_mask).sum(1) * channels
    weight = 0.0 if mask_padding_attention else mask_loss_weight
    per_item = (signal.sum((1, 2)) + weight * padding.sum((1, 2))) / (counts[0] + weight * counts[1] + _TINY)
    means = (part.sum().detach() / (count.sum() + _TINY) for part, count in zip((signal, padding), counts))
    return MaskedLoss(per_item.mean(), *means)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over items of their mean over real frames; values (b, d, t) or (b, t)."""
    values = values[:, None] if values.ndim == 2 else values
    total = torch.where(mask[:, None], values, torch.zeros_like(values)).sum((1, 2))
    return (total / (mask.sum(1) * values.shape[1] + _TINY)).mean()


def masked_sum(values: Tensor, mask: Tensor, dim: Sequence[int]) -> Tensor:
    """Sum over some axes, of real frames only; values (b, d, t) or (b, t)."""
    seen = mask if values.ndim == 2 else mask[:, None]
    return torch.where(seen, values, torch.zeros_like(values)).sum(tuple(dim))


def compute_per_elem_trim(
    conditioning: Sequence[Mapping[str, Any]], sample_rate: int, margin_seconds: float = 5.0
) -> list[int | None] | None:
    """Samples of each item: its `seconds_total` and a margin, None for items without; None if no item has one."""
    if not any("seconds_total" in item for item in conditioning):
        return None
    margin = int(margin_seconds * sample_rate)
    return [
        int(item["seconds_total"] * sample_rate) + margin if "seconds_total" in item else None for item in conditioning
    ]


def trim_and_concat(x: Tensor | Sequence[Tensor], per_elem_trim: Sequence[int | None] | None) -> Tensor:
    """Items (d, n) one after the other in time, each cut to its length."""
    items = list(x)
    if per_elem_trim is not None:
        items = [item if length is None else item[..., :length] for item, length in zip(items, per_elem_trim)]
    return torch.cat(items, dim=-1)


def couple_noise(data: Tensor, noise: Tensor, rounds: int = 20) -> Tensor:
    """The noise (b, d, t) in an order that makes straighter paths to the data: optimal transport within the batch.

    Sinkhorn's algorithm on squared distances (Cuturi 2013), rounded to a permutation row by row (as in MelodyFlow, Le
    Lan et al. 2024).
    """
    with torch.no_grad():
        distances = torch.cdist(data.flatten(1).float(), noise.flatten(1).float()).square()
        plan = -distances / distances.mean()
        for _ in range(rounds):
            plan = plan - plan.logsumexp(dim=1, keepdim=True)
            plan = plan - plan.logsumexp(dim=0, keepdim=True)
        order: list[Tensor] = []
        for row in plan:
            if order:
                row = row.index_fill(0, torch.stack(order), -torch.inf)
            order.append(row.argmax())
        return noise[torch.stack(order)]
