"""Loading of weights into models, with a report of what fitted, what was missing and what was left over."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints.formats import StoredWeights, open_weights
from stable_audio_tools.models.checkpoints.skeleton import parameters_with_values
from stable_audio_tools.models.checkpoints.upgrades import COMPLETIONS, Target, apply_upgrades
from stable_audio_tools.models.checkpoints.wrappers import View, best_view, has_averaged, with_averaged

logger = logging.getLogger(__name__)


class WrongShape(NamedTuple):
    name: str
    in_file: tuple[int, ...]
    in_model: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} is {list(self.in_file)} in the file, {list(self.in_model)} in the model"


class Tally(NamedTuple):
    """Counts of tensors in one part of the model."""

    loaded: int
    of: int


@dataclass(frozen=True)
class LoadReport:
    """Result of a load by the names of the model; `sizes` is the number of values of each of its tensors."""

    source: str
    recognised: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[WrongShape, ...]
    upgrades: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every tensor of the model was loaded, and every tensor of the file was used."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    @property
    def percent(self) -> float:
        """Share of the model's values that came from the file."""
        total = sum(self.sizes.values())
        return 100 * sum(self.sizes[name] for name in self.loaded) / total if total else 100.0

    @property
    def by_prefix(self) -> dict[str, Tally]:
        """Loaded and expected tensors of each part of the model."""
        loaded = set(self.loaded)
        depth = _splitting_depth(self.sizes)
        expected = Counter(_prefix(name, depth) for name in self.sizes)
        got = Counter(_prefix(name, depth) for name in self.sizes if name in loaded)
        return {prefix: Tally(got[prefix], count) for prefix, count in expected.items()}

    def summary(self) -> str:
        """Return a text of three lines."""
        largest = sorted(self.by_prefix.items(), key=lambda item: -item[1].of)[:6]
        parts = ", ".join(f"{prefix} {tally.loaded} of {tally.of}" for prefix, tally in largest)
        upgraded = "".join(f"; {name.replace('_', ' ')}: {count}" for name, count in self.upgrades.items())
        lines = [
            f"loaded {len(self.loaded)} of {len(self.sizes)} tensors, {self.percent:.1f} % of the model's values"
            f"{f' ({parts})' if len(self.by_prefix) > 1 else ''}{upgraded}",
            f"missing from the file: {_listed(self.missing)}",
            f"in the file but not used: {_listed(self.unexpected)}",
        ]
        if self.wrong_shape:
            more = f" and {len(self.wrong_shape) - 1} more" if len(self.wrong_shape) > 1 else ""
            lines[2] += f"; of another shape: {self.wrong_shape[0]}{more}"
        return "\n".join(lines)


def _listed(names: Collection[str]) -> str:
    if not names:
        return "none"
    if len(names) <= 3:
        return ", ".join(names)
    depth = _splitting_depth(names)
    groups = Counter(_prefix(name, depth) for name in names).most_common(4)
    others = len(names) - sum(count for _, count in groups)
    text = ", ".join(f"{prefix} {count}" for prefix, count in groups)
    return f"{len(names)} ({text}{f', others {others}' if others else ''})"


def _splitting_depth(names: Collection[str]) -> int:
    """Return how many parts of the names distinguish two groups."""
    for depth in range(1, 6):
        if len({_prefix(name, depth) for name in names}) > 1:
            return depth
    return 1


def _prefix(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


Source = str | Path | StoredWeights | Mapping[str, Tensor]


def read_weights(
    source: Source, ema: bool | None = False, expected: Mapping[str, Tensor] | None = None
) -> StoredWeights:
    """Read the weights of the model itself from any weight file; training checkpoints are unwrapped.

    `ema`: take the averaged weights of a training checkpoint; None takes them if the file has some. `expected` (the
    state dict of a model) selects the part of the file.
    """
    if isinstance(source, str | Path):
        stored = open_weights(source)
    elif isinstance(source, StoredWeights):
        stored = source
    else:
        stored = StoredWeights("the given state dict", "a state dict", dict(source))
    view = best_view(list(stored.tensors), stored.is_training, expected)
    averaged = has_averaged(stored.tensors, view.wrapper)
    if ema and not averaged:
        raise CheckpointError(
            f"{stored.path}: holds no averaged weights; leave out --ema (ema=True) to take what it has"
        )
    use_averaged = averaged and ema is not False
    tensors = stored.tensors
    if use_averaged and view.wrapper is not None:
        tensors = with_averaged(tensors, view.wrapper)
    tensors = {name: tensors[there] for name, there in view.names(list(tensors)).items()}
    return replace(stored, kind=_sentence(stored, view, averaged, use_averaged), tensors=tensors, is_training=False)


def load_into(
    model: nn.Module,
    source: Source,
    *,
    partial: bool = False,
    ema: bool | None = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LoadReport:
    """Load weights into a model and return a report; anything but a complete fit is an error.

    `partial` loads the tensors that fit by name and shape, and fails if none does. Tensors of a model on the meta
    device are replaced by the tensors of the file, on `device` and in `dtype` (or the model's own); others are
    overwritten in place. After an error the weights of the model are undefined.
    """
    target = Target.of(model)
    weights = read_weights(source, ema, target.tensors)
    logger.info("%s", weights.kind)
    state, upgrades = _upgraded(weights, target)
    wrong = {
        name: WrongShape(name, tuple(value.shape), tuple(target.tensors[name].shape))
        for name, value in state.items()
        if name in target.tensors and not _fits(value, target.tensors[name])
    }
    fitting = {name: value for name, value in state.items() if name not in wrong}
    missing, unexpected = _assign(model, target, fitting, device, dtype)
    report = LoadReport(
        weights.path,
        weights.kind,
        loaded=tuple(name for name in target.tensors if name in fitting and name not in missing),
        missing=tuple(name for name in missing if name not in wrong),
        unexpected=tuple(unexpected),
        wrong_shape=tuple(wrong.values()),
        upgrades=upgrades,
        sizes={name: tensor.numel() for name, tensor in target.tensors.items()},
    )
    if not partial and not report.complete:
        raise CheckpointError(
            f"{weights.path}: does not fit the model\n{report.summary()}\n"
            f"{_hint(weights, target)}; pass partial=True to load the tensors that fit"
        )
    broken = [name for name in report.loaded if not _is_finite(fitting[name])]
    if broken:
        logger.warning(
            "%s: %d tensors hold NaN or infinite values, so outputs will too: %s%s",
            weights.name,
            len(broken),
            ", ".join(broken[:3]),
            ", ..." if len(broken) > 3 else "",
        )
    logger.info("%s: %s", weights.name, report.summary())
    return report


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, judging by the extreme ones."""
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    least, greatest = torch.aminmax(tensor)
    return bool(torch.isfinite(least) and torch.isfinite(greatest))


def _upgraded(weights: StoredWeights, target: Target) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Convert weights to the names and shapes of the model; also return the count of each upgrade that ran."""
    state = dict(weights.tensors)
    upgrades = apply_upgrades(state, target)
    for name, first in _twins(target).items():
        if name in state:  # a file may hold a shared tensor under either name
            state.setdefault(first, state[name])
        elif first in state:
            state[name] = state[first]
    if target.tensors and not any(_fits(value, target.tensors.get(name)) for name, value in state.items()):
        count = len(weights.tensors)
        raise CheckpointError(f"{weights.path}: none of its {count} tensors fits the model; {_hint(weights, target)}")
    return state, upgrades | apply_upgrades(state, target, COMPLETIONS)


def _sentence(stored: StoredWeights, view: View, averaged: bool, use_averaged: bool) -> str:
    text = f"{stored.name} is {stored.kind}"
    if view.wrapper is not None:
        step = stored.provenance.get("step")
        text += f" of {view.wrapper.noun}{f' at step {step}' if step is not None else ''}; "
        if use_averaged:
            text += "its averaged weights were taken"
        elif averaged:
            text += "its online weights were taken, pass --ema (ema=True) to take the averaged ones"
        else:
            text += "its weights were taken, it holds no averaged ones"
    return text + (f"; {view.noun} was taken" if view.noun else "")


def _twins(target: Target) -> dict[str, str]:
    """Map each name that shares a parameter with an earlier name to that name."""
    first: dict[int, str] = {}
    return {
        name: first[id(tensor)] for name, tensor in target.tensors.items() if first.setdefault(id(tensor), name) != name
    }


def _fits(value: Tensor, own: Tensor | None) -> bool:
    return own is not None and value.shape == own.shape


def _assign(
    model: nn.Module, target: Target, state: dict[str, Tensor], device: torch.device | None, dtype: torch.dtype | None
) -> tuple[list[str], list[str]]:
    empty = any(tensor.is_meta for tensor in target.tensors.values())
    if empty:
        state = {name: _converted(value, target.tensors.get(name), device, dtype) for name, value in state.items()}
    try:
        # The unbound method: a module may forward its own load_state_dict to a part of it, under other names.
        with parameters_with_values():
            missing, unexpected = nn.Module.load_state_dict(model, state, strict=False, assign=empty)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the model: {error}") from error
    if empty:
        for name, first in _twins(target).items():
            owner, _, leaf = name.rpartition(".")
            first_owner, _, first_leaf = first.rpartition(".")
            shared = getattr(model.get_submodule(first_owner), first_leaf)
            setattr(model.get_submodule(owner), leaf, shared)
    return missing, unexpected


def _converted(value: Tensor, own: Tensor | None, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    wanted = dtype or (own.dtype if own is not None else value.dtype)
    if not value.is_floating_point() or not wanted.is_floating_point:
        wanted = own.dtype if own is not None else value.dtype
    return value.to(device=device, dtype=wanted)


def _hint(weights: StoredWeights, target: Target) -> str:
    """Return the likeliest reason, judging by the first parts of the names."""
    holds, wants = _noun(weights.tensors), _noun(target.tensors)
    if any(name.endswith("to_scale_shift_gate.1.weight") for name in weights.tensors):
        return (
            "the file has one adaLN projection per layer, as friendly-stable-audio-tools and releases before 0.0.17 "
            'write; put "adaln_layout": "per_layer" into the config of the transformer'
        )
    if holds and wants and holds != wants:
        return f"the file holds {holds}, the model is {wants}"
    return "the config and the weights belong to different models"


def _noun(tensors: Mapping[str, Tensor]) -> str:
    tops = {name.split(".", 1)[0] for name in tensors}
    if "lm" in tops:
        return "a language model"
    if "diffusion" in tops and tops & {"encoder", "decoder", "bottleneck"}:
        return "a diffusion autoencoder"
    if "model" in tops and tops & {"conditioner", "pretransform"}:
        return "a diffusion model"
    return "an autoencoder" if {"encoder", "decoder"} <= tops else ""


def load_ckpt_state_dict(ckpt_path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file by their names in the file; training checkpoints stay wrapped."""
    return open_weights(ckpt_path).tensors


def copy_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Load the tensors that fit by name and shape; it is an error if none fits."""
    return load_into(model, state_dict, partial=True)
