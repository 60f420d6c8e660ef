"""Held-out loss per noise level: the same noise in every validation, so that two values can be compared."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from stable_audio_tools.models.diffusion.objectives import DiffusionObjective, corrupt

VALIDATION_SEED = 4321
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


class NoiseLevelLosses:
    """Sums of squared errors per noise level over a validation pass."""

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = tuple(levels)
        self._sums: list[Tensor] = []

    def add(
        self,
        clean: Tensor,
        objective: DiffusionObjective,
        batch_index: int,
        predict: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """One batch `(b, d, t)`; `predict(noisy, t)` is the network."""
        generator = torch.Generator().manual_seed(VALIDATION_SEED + batch_index)
        row = []
        for level in self.levels:
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            t = torch.full((clean.shape[0],), level, device=clean.device)
            noisy, target = corrupt(clean, noise, t, objective)
            row.append((predict(noisy, t) - target).float().square().mean())
        self._sums.append(torch.stack(row))

    def report(self, module: LightningModule) -> None:
        """Log the mean of each level and of all, over all processes; nothing was added: nothing is logged."""
        if not self._sums:
            return
        gathered: Any = module.all_gather(torch.stack(self._sums).mean(0))
        means = gathered.reshape(-1, len(self.levels)).mean(0)
        for level, mean in zip(self.levels, means):
            module.log(f"val/loss_{level:g}", mean, rank_zero_only=True)
        module.log("val/avg_loss", means.mean(), prog_bar=True, rank_zero_only=True)
        self._sums = []
