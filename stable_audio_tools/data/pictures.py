"""Pictures of audio and latents, drawn with Pillow, and latents as points and tables for loggers."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from stable_audio_tools.core.packages import require

# Anchor colours of a dark-to-bright scale whose lightness rises evenly; values between them are interpolated.
_ANCHORS = np.array(
    [
        (0, 0, 4),
        (28, 16, 68),
        (79, 18, 123),
        (129, 37, 129),
        (181, 54, 122),
        (229, 80, 100),
        (251, 135, 97),
        (254, 194, 135),
        (252, 253, 191),
    ],
    dtype=np.float64,
)
_FLOOR_DB = -80.0


def spectrogram_image(audio: Tensor, sample_rate: int, height: int = 128, width: int = 512) -> Image.Image:
    """Draw the mel spectrogram of `(c, n)` audio, channels averaged, low pitches at the bottom, 80 dB range."""
    sound = torch.nan_to_num(audio.detach().float().cpu())
    mono = (sound if sound.ndim == 1 else sound.mean(0)) if sound.numel() else torch.zeros(1)
    size = 1024 if len(mono) >= 1024 else 256
    mono = torch.nn.functional.pad(mono, (0, max(0, size - len(mono))))
    power = torch.stft(mono, size, size // 4, window=torch.hann_window(size), return_complex=True).abs() ** 2
    mel = power.T @ _mel_filters(sample_rate, size, height)
    decibels = 10 * torch.log10(mel / mel.max().clamp_min(1e-10) + 10 ** (_FLOOR_DB / 10))
    return _coloured((decibels.T.flip(0).numpy() - _FLOOR_DB) / -_FLOOR_DB, width, height)


def latents_image(latents: Tensor, width: int = 512) -> Image.Image:
    """Draw latents `(d, t)`: a row per channel, time to the right, clipped at three standard deviations."""
    values = torch.nan_to_num(latents.detach().float().cpu())
    scaled = (values - values.mean()) / values.std().clamp_min(1e-6)
    return _coloured(((scaled.clamp(-3, 3) + 3) / 6).numpy(), width, max(64, 4 * values.shape[0]))


def bands_image(bands: Tensor, width: int, height: int) -> Image.Image:
    """Draw spectrogram bands `(d, t)` in [-1, 1], low pitches at the bottom; -1 is black."""
    values = torch.nan_to_num(bands.detach().float().cpu()).flip(0)
    return _coloured(((values + 1) / 2).numpy(), width, height)


@lru_cache(maxsize=8)
def _mel_filters(sample_rate: int, size: int, bands: int) -> Tensor:
    bands = min(bands, size // 8)
    return melscale_fbanks(size // 2 + 1, 0.0, sample_rate / 2, bands, sample_rate)


def _coloured(values: NDArray[np.float32], width: int, height: int) -> Image.Image:
    position = np.clip(values, 0, 1) * (len(_ANCHORS) - 1)
    channels = [np.interp(position, np.arange(len(_ANCHORS)), _ANCHORS[:, channel]) for channel in range(3)]
    pixels = np.stack(channels, axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)


def project_down(tokens: Tensor, proj_dims: int = 3, method: str = "pca", **_: object) -> Tensor:
    """Project latents `(b, d, t)` on the directions of largest variance, `(b, t, proj_dims)`."""
    if method.lower() != "pca":
        raise ValueError(f"method must be 'pca', got {method!r}")
    frames = rearrange(tokens.detach().float(), "b d t -> (b t) d")
    if frames.shape[1] > proj_dims:
        centred = frames - frames.mean(0)
        frames = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:proj_dims].T
    return rearrange(frames, "(b t) d -> b t d", b=len(tokens))


def proj_pca(tokens: Tensor, proj_dims: int = 3) -> Tensor:
    """Return `project_down` with principal components."""
    return project_down(tokens, proj_dims)


def embeddings_table(tokens: Tensor) -> Any:
    """Return latents `(b, d, t)` as a table for Weights & Biases, one row per frame, labelled by item."""
    wandb = require("wandb", extra="wandb")
    batch, dims, _ = tokens.shape
    rows = [
        [*frame, f"demo{item}"] for item in range(batch) for frame in tokens[item].T.detach().float().cpu().tolist()
    ]
    return wandb.Table(columns=[*(f"dim_{index}" for index in range(dims)), "LABEL"], data=rows)


def _colours(codes: str) -> NDArray[Any]:
    return np.frombuffer(bytes.fromhex(codes), np.uint8).reshape(-1, 3).astype(int)


# Colours of 20 categories, and anchors of a scale from dark violet to yellow (matplotlib's tab20 and viridis).
_CATEGORIES = _colours(
    "1f77b4 aec7e8 ff7f0e ffbb78 2ca02c 98df8a d62728 ff9896 9467bd c5b0d5 "
    "8c564b c49c94 e377c2 f7b6d2 7f7f7f c7c7c7 bcbd22 dbdb8d 17becf 9edae5"
)
_SCALE = _colours("440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725")


def point_cloud(
    tokens: Tensor, method: str = "pca", color_scheme: str | int = "batch", output_type: str = "wandbobj", **_: object
) -> Any:
    """Project latents `(b, d, t)` to three dimensions: one row `x, y, z, red, green, blue` (0 to 255) per frame.

    `color_scheme` "batch" gives each item a colour, an integer that many groups of items, anything else follows time.
    `output_type` "points" returns the array, "wandbobj" an object of Weights & Biases. Other options have no effect.
    """
    if output_type not in ("points", "wandbobj"):
        raise ValueError(f"output_type must be 'points' or 'wandbobj', got {output_type!r}")
    places = project_down(tokens, 3, method).cpu().numpy()
    items, frames, dims = places.shape
    places = np.pad(places, ((0, 0), (0, 0), (0, 3 - dims)))
    item, frame = np.divmod(np.arange(items * frames), frames)
    share = None
    if color_scheme == "batch":
        share = (item + 1) / items
    elif str(color_scheme).isnumeric():
        groups = max(1, int(color_scheme))
        share = item // max(1, items // groups) / groups
    if share is not None:
        colours = _CATEGORIES[np.minimum((share * len(_CATEGORIES)).astype(int), len(_CATEGORIES) - 1)]
    else:
        marks = np.linspace(0, 1, len(_SCALE))
        colours = np.stack([np.interp(frame / frames, marks, channel) for channel in _SCALE.T], axis=1).astype(int)
    points = np.concatenate([places.reshape(-1, 3), colours], axis=1)
    return points if output_type == "points" else require("wandb", extra="wandb").Object3D(points)


def pca_point_cloud(
    tokens: Tensor, color_scheme: str | int = "batch", output_type: str = "wandbobj", **options: object
) -> Any:
    """Call `point_cloud` with principal components, its one method."""
    return point_cloud(tokens, "pca", color_scheme, output_type, **options)
