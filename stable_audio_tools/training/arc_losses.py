"""Losses of ARC over the scores of one or several heads, padding left out."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.models.clap import CLAP

Scores = Sequence[Tensor]  # (b, 1, frames) of each scale
CLAPDistance = Literal["audio_cosine_sim", "audio_contrastive", "audio_text_distance"]


def frame_masks(real: Tensor | None, scores: Scores) -> list[Tensor | None]:
    """Return masks (b, 1, frames) of the scores that see a real frame, from a mask (b, t) of the states."""
    if real is None:
        return [None] * len(scores)
    masks: list[Tensor | None] = []
    for score in scores:
        seen = F.adaptive_max_pool1d(real[:, None].float(), score.shape[-1])
        masks.append(seen.repeat(len(score) // len(real), 1, 1))  # a head may score a batch twice
    return masks


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of (b, 1, frames) where the mask is 1."""
    return values.mean() if mask is None else (values * mask).sum() / mask.sum().clamp(min=1)


def relativistic(
    better: Scores, worse: Scores, masks: Sequence[Tensor | None], beta: float = 1.0, hinge: bool = False
) -> Tensor:
    """Return how far `better` scores fail to lie above `worse` ones, averaged over the scales."""
    terms = []
    for high, low, mask in zip(better, worse, masks):
        lead = (high - low) * beta
        terms.append(masked_mean(F.relu(1 - lead) if hinge else F.softplus(-lead), mask))
    return torch.stack(terms).mean()


def roughness(moved: Scores, scores: Scores, masks: Sequence[Tensor | None]) -> Tensor:
    """Return the mean squared change of scores under a small move of the input."""
    terms = []
    for after, before, mask in zip(moved, scores, masks):
        squares = (after - before).square()
        if mask is None:
            terms.append(squares.mean())
        else:
            terms.append(((squares * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).mean())
    return torch.stack(terms).mean()


def off_centre(real: Scores, fake: Scores, masks: Sequence[Tensor | None]) -> Tensor:
    """Return the mean squared sum of real and fake scores, which drift together unless it is held small."""
    return torch.stack([masked_mean((r + f).square(), mask) for r, f, mask in zip(real, fake, masks)]).mean()


def feature_distance(real: Sequence[Tensor], fake: Sequence[Tensor], frames: Tensor | None) -> Tensor:
    """Return the mean absolute difference of states (b, t, d), over layers and real frames."""
    terms = []
    for ours, theirs in zip(fake, real):
        apart = (ours - theirs.detach()).abs().mean(-1)
        if frames is None:
            terms.append(apart.mean())
            continue
        seen = F.pad(frames.float(), (apart.shape[1] - frames.shape[1], 0), value=1.0)  # prepended tokens are real
        terms.append((apart * seen).sum() / seen.sum().clamp(min=1))
    return torch.stack(terms).mean()


def clap_distance(
    model: CLAP,
    kind: CLAPDistance,
    real: Tensor,
    fake: Tensor,
    t: Tensor,
    prompts: Sequence[str],
    frames: Tensor | None,
) -> Tensor:
    """Return the distance of noised latents from the real ones, or from their prompts, in the space of a CLAP."""
    options = {"noise_levels": t} if frames is None else {"noise_levels": t, "padding_mask": frames}
    ours = model.get_audio_embedding(fake, **options)
    if kind == "audio_text_distance":
        chord = (ours - model.get_text_embedding(prompts)).norm(dim=-1)
        return (chord / 2).arcsin().square().mul(2).mean()
    theirs = model.get_audio_embedding(real, **options)
    if kind == "audio_cosine_sim":
        return 1 - F.cosine_similarity(theirs, ours).mean()
    return F.cross_entropy(theirs @ ours.T, torch.arange(len(ours), device=ours.device))
