"""Input audio: converted to what a model takes, and restored exactly where it must be kept."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.models.autoencoders.preprocessing import match_channels, resample


def set_audio_channels(audio: Tensor, target_channels: int) -> Tensor:
    """Convert (b, c, n) or (b, n) to a number of channels: by the mean, by repetition, or by dropping channels."""
    return match_channels(audio[:, None] if audio.ndim == 2 else audio, target_channels)


def prepare_audio(
    audio: Tensor,
    in_sr: int,
    target_sr: int,
    target_length: int,
    target_channels: int,
    device: torch.device | str,
) -> Tensor:
    """Resample audio (n,), (c, n) or (b, c, n) from `in_sr` Hz, cut or pad it with silence, and return (b, c, n).

    Further axes in front may be of size 1.
    """
    audio = torch.as_tensor(audio)
    while audio.ndim > 3 and len(audio) == 1:
        audio = audio[0]
    if not 1 <= audio.ndim <= 3:
        raise AudioError(f"audio must be shaped (channels, samples), got {tuple(audio.shape)}")
    if not audio.is_floating_point():
        raise AudioError(f"audio must be floating point in [-1, 1], got {audio.dtype}; divide integers by their range")
    if audio.numel() == 0:
        raise AudioError("the audio is empty: it has no samples")
    audio = audio.to(device)[(None,) * (3 - audio.ndim)]
    audio = resample(audio.contiguous(), in_sr, target_sr)
    return match_channels(F.pad(audio, (0, target_length - audio.shape[-1])), target_channels)


def unpack_audio(given: Any, name: str) -> tuple[int, Tensor]:
    """Return a `(sample_rate, audio)` pair; raise with a description of anything else."""
    if not isinstance(given, tuple | list) or len(given) != 2 or isinstance(given[0], Tensor):
        raise ValueError(
            f"{name} must be a pair (sample_rate, audio) in this order, got {_describe(given)}; "
            "torchaudio.load returns them the other way round"
        )
    rate, audio = given
    if int(rate) != rate or rate < 1:
        raise ValueError(f"{name}: the sample rate must be a whole number above 0, got {rate!r}")
    return int(rate), torch.as_tensor(audio)


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(type(entry).__name__ for entry in value)})"
    return type(value).__name__


def batch_mask(mask: Any, batch_size: int) -> Tensor:
    """Convert a mask (n,), (b, n) or (b, 1, n), 1 keep and 0 generate, to (batch_size, 1, n)."""
    mask = torch.as_tensor(mask).float()
    if mask.ndim == 3 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim == 1:
        mask = mask[None]
    if mask.ndim != 2 or mask.shape[0] not in (1, batch_size) or mask.shape[1] == 0:
        wanted = "(samples,) or (1, samples)" if batch_size == 1 else f"(samples,) or ({batch_size}, samples)"
        raise ValueError(f"inpaint_mask must be shaped {wanted} for batch_size {batch_size}, got {tuple(mask.shape)}")
    return mask[:, None].expand(batch_size, 1, -1)


def resize_mask(mask: Tensor, frames: int) -> Tensor:
    """Resize a mask (b, 1, n); a frame takes the value of its first sample."""
    return F.interpolate(mask, size=frames, mode="nearest")


def keep_region(generated: Tensor, original: Tensor, mask: Tensor, crossfade_samples: int) -> Tensor:
    """Return `generated` (b, c, n) with the samples of `original` where the mask (b, 1, n) is 1, bit for bit.

    Next to a generated region the kept side fades over `crossfade_samples` samples, where both have the same sound.
    """
    if crossfade_samples < 0:
        raise ValueError(f"the cross-fade must not be negative, got {crossfade_samples} samples")
    length, generated = generated.shape[-1], generated.float()  # half precision would round what is kept
    original = original[..., :length].to(generated).expand_as(generated)
    mask = resize_mask(mask, length) if mask.shape[-1] != length else mask
    distance = _distance_to_generated(mask.to(generated.device) >= 0.5)
    weight = (distance / (crossfade_samples + 1)).clamp(max=1).to(generated.dtype)
    return torch.where(weight == 1, original, torch.lerp(generated, original, weight))


def _distance_to_generated(kept: Tensor) -> Tensor:
    """Return the distance in samples to the nearest one that is not kept; (b, 1, n) float64."""
    positions = torch.arange(kept.shape[-1], device=kept.device).expand_as(kept)
    far = 2 * kept.shape[-1]
    before = torch.where(kept, -far, positions).cummax(dim=-1).values
    after = torch.where(kept, far + kept.shape[-1], positions).flip(-1).cummin(dim=-1).values.flip(-1)
    nearest = torch.minimum(positions - before, after - positions)
    return torch.where(nearest >= kept.shape[-1], far, nearest).double()


def build_mask(sample_size: int, mask_args: Mapping[str, float]) -> Tensor:
    """Return a soft mask (sample_size,): 1 keeps, 0 generates.

    `maskstart`, `maskend` and the slopes `softnessL` and `softnessR` are in percent; `marination` lowers the mask, so
    that the last steps may change what it keeps.
    """
    share = {name: mask_args[name] / 100 * sample_size for name in ("maskstart", "maskend", "softnessL", "softnessR")}
    start, end = math.floor(share["maskstart"]), math.ceil(share["maskend"])
    rise, fall = round(share["softnessL"]), round(share["softnessR"])
    mask = torch.zeros(sample_size)
    mask[start:end] = 1
    if rise:
        mask[start : start + rise] = torch.hann_window(2 * rise, periodic=False)[:rise]
    if fall:
        mask[end - fall : end] = torch.hann_window(2 * fall, periodic=False)[fall:]
    return mask * (1 - max(0.0, mask_args["marination"]))
