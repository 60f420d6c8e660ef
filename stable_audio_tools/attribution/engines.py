"""Gradient engines: three ways to compute the same projected gradients.

`HookEngine` runs one pass for all timesteps of a sample. The backward pass of a mean over rows yields the mean of their
gradients, so rows need not be separated. Each gradient is projected when autograd delivers it, and then released. For a
wide linear layer the gradient is never formed: the projection takes its two factors, the inputs of the layer and the
gradient of its outputs. Autograd saves both, also under activation checkpointing.

`VmapEngine` vectorises over several samples, which suits small models and dense projections, whose matrix the samples
share. `LoopEngine` runs one pass per timestep and sample, and is the reference for the other two.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from stable_audio_tools.attribution.projection import Projection
from stable_audio_tools.attribution.task import AttributedSample, DiffusionTask, NoisyRows
from stable_audio_tools.core.errors import ConfigError

EngineName = Literal["auto", "hooks", "vmap", "loop"]
_SHARED_ELEMENTS = 1 << 28  # gradients of a group that may be held to share a dense matrix: 1 GiB
FactorConsumer = Callable[[Tensor, Tensor], None]  # gradient of the outputs, inputs


class GradientEngine(ABC):
    """Projected gradients of a task's value with respect to named `parameters` of its network."""

    name: str

    def __init__(self, task: DiffusionTask, parameters: Mapping[str, Tensor], projection: Projection) -> None:
        self.task, self.parameters, self.projection = task, dict(parameters), projection
        for name, parameter in task.network.named_parameters():
            parameter.requires_grad_(name in self.parameters)
            parameter.grad = None

    @abstractmethod
    def features(self, samples: Sequence[AttributedSample]) -> Tensor:
        """Return features (b, dim) in float32 on the CPU; a row depends on its own sample only."""

    def _zeros(self, count: int) -> Tensor:
        parameter = next(iter(self.parameters.values()))
        return torch.zeros(count, self.projection.dim, dtype=parameter.dtype, device=parameter.device)


class HookEngine(GradientEngine):
    """One pass for all timesteps of a sample; holds the gradient of one parameter at a time."""

    name = "hooks"

    def __init__(
        self,
        task: DiffusionTask,
        parameters: Mapping[str, Tensor],
        projection: Projection,
        rows_at_once: float = float("inf"),
    ) -> None:
        super().__init__(task, parameters, projection)
        self.rows_at_once = rows_at_once
        self.factored = _wide_layers(task.network, self.parameters, projection)
        self._feature = self._zeros(1)[0]

    def features(self, samples: Sequence[AttributedSample]) -> Tensor:
        with self._hooked():
            return torch.stack([self._feature_of(sample) for sample in samples])

    def _feature_of(self, sample: AttributedSample) -> Tensor:
        self._feature.zero_()
        rows = self.task.prepare(sample)
        count = len(rows.t)
        size = int(min(self.rows_at_once, count))
        for start in range(0, count, size):
            value = self.task.values(rows.part(start, min(start + size, count))).sum() / count
            value.backward()
        return self._feature.to("cpu", torch.float32, copy=True)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """Hook the gradient, or the layer, of every selected parameter inside the block."""
        with ExitStack() as hooks:
            for name, layer in self.factored.items():
                parameter = self.parameters[name].requires_grad_(False)
                hooks.callback(parameter.requires_grad_, True)
                anchor = torch.zeros((), device=parameter.device, requires_grad=True)
                take = partial(self._take_factors, name)
                hooks.callback(layer.register_forward_hook(_tap(take, anchor)).remove)
            for name, parameter in self.parameters.items():
                if name not in self.factored:
                    hook = parameter.register_post_accumulate_grad_hook(partial(self._take_gradient, name))
                    hooks.callback(hook.remove)
            yield

    def _take_gradient(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._feature += self.projection.project(name, parameter.grad[None])[0]
        parameter.grad = None

    def _take_factors(self, name: str, delta: Tensor, activation: Tensor) -> None:
        factors = (delta.reshape(-1, delta.shape[-1]), activation.reshape(-1, activation.shape[-1]))
        self._feature += self.projection.project_factors(name, *factors)


def _wide_layers(network: nn.Module, parameters: Mapping[str, Tensor], projection: Projection) -> dict[str, nn.Linear]:
    """Return linear layers, by the names of their weights, that are cheaper to project by their factors."""
    layers = {}
    for path, module in network.named_modules():
        name = f"{path}.weight" if path else "weight"
        # A subclass (parametrised, or with an adapter) may use its weight for more than W x.
        if type(module) is not nn.Linear or name not in parameters:
            continue
        if projection.saves_gradient(module.out_features, module.in_features):
            layers[name] = module
    shared = [id(layer.weight) for layer in layers.values()]
    return {name: layer for name, layer in layers.items() if shared.count(id(layer.weight)) == 1}


def _tap(take: FactorConsumer, anchor: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Return a forward hook that delivers the factors of a layer's gradient to `take` in the backward pass."""

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tapped: Tensor = _Tap.apply(output, inputs[0], anchor, take)
        return tapped

    return hook


class _Tap(torch.autograd.Function):
    """The identity, whose backward pass delivers the gradient of a layer's output with the layer's input."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, layer_input: Tensor, anchor: Tensor, take: FactorConsumer) -> Tensor:
        ctx.save_for_backward(layer_input)
        ctx.take = take
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (layer_input,) = ctx.saved_tensors
        ctx.take(gradients[0], layer_input.detach())
        return gradients[0], None, None, None


class LoopEngine(GradientEngine):
    """One pass per timestep of each sample; holds one whole gradient."""

    name = "loop"

    def features(self, samples: Sequence[AttributedSample]) -> Tensor:
        features = self._zeros(len(samples))
        for row, sample in enumerate(samples):
            for name, gradient in self.gradient(sample).items():
                features[row] += self.projection.project(name, gradient[None])[0]
        return features.float().cpu()

    def gradient(self, sample: AttributedSample) -> dict[str, Tensor]:
        """Return the gradient of one sample by parameter; zeros for parameters without effect."""
        rows = self.task.prepare(sample)
        count = len(rows.t)
        total = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        for step in range(count):
            value = self.task.values(rows.part(step, step + 1)).sum() / count
            gradients = torch.autograd.grad(value, list(self.parameters.values()), allow_unused=True)
            for name, gradient in zip(self.parameters, gradients):
                if gradient is not None:
                    total[name] += gradient
        return total


class VmapEngine(GradientEngine):
    """One vectorised pass for a group of samples of one shape, padded to one size so that results do not change."""

    name = "vmap"
    group = 4

    def features(self, samples: Sequence[AttributedSample]) -> Tensor:
        alike: dict[tuple[object, ...], list[int]] = {}
        for place, sample in enumerate(samples):
            alike.setdefault(_shapes(sample), []).append(place)
        features = torch.empty(len(samples), self.projection.dim)
        for places in alike.values():
            for start in range(0, len(places), self.group):
                chosen = places[start : start + self.group]
                features[chosen] = self._group([samples[place] for place in chosen]).float().cpu()
        return features

    def _group(self, samples: Sequence[AttributedSample]) -> Tensor:
        prepared = [self.task.prepare(sample) for sample in samples]
        prepared += [prepared[-1]] * (self.group - len(prepared))
        stacked = _stack(prepared)
        parameters = {name: parameter.detach() for name, parameter in self.parameters.items()}

        def value(parameters: dict[str, Tensor], rows: NoisyRows) -> Tensor:
            return self.task.values(rows, parameters).mean()

        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no vectorised form
            gradients = vmap(grad(value), in_dims=(None, 0), randomness="error")(parameters, stacked)
        features = self._zeros(len(samples))
        for name, gradient in gradients.items():
            features += self.projection.project(name, gradient.detach()[: len(samples)])
        return features


def _shapes(sample: AttributedSample) -> tuple[object, ...]:
    """Return the shapes that samples must share to be stacked."""
    inputs = sorted((name, value.shape) for name, value in sample.inputs.items())
    return sample.latents.shape, sample.mask.shape, tuple(inputs)


def _stack(prepared: Sequence[NoisyRows]) -> NoisyRows:
    first = prepared[0]
    inputs = {name: torch.stack([rows.inputs[name] for rows in prepared]) for name in first.inputs}
    return NoisyRows(
        torch.stack([rows.noisy for rows in prepared]),
        torch.stack([rows.t for rows in prepared]),
        torch.stack([rows.target for rows in prepared]),
        inputs,
        torch.stack([rows.mask for rows in prepared]),
    )


def choose_engine(parameters: Mapping[str, Tensor], projection: Projection, checkpointing: bool) -> EngineName:
    """Choose hooks, unless a group of samples with gradients that fit into memory can share a dense matrix."""
    elements = sum(parameter.numel() for parameter in parameters.values())
    shares = projection.is_dense and not checkpointing and elements * VmapEngine.group <= _SHARED_ELEMENTS
    return "vmap" if shares else "hooks"


def make_engine(
    name: str,
    task: DiffusionTask,
    parameters: Mapping[str, Tensor],
    projection: Projection,
    *,
    rows_at_once: int = 0,
    checkpointing: bool = False,
) -> GradientEngine:
    """Build an engine by name; `rows_at_once` timesteps share a pass, 0 for all of them."""
    if name not in get_args(EngineName):
        raise ConfigError(f"--engine: expected one of {', '.join(get_args(EngineName))}; got {name!r}")
    chosen = choose_engine(parameters, projection, checkpointing) if name == "auto" else name
    if chosen == "vmap":
        if checkpointing:
            raise ConfigError("--engine vmap does not work with --checkpointing; use hooks or loop")
        return VmapEngine(task, parameters, projection)
    rows = rows_at_once or math.inf
    if chosen == "loop":
        return LoopEngine(task, parameters, projection)
    return HookEngine(task, parameters, projection, rows)
