"""One pass for all timesteps of a sample; each gradient is projected as it arrives, and dropped.

The backward pass of a mean over rows is the mean of their gradients, so nothing must be taken apart. Of a wide linear
layer not even the gradient is made: the projection takes its two factors, the layer's inputs and the gradient of its
outputs. Both are what autograd saves, so this works under activation checkpointing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.attribution.engines.engine import GradientEngine
from stable_audio_tools.attribution.projection import Projection
from stable_audio_tools.attribution.task import AttributedSample, DiffusionTask

Take = Callable[[Tensor, Tensor], None]


class HookEngine(GradientEngine):
    """Holds the gradient of one parameter at a time."""

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
            return torch.stack([self._one(sample) for sample in samples])

    def _one(self, sample: AttributedSample) -> Tensor:
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
        """Every selected parameter with a hook on its gradient, or on its layer."""
        with ExitStack() as hooks:
            for name, layer in self.factored.items():
                parameter = self.parameters[name].requires_grad_(False)
                hooks.callback(parameter.requires_grad_, True)
                anchor = torch.zeros((), device=parameter.device, requires_grad=True)
                hook = partial(_tap, take=partial(self._take_factors, name), anchor=anchor)
                hooks.callback(layer.register_forward_hook(hook).remove)
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
    """Linear layers, by the names of their weights, that are cheaper to project by their factors."""
    layers = {}
    for path, module in network.named_modules():
        name = f"{path}.weight" if path else "weight"
        # Of a subclass (parametrised, or with an adapter) the weight may count in more ways than by W x.
        if type(module) is not nn.Linear or name not in parameters:
            continue
        if projection.saves_gradient(module.out_features, module.in_features):
            layers[name] = module
    shared = [id(layer.weight) for layer in layers.values()]
    return {name: layer for name, layer in layers.items() if shared.count(id(layer.weight)) == 1}


def _tap(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, *, take: Take, anchor: Tensor) -> Tensor:
    tapped: Tensor = _Tap.apply(output, inputs[0], anchor, take)
    return tapped


class _Tap(torch.autograd.Function):
    """The identity; on the way back it hands over the gradient of a layer's output with the layer's input."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, layer_input: Tensor, anchor: Tensor, take: Take) -> Tensor:
        ctx.save_for_backward(layer_input)
        ctx.take = take
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (layer_input,) = ctx.saved_tensors
        ctx.take(gradients[0], layer_input.detach())
        return gradients[0], None, None, None
