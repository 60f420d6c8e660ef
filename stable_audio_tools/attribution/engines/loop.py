"""The plain way, and the oracle of the others: a forward and a backward pass for each timestep of each sample."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stable_audio_tools.attribution.engines.engine import GradientEngine
from stable_audio_tools.attribution.task import AttributedSample


class LoopEngine(GradientEngine):
    """Holds one whole gradient."""

    name = "loop"

    def features(self, samples: Sequence[AttributedSample]) -> Tensor:
        features = self._zeros(len(samples))
        for row, sample in enumerate(samples):
            for name, gradient in self.gradient(sample).items():
                features[row] += self.projection.project(name, gradient[None])[0]
        return features.float().cpu()

    def gradient(self, sample: AttributedSample) -> dict[str, Tensor]:
        """The gradient of one sample, by parameter; zeros where it does not depend on one."""
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
