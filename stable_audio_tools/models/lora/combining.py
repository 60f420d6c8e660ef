"""Combines several adapters into one: task arithmetic, TIES and DARE on their changes of the weights.

| method | the combined change of a weight |
|---|---|
| `sum` | sum of strength * change (Ilharco et al. 2023) |
| `ties` | the largest entries of each change; their mean over those with the sign of the sum (Yadav et al. 2023) |
| `dare` | each change keeps random entries, divided by the share kept; then the sum (Yu et al. 2024) |
| `dare-ties` | random entries as in `dare`, then signs and means as in `ties` |

The change of `lora`, `loha` and `lokr` is known from their files; magnitudes and -xs cores also need the base weights.
"""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import CheckpointError, UserError
from stable_audio_tools.models.lora.adapter import LoraAdapter, unload_lora
from stable_audio_tools.models.lora.base import base_facts, dense_weight, same_weights
from stable_audio_tools.models.lora.config import LoraConfig
from stable_audio_tools.models.lora.formula import matrix_of
from stable_audio_tools.models.lora.loading import convert_lora, load_lora
from stable_audio_tools.models.lora.merging import closest_factors
from stable_audio_tools.models.lora.stored import Layers, LoraFile
from stable_audio_tools.models.lora.targets import rank_of

logger = logging.getLogger(__name__)

CombineMethod = Literal["sum", "ties", "dare", "dare-ties"]
DEFAULT_DENSITY = 0.2


class Combined(NamedTuple):
    """A combined adapter, and the share of the squared change that its rank holds."""

    lora: LoraFile
    kept: float


@torch.no_grad()
def combine_loras(
    adapters: Sequence[tuple[LoraFile, float]],
    method: CombineMethod = "sum",
    *,
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    base: nn.Module | None = None,
) -> Combined:
    """Combine adapters, each with its strength, into one of type `lora`.

    `density` is the share of entries that `ties` and `dare` keep (0.2 if omitted). `rank` limits the result; if
    omitted, it is the sum of the ranks. `seed` chooses the random entries of `dare`.
    """
    if len(adapters) < 2:
        raise UserError(f"combining needs at least two adapters, got {len(adapters)}")
    if method == "sum" and density is not None:
        raise UserError("density has no meaning for the method sum; leave it out")
    density = DEFAULT_DENSITY if density is None else density
    if not 0 < density <= 1:
        raise UserError(f"density: expected above 0 and at most 1, got {density:g}")
    files = [convert_lora(lora, "native", base) for lora, _ in adapters]
    strengths = [strength for _, strength in adapters]
    changes: list[_Changes] = []
    layers: Layers = {}
    total = kept = 0.0
    try:
        changes.extend(_Changes(lora, base) for lora in files)
        for path in dict.fromkeys(path for lora in files for path in lora.layers):
            found = enumerate(each.of(path) for each in changes)
            by_file = [(index, change) for index, change in found if change is not None]
            if len({change.shape for _, change in by_file}) > 1:
                shapes = ", ".join(f"{files[index].name} {tuple(change.shape)}" for index, change in by_file)
                raise CheckpointError(f"{path}: the adapters are of different models ({shapes})")
            seeds = [crc32(f"{seed}/{index}/{path}".encode()) for index, _ in by_file]
            weighted = [strengths[index] * change for index, change in by_file]
            combined = _combine(weighted, method, density, seeds)
            limit = sum(rank_of(path, files[index].config) for index, _ in by_file) if rank is None else rank
            up, down = closest_factors(combined, min(limit, *combined.shape))
            layers[path] = {"lora_A": down, "lora_B": up}
            total += float(combined.square().sum())
            kept += float((up @ down).square().sum())
    finally:
        for each in changes:
            each.release()
    config = LoraConfig(rank=rank or max(len(held["lora_A"]) for held in layers.values()))
    facts = _common_facts(files, strengths, method if method == "sum" else f"{method}, density {density:g}")
    if base is not None:
        facts |= base_facts(base, layers)
    return Combined(LoraFile("combined", "native", layers, config, facts=facts), kept / total if total else 1.0)


class _Changes:
    """The changes that one adapter makes to the weights, W' - W by layer."""

    def __init__(self, lora: LoraFile, base: nn.Module | None) -> None:
        self.lora, self.base = lora, base
        self.attached: LoraAdapter | None = None
        form = lora.config.form
        if form.rows or form.cols or form.core:
            if base is None:
                raise CheckpointError(
                    f"{lora.path}: the change of an adapter of type {lora.config.adapter_type} depends on the base "
                    "weights; give the base model"
                )
            self.attached = load_lora(base, lora)

    def of(self, path: str) -> Tensor | None:
        """Return the change of a layer (rows, cols); None if the adapter leaves the layer alone."""
        if path not in self.lora.layers:
            return None
        if self.attached is None or self.base is None:
            return self.lora.scale(path) * matrix_of(self.lora.layers[path]).float()
        factors = dict(self.attached.layers())[path]
        return factors.change(dense_weight(self.base.get_submodule(path))).cpu()

    def release(self) -> None:
        """Remove the adapter from the base model."""
        if self.attached is not None and self.base is not None:
            unload_lora(self.base, self.attached.name)


def _combine(changes: Sequence[Tensor], method: CombineMethod, density: float, seeds: Sequence[int]) -> Tensor:
    """Combine the weighted changes (rows, cols) of one layer."""
    kept = list(changes)
    if method == "ties":
        kept = [_largest(change, density) for change in changes]
    elif method != "sum":
        for index, (change, seed) in enumerate(zip(changes, seeds)):
            drawn = torch.rand(change.shape, generator=torch.Generator().manual_seed(seed)) < density
            kept[index] = change * drawn.to(change.dtype) / density
    stacked = torch.stack(kept)
    if method in ("sum", "dare"):
        return stacked.sum(0)
    agrees = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def _largest(change: Tensor, density: float) -> Tensor:
    """Set all but the largest entries of a change to zero."""
    count = max(1, round(density * change.numel()))
    threshold = change.abs().flatten().kthvalue(change.numel() - count + 1).values
    return change * (change.abs() >= threshold)


def _common_facts(files: Sequence[LoraFile], strengths: Sequence[float], method: str) -> dict[str, object]:
    """Return facts of the combination; of the base, those on which the files agree."""
    first = files[0].facts
    facts: dict[str, object] = {}
    if any(same_weights(first, lora.facts) is False and set(lora.layers) == set(files[0].layers) for lora in files[1:]):
        logger.warning("the adapters were trained for different base weights; the combination may act less well")
    elif all(lora.facts.get("base_hashes") == first.get("base_hashes") for lora in files):
        facts |= {key: first[key] for key in ("base_name", "base_hashes") if key in first}
    triggers = dict.fromkeys(str(lora.facts["trigger"]) for lora in files if lora.facts.get("trigger"))
    if triggers:
        facts["trigger"] = ", ".join(triggers)
    parts = ", ".join(f"{lora.name}:{strength:g}" for lora, strength in zip(files, strengths))
    return {**facts, "combined_from": f"{parts} ({method})"}
