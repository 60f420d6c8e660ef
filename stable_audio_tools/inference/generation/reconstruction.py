"""One clip through an autoencoder and back."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.inference.sampling.watching import CancelSignal, ProgressCallback, Watch, progress_of
from stable_audio_tools.models.autoencoders import AudioAutoencoder
from stable_audio_tools.models.autoencoders.chunking import ChunkPlan, in_batches
from stable_audio_tools.models.autoencoders.weight_norm import folded_weight_norm
from stable_audio_tools.models.precision import held_for_autocast
from stable_audio_tools.models.pretransforms import AutoencoderPretransform


def codec_of(model: nn.Module) -> AudioAutoencoder:
    """The autoencoder that a model is, or has inside."""
    inner = getattr(model, "pretransform", None)
    codec = inner.model if isinstance(inner, AutoencoderPretransform) else model
    if isinstance(model, AudioAutoencoder):
        codec = model
    if not isinstance(codec, AudioAutoencoder):
        raise UserError("this model has no autoencoder to pass audio through; give one whose config has")
    return codec


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    audio: Tensor,
    sample_rate: int,
    *,
    device: str | torch.device = "cpu",
    frame_seconds: float = 30.0,
    overlap_rate: float = 1 / 30,
    batch_size: int = 1,
    progress: bool | ProgressCallback = False,
    cancel: CancelSignal | None = None,
    **decoding: Any,
) -> Tensor:
    """One clip (c, n) of any length, encoded and decoded, at the rate and with the channels of the model.

    Longer clips pass in frames of `frame_seconds`, `batch_size` at once, that overlap by a share of `overlap_rate` and
    are cross-faded there. `progress` is called after each frame, and `cancel` is checked before it.
    """
    codec = codec_of(model)
    length = math.ceil(audio.shape[-1] * codec.sample_rate / sample_rate)
    prepared = codec.preprocess_audio_for_encoder(audio, sample_rate).to(device)
    ratio, multiple = codec.downsampling_ratio, codec.min_length // codec.downsampling_ratio
    size = max(1, round(frame_seconds * codec.sample_rate / codec.min_length)) * multiple
    overlap = min(math.ceil(size * overlap_rate / multiple) * multiple, size - multiple) if overlap_rate > 0 else 0
    plan = ChunkPlan(prepared.shape[-1] // ratio, size, overlap, crossfade=True)

    done, total, watch = 0, len(plan.starts), Watch(cancel=cancel)

    def pass_through(part: Tensor) -> Tensor:
        nonlocal done
        watch.check()
        passed: Tensor = codec.decode(codec.encode(part), **decoding)
        done += len(part)
        if tell is not None:
            tell(done, total)
        return passed

    held = held_for_autocast(codec.encoder, codec.decoder, getattr(codec, "diffusion", None))
    with folded_weight_norm(codec), held, progress_of(progress, total) as tell:
        made = in_batches(pass_through, plan.split(prepared, ratio), 1.0, batch_size)
    return plan.join(made, ratio)[0, :, :length]
