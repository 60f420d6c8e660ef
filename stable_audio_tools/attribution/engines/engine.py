"""What the gradient engines share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stable_audio_tools.attribution.projection import Projection
from stable_audio_tools.attribution.task import AttributedSample, DiffusionTask


class GradientEngine(ABC):
    """Projected gradients of the task's value with regard to `parameters` of its network, by their names there."""

    name: str

    def __init__(self, task: DiffusionTask, parameters: Mapping[str, Tensor], projection: Projection) -> None:
        self.task, self.parameters, self.projection = task, dict(parameters), projection
        for name, parameter in task.network.named_parameters():
            parameter.requires_grad_(name in self.parameters)
            parameter.grad = None

    @abstractmethod
    def features(self, samples: Sequence[AttributedSample]) -> Tensor:
        """(b, dim) float32 on the CPU; a row depends on its own sample only."""

    def _zeros(self, count: int) -> Tensor:
        parameter = next(iter(self.parameters.values()))
        return torch.zeros(count, self.projection.dim, dtype=parameter.dtype, device=parameter.device)
