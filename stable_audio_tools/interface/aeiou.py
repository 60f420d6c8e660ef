"""Published import path of pictures of audio and latents."""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from stable_audio_tools.core.packages import require
from stable_audio_tools.data.pictures import latents_image, spectrogram_image


def audio_spectrogram_image(waveform: Tensor, power: float = 2.0, sample_rate: int = 48000, **_: Any) -> Image.Image:
    """Mel spectrogram of `(c, n)` audio, floating-point or 16-bit; `power` and options of plot libraries
    have no effect.
    """
    scale = 1.0 if waveform.is_floating_point() else 1 / 32768
    return spectrogram_image(waveform.float() * scale, sample_rate)


def tokens_spectrogram_image(tokens: Tensor, **_: Any) -> Image.Image:
    """Latents `(b, d, t)` one after the other; options of plot libraries have no effect."""
    return latents_image(rearrange(tokens, "b d t -> d (b t)"))


def pca_point_cloud(tokens: Tensor, color_scheme: str = "batch", output_type: str = "points") -> Any:
    """The three directions in which latents `(b, d, t)` vary most: one row `x, y, z, group` per frame.

    `points` gives the array, `wandbobj` wraps it for Weights & Biases. `color_scheme` `batch` groups frames by item,
    anything else numbers them.
    """
    frames = rearrange(tokens.detach().float().cpu(), "b d t -> (b t) d")
    centred = frames - frames.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    places = torch.zeros(len(frames), 3)
    places[:, : len(directions)] = centred @ directions.T
    per_item = tokens.shape[-1]
    groups = torch.arange(len(frames)) // per_item if color_scheme == "batch" else torch.arange(len(frames))
    points = np.concatenate([places.numpy(), (groups % 14 + 1).numpy()[:, None]], axis=1)
    if output_type == "points":
        return points
    if output_type != "wandbobj":
        raise ValueError(f"output_type must be 'points' or 'wandbobj', got {output_type!r}")
    return require("wandb", extra="wandb").Object3D(points)
