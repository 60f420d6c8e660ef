"""The scale of latents, where a config leaves it to be measured."""

import logging

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stable_audio_tools.models.pretransforms import AutoencoderPretransform

logger = logging.getLogger(__name__)


@torch.no_grad()
def measure_scale(pretransform: nn.Module, batch: Tensor, pre_encoded: bool) -> None:
    """Set a scale that is `auto` to the deviation of the latents of this batch, over all processes.

    The batch is audio (b, c, n), or with `pre_encoded` latents (b, d, t) as the autoencoder made them.
    """
    waiting = [
        part for part in pretransform.modules() if isinstance(part, AutoencoderPretransform) and part.needs_scale
    ]
    if not waiting:
        return
    for part in waiting:
        part.set_scale(1.0)
    latents = batch if pre_encoded else pretransform.eval().encode(batch)  # type: ignore[operator]
    variance = latents.float().var()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(variance)
        variance /= dist.get_world_size()
    scale = float(variance.sqrt())
    if not scale > 0:
        raise ValueError("the latents of the first batch do not vary, so they have no scale; check the data")
    waiting[-1].set_scale(scale)
    logger.info("scale of the latents: %.5g, measured on the first batch", scale)
