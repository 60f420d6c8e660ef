"""Latents as points and tables, for loggers and notebooks."""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from stable_audio_tools.core.packages import require


def project_down(tokens: Tensor, proj_dims: int = 3, method: str = "pca", **_: Any) -> Tensor:
    """Latents `(b, d, t)` on the directions in which they vary most, `(b, t, proj_dims)`."""
    if method.lower() != "pca":
        raise ValueError(f"method must be 'pca', got {method!r}")
    frames = rearrange(tokens.detach().float(), "b d t -> (b t) d")
    if frames.shape[1] > proj_dims:
        centred = frames - frames.mean(0)
        frames = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:proj_dims].T
    return rearrange(frames, "(b t) d -> b t d", b=len(tokens))


def proj_pca(tokens: Tensor, proj_dims: int = 3) -> Tensor:
    """As `project_down`."""
    return project_down(tokens, proj_dims)


def embeddings_table(tokens: Tensor) -> Any:
    """Latents `(b, d, t)` as a table for Weights & Biases: a row for each frame, labelled by its item."""
    wandb = require("wandb", extra="wandb")
    batch, dims, _ = tokens.shape
    rows = [
        [*frame, f"demo{item}"] for item in range(batch) for frame in tokens[item].T.detach().float().cpu().tolist()
    ]
    return wandb.Table(columns=[*(f"dim_{index}" for index in range(dims)), "LABEL"], data=rows)


def point_cloud(tokens: Tensor, method: str = "pca", **options: Any) -> Any:
    """As `pca_point_cloud`; principal components are the one method."""
    if method != "pca":
        raise ValueError(f"method must be 'pca', got {method!r}")
    return pca_point_cloud(tokens, **options)


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
