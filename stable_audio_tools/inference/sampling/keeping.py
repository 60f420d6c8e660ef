"""Inpainting with models that were not trained for it: known data replaces its prediction.

The known region keeps the noise that it started with and ends as the known data itself; the network sees it at the
noise level of every step. Any sampler and any objective works (compare Song et al. 2021, appendix I.2).
"""

import torch
from torch import Tensor

from stable_audio_tools.models.diffusion.guidance import Denoiser, Guided
from stable_audio_tools.models.diffusion.objectives import Objective


class KeepingDenoiser:
    """A denoiser that knows the data (b, d, t) where the mask (b, 1 or d, t) is 1."""

    def __init__(self, denoiser: Denoiser, known: Tensor, mask: Tensor, objective: Objective) -> None:
        self._denoiser, self._known, self._objective = denoiser, known, objective
        self._is_kept = mask >= 0.5

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._keep(x, t, self._denoiser(x, t))

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        return Guided(*(self._keep(x, t, output) for output in self._denoiser.guided(x, t)))

    def _keep(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        exact = t if t.device.type == "mps" else t.double()
        sigma = self._objective.noise_level(exact)[:, None, None]
        implied = self._objective.prediction_for(self._known.to(x), x, exact)
        # At t = 0 the noise cannot be estimated; what some samplers ask there no longer changes the data.
        return torch.where(self._is_kept & (sigma > 0), implied.to(output), output)
