"""A tiny transformer over tiny latents, with every kind of layer that a backbone has, and samples for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stable_audio_tools.attribution.task import AttributedSample, DiffusionTask, FeatureRecipe, find_measure
from stable_audio_tools.core.config import save
from stable_audio_tools.models.diffusion.objectives import parse_objective
from stable_audio_tools.models.dit import DiffusionTransformer

CHANNELS, FRAMES = 3, 12


def tiny_transformer(**options: object) -> DiffusionTransformer:
    """No weight is zero, which would hide what lies before it."""
    torch.manual_seed(0)
    defaults: dict = {"embed_dim": 16, "depth": 2, "num_heads": 2, "cond_token_dim": 6, "global_cond_dim": 5}
    network = DiffusionTransformer(io_channels=CHANNELS, **{**defaults, **options})
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return network.double().eval()


def make_samples(count: int, dtype: torch.dtype = torch.float64) -> list[AttributedSample]:
    rng = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=dtype)

    mask = torch.ones(1, FRAMES, dtype=dtype)
    return [
        AttributedSample(
            f"item/{n}", draw(CHANNELS, FRAMES), {"cross_attn_cond": draw(1, 4, 6), "global_embed": draw(1, 5)}, mask
        )
        for n in range(count)
    ]


MakeTask = Callable[..., DiffusionTask]


@pytest.fixture
def make_task() -> MakeTask:
    """`make_task(f="loss", steps=[0, 300], **options of the transformer)`"""

    def make(f: str = "loss", steps: list[int] | None = None, objective: str = "v", **options: object) -> DiffusionTask:
        recipe = FeatureRecipe(find_measure(f), steps or [0, 300, 600, 900])
        return DiffusionTask(tiny_transformer(**options), parse_objective(objective), recipe)  # type: ignore[arg-type]

    return make


ORIGIN = {
    "weights": "w",
    "model": "m",
    "parameters": "p",
    "f": "loss",
    "projection": "normal",
    "seed": 42,
    "model_id": 0,
    "timesteps": [0, 500],
    "e_seed": 0,
}


def write_features(path: Path, ids: list[str], draw: int, dim: int = 6, **about: object) -> np.ndarray:
    rows = np.random.default_rng(draw).standard_normal((len(ids), dim)).astype(np.float32)
    rows.tofile(path)
    Path(f"{path}.ids.txt").write_text("".join(f"{name}\n" for name in ids))
    meta = {"num_rows_allocated": len(ids), "valid_rows": len(ids), "proj_dim": dim, **about}
    save(meta, Path(f"{path}.meta.json"))
    return rows
