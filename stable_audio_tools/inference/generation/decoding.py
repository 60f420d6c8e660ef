"""Conversion between audio and latents; long latents can be decoded in chunks to save memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stable_audio_tools.models.autoencoders.chunking import ChunkPlan
from stable_audio_tools.models.autoencoders.weight_norm import folded_weight_norm
from stable_audio_tools.models.precision import weight_dtype
from stable_audio_tools.models.pretransforms import Pretransform

_OVERLAP = 32  # frames


@contextmanager
def brought_to(device: torch.device | None, part: nn.Module | None) -> Iterator[None]:
    """Hold a part on the device inside the block, and on the CPU after it; a device of None leaves it where it is."""
    if part is None or device is None:
        yield
        return
    part.to(device)
    try:
        yield
    finally:
        part.to("cpu")


def parameter_dtype(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """Return the precision of the weights."""
    return weight_dtype(module, default)


def encode_audio(pretransform: Pretransform | None, audio: Tensor) -> Tensor:
    """Encode audio (b, c, n) to the space of the model (b, d, t), float32."""
    if pretransform is None:
        return audio
    return pretransform.encode(audio.to(parameter_dtype(pretransform, audio.dtype))).float()


def decode_latents(
    pretransform: Pretransform | None,
    latents: Tensor,
    chunk_frames: int | None = None,
    overlap_frames: int | None = None,
) -> Tensor:
    """Decode latents (b, d, t) to audio (b, c, n).

    With `chunk_frames`, one item and at most that many frames are decoded at a time; neighbours overlap by
    `overlap_frames` (default: 32, or half of a chunk if that is less) and meet in the middle. The audio is the same if
    half of the overlap covers the receptive field.
    """
    if pretransform is None:
        return latents
    latents = latents.to(parameter_dtype(pretransform, latents.dtype))
    if chunk_frames is None:
        return pretransform.decode(latents)
    frames, step = latents.shape[-1], pretransform.downsampling_ratio
    overlap = min(_OVERLAP, chunk_frames // 2) if overlap_frames is None else overlap_frames
    plan = ChunkPlan(frames, chunk_frames, overlap)
    audio: Tensor | None = None
    with folded_weight_norm(pretransform):
        for index, item in enumerate(latents):
            for start in plan.starts:
                chunk = pretransform.decode(item[None, :, start : start + chunk_frames])[0]
                if audio is None:
                    audio = chunk.new_zeros(len(latents), len(chunk), frames * step)
                # The left half of the overlap belongs to the earlier chunk.
                skip = overlap // 2 * step if start > 0 else 0
                end = min(start * step + chunk.shape[-1], frames * step)
                audio[index, :, start * step + skip : end] = chunk[:, skip : end - start * step]
    assert audio is not None, "a batch has items, and a clip chunks"
    return audio[..., :end]
