"""Several samples in one vectorised pass: for small models, and for dense projections, whose matrix they share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from stable_audio_tools.attribution.engines.engine import GradientEngine
from stable_audio_tools.attribution.task import AttributedSample, NoisyRows


class VmapEngine(GradientEngine):
    """Holds the gradients of a group: samples of one shape, always filled up to one size, so that no bit changes."""

    name = "vmap"
    group = 4

    def features(self, samples: Sequence[AttributedSample]) -> Tensor:
        alike: dict[Any, list[int]] = {}
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

        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no vectorised form, and would run one by one
            gradients = vmap(grad(value), in_dims=(None, 0), randomness="error")(parameters, stacked)
        features = self._zeros(len(samples))
        for name, gradient in gradients.items():
            features += self.projection.project(name, gradient.detach()[: len(samples)])
        return features


def _shapes(sample: AttributedSample) -> Any:
    """What samples must share to be stacked."""
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
