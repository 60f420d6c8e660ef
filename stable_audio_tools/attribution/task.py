"""The function to differentiate: the mean over timesteps of a measure f of a diffusion model's prediction.

TRAK differentiates the loss; D-TRAK (Zheng et al. 2024) differentiates the mean square of the prediction, the loss
against zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stable_audio_tools.attribution.keyed_random import keyed_drops, keyed_noise
from stable_audio_tools.core.config import build
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.draws import seeded
from stable_audio_tools.models.diffusion.distribution_shift import Shift
from stable_audio_tools.models.diffusion.objectives import (
    Objective,
)

TimestepStrategy = Literal["uniform", "cumulative"]
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]  # prediction, target, mask (1, n) of frames that count


def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error."""
    return _mean((prediction - target).square(), mask)


def mean_squared_l2_norm(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean square of the prediction (D-TRAK)."""
    return _mean(prediction.square(), mask)


def mean(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the prediction."""
    return _mean(prediction, mask)


def l1_norm(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of absolute values."""
    return _norm(prediction, mask, 1)


def l2_norm(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the root of the sum of squares."""
    return _norm(prediction, mask, 2)


def linf_norm(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the largest absolute value."""
    return _norm(prediction, mask, float("inf"))


MEASURES: dict[str, Measure] = {
    "loss": loss,
    "mean-squared-l2-norm": mean_squared_l2_norm,
    "mean": mean,
    "l1-norm": l1_norm,
    "l2-norm": l2_norm,
    "linf-norm": linf_norm,
}


def find_measure(name: str) -> Measure:
    """Return the measure for a value of `--f`."""
    if name not in MEASURES:
        raise ConfigError(f"--f: expected one of {', '.join(MEASURES)}; got {name!r}")
    return MEASURES[name]


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum((1, 2)) / (mask.sum() * values.shape[1])


def _norm(prediction: Tensor, mask: Tensor, order: float) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm((prediction * mask).flatten(1), ord=order, dim=1)
    return norms


_DROPPED = ("cross_attn_cond", "prepend_cond")  # conditions that guidance drops


class AttributedSample(NamedTuple):
    """One item as input of the backbone."""

    key: str  # key of its noise
    latents: Tensor  # (d, t)
    inputs: Mapping[str, Tensor]  # conditions, a batch of one each
    mask: Tensor  # (1, t), 1 at frames that count


class NoisyRows(NamedTuple):
    """The timesteps of one sample, one row each; no other sample shares their pass through the network."""

    noisy: Tensor  # (k, d, t)
    t: Tensor  # (k,)
    target: Tensor  # (k, d, t)
    inputs: dict[str, Tensor]  # (k, ...)
    mask: Tensor  # (1, t)

    def part(self, start: int, stop: int) -> "NoisyRows":
        """Return some of the rows."""
        inputs = {name: value[start:stop] for name, value in self.inputs.items()}
        chosen = slice(start, stop)
        return NoisyRows(self.noisy[chosen], self.t[chosen], self.target[chosen], inputs, self.mask)


def select_timesteps(count: int, num_train_steps: int = 1000, strategy: str = "uniform") -> list[int]:
    """Select steps out of `num_train_steps`, evenly spaced, or the first ones; time is step / num_train_steps."""
    if strategy not in get_args(TimestepStrategy):
        raise ConfigError(f"--t-strategy: expected {' or '.join(get_args(TimestepStrategy))}, got {strategy!r}")
    if not 1 <= count <= num_train_steps:
        raise ConfigError(f"--K: expected 1 to --num-train-steps ({num_train_steps}), got {count}")
    return [place * num_train_steps // count if strategy == "uniform" else place for place in range(count)]


class NoiseLevelLaw:
    """The distribution of noise levels in training, by its quantiles.

    With it, the mean over evenly spaced steps is the expectation under that distribution, as in the training loss.
    """

    _DRAWS = 1 << 16  # quantiles of more draws differ by less than a thousandth

    def __init__(self, name: str, options: JsonObject) -> None:
        law = build("timestep_law", {"type": name, "config": options}, "training.timestep_sampler")
        with seeded(0):
            self.sorted: Tensor = law.draw(self._DRAWS).double().sort().values
        self.description = {"type": name, **options}

    @classmethod
    def of_training(cls, training: JsonObject) -> "NoiseLevelLaw | None":
        """Return the law in the training section of a model config; None if it is uniform."""
        name = training.get("timestep_sampler") or "uniform"
        return None if name == "uniform" else cls(name, dict(training.get("timestep_sampler_options") or {}))

    def quantiles(self, shares: Tensor) -> Tensor:
        """Return the noise levels below which these shares of all draws lie."""
        places = (shares.double() * self._DRAWS).long().clamp(0, self._DRAWS - 1)
        return self.sorted[places].to(shares.dtype)


@dataclass(frozen=True)
class FeatureRecipe:
    """Everything that a value depends on, except the model and the sample."""

    measure: Measure
    steps: Sequence[int]
    num_train_steps: int = 1000
    noise_seed: int = 0
    cfg_dropout_prob: float = 0.0
    law: NoiseLevelLaw | None = None  # None: uniform


class DiffusionTask:
    """Values of a backbone's predictions, with the corruption and the shift of training."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        recipe: FeatureRecipe,
        shift: Shift | None = None,
    ) -> None:
        self.network, self.objective, self.recipe, self.shift = network, objective, recipe, shift

    def prepare(self, sample: AttributedSample) -> NoisyRows:
        """Return the noisy inputs of a sample at every timestep, and the targets of their predictions."""
        recipe, clean = self.recipe, sample.latents
        noise = keyed_noise(clean.shape, recipe.noise_seed, recipe.steps, sample.key).to(clean)
        t = torch.tensor(recipe.steps, dtype=clean.dtype) / recipe.num_train_steps
        if recipe.law is not None:
            t = recipe.law.quantiles(t + 0.5 / len(recipe.steps))  # the middle of each of equally likely strata
        if self.shift is not None:
            t = self.shift.shift(t, clean.shape[-1])
        t = self.objective.training_times(t)
        count = len(recipe.steps)
        noisy, target = self.objective.corrupt(clean.expand(count, -1, -1), noise, t.to(clean.device))
        inputs = {name: value.expand(count, *value.shape[1:]) for name, value in sample.inputs.items()}
        if recipe.cfg_dropout_prob > 0:
            dropped = keyed_drops(recipe.cfg_dropout_prob, recipe.noise_seed, recipe.steps, sample.key)
            for name in inputs.keys() & set(_DROPPED):
                inputs[name] = inputs[name].masked_fill(dropped.to(clean.device)[:, None, None], 0.0)
        return NoisyRows(noisy, t.to(clean.device), target, inputs, sample.mask)

    def values(self, rows: NoisyRows, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the measure of each row, (k,), optionally with other parameters."""
        arguments = (rows.noisy, rows.t)
        if parameters is None:
            prediction = self.network(*arguments, **rows.inputs)
        else:
            prediction = functional_call(self.network, dict(parameters), arguments, rows.inputs)
        values = self.recipe.measure(prediction, rows.target, rows.mask)
        weight = self.objective.loss_weight(rows.t) if self.recipe.measure is loss else None
        return values if weight is None else values * weight
