"""Held-out loss per noise level: the noise follows from the item, so the result depends on weights and data alone."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from stable_audio_tools.inference.sampling.randomness import RandomStream
from stable_audio_tools.models.diffusion.objectives import Objective

VALIDATION_SEED = 4321
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


class NoiseLevelLosses:
    """Squared errors per noise level, summed over the items of a validation pass."""

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = tuple(levels)
        self._sums: Tensor | None = None  # one entry per level, and the number of items at the end
        self._items = 0

    def seeds(self, metadata: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return a seed for the noise of each item of the next batch, from its file or, without one, its place."""
        places = [info.get("path") or self._items + number for number, info in enumerate(metadata)]
        spans = [info.get("timestamps", ()) for info in metadata]
        self._items += len(places)
        keys = [f"{VALIDATION_SEED}/{place}/{tuple(span)}" for place, span in zip(places, spans)]
        return [int.from_bytes(sha256(key.encode("utf-8", "surrogateescape")).digest()[:7], "big") for key in keys]

    def add(
        self,
        clean: Tensor,
        seeds: Sequence[int],
        objective: Objective,
        predict: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Add a batch `(b, d, t)` with the seeds of its items; `predict(noisy, t)` is the network."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sums = []
        for level in self.levels:
            noise = torch.stack([torch.randn(clean.shape[1:], generator=generator) for generator in generators])
            t = torch.full((clean.shape[0],), level, device=clean.device)
            noisy, target = objective.corrupt(clean, noise.to(clean), t)
            sums.append((predict(noisy, t) - target).float().square().flatten(1).mean(1).sum())
        row = torch.stack([*sums, torch.tensor(float(len(clean)), device=clean.device)])
        self._sums = row if self._sums is None else self._sums + row

    def report(self, module: LightningModule) -> None:
        """Log the mean over all items of all processes, of each level and of all levels, if there are items."""
        own = torch.zeros(len(self.levels) + 1, device=module.device) if self._sums is None else self._sums
        self._sums, self._items = None, 0
        gathered: Any = module.all_gather(own)
        *sums, items = gathered.reshape(-1, len(self.levels) + 1).sum(0)
        if not items:
            return
        means = torch.stack(sums) / items
        for level, mean in zip(self.levels, means):
            module.log(f"val/loss_{level:g}", mean, rank_zero_only=True)
        module.log("val/avg_loss", means.mean(), prog_bar=True, rank_zero_only=True)


def encode_each(encode: Callable[[Tensor], Tensor], audio: Tensor, seeds: Sequence[int]) -> Tensor:
    """Encode items (b, c, n) one by one to (b, d, t), each with random draws from its seed."""
    latents = []
    for item, seed in zip(audio.split(1), seeds):
        with RandomStream(seed, audio.device).in_charge():
            latents.append(encode(item))
    return torch.cat(latents)
