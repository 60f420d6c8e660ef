"""Laws of the noise levels t in [0, 1] of training, where 1 is pure noise; one class per law, named by its JSON tag."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import register
from stable_audio_tools.models.diffusion.distribution_shift import (
    sample_timesteps_logsnr,
    sample_timesteps_logsnr_uniform,
    truncated_logistic_normal_rescaled,
)

LawState = dict[str, Any]  # by name: tensors and plain values, as a checkpoint holds them


class TimestepLaw(Protocol):
    """Draws noise levels; what it remembers between steps goes into the checkpoint."""

    def draw(self, count: int) -> Tensor: ...

    def state_dict(self) -> LawState: ...

    def load_state_dict(self, state: LawState) -> None: ...


class _Memoryless:
    def state_dict(self) -> LawState:
        return {}

    def load_state_dict(self, state: LawState) -> None:
        assert not state


@register("timestep_law", "uniform")
class Uniform:
    """Uniform in [0, 1], spread evenly over successive draws by a scrambled Sobol sequence."""

    def __init__(self) -> None:
        self._engine = torch.quasirandom.SobolEngine(1, scramble=True)

    def draw(self, count: int) -> Tensor:
        return self._engine.draw(count, dtype=torch.float32)[:, 0]  # the default type may be bfloat16

    def state_dict(self) -> LawState:
        engine = self._engine
        tensors = {name: getattr(engine, name).clone() for name in ("shift", "sobolstate", "quasi")}
        return {**tensors, "num_generated": engine.num_generated}

    def load_state_dict(self, state: LawState) -> None:
        for name, value in state.items():
            setattr(self._engine, name, value)
        self._engine._first_point = (self._engine.quasi / 2**self._engine.MAXBIT).reshape(1, -1)


@register("timestep_law", "logit_normal")
class LogitNormal(_Memoryless):
    """The sigmoid of a standard normal: most draws in the middle."""

    def draw(self, count: int) -> Tensor:
        return torch.sigmoid(torch.randn(count, dtype=torch.float32))


@register("timestep_law", "trunc_logit_normal")
class TruncatedLogitNormal(_Memoryless):
    """One minus a logit-normal that is cut below at `left_trunc` and stretched to [0, 1]."""

    def __init__(self, left_trunc: Annotated[float, Field(gt=0, lt=1, description="lower cut")] = 0.075) -> None:
        self.left_trunc = left_trunc

    def draw(self, count: int) -> Tensor:
        return 1 - truncated_logistic_normal_rescaled(count, self.left_trunc)


@register("timestep_law", "log_snr")
class LogSNR(_Memoryless):
    """Normal in log-SNR, where log-SNR = log((1 - t) / t)."""

    def __init__(
        self,
        mean_logsnr: Annotated[float, Field(description="mean of the log-SNR")] = -1.2,
        std_logsnr: Annotated[float, Field(gt=0, description="standard deviation of the log-SNR")] = 2.0,
    ) -> None:
        self.mean_logsnr, self.std_logsnr = mean_logsnr, std_logsnr

    def draw(self, count: int) -> Tensor:
        return sample_timesteps_logsnr(count, self.mean_logsnr, self.std_logsnr)


@register("timestep_law", "log_snr_uniform")
class UniformLogSNR(_Memoryless):
    """Uniform in log-SNR, where log-SNR = log((1 - t) / t)."""

    def __init__(
        self,
        min_logsnr: Annotated[float, Field(description="lowest log-SNR, near noise")] = -6.0,
        max_logsnr: Annotated[float, Field(description="highest log-SNR, near data")] = 5.0,
    ) -> None:
        if max_logsnr <= min_logsnr:
            raise ValueError(f"max_logsnr is {max_logsnr:g}; it must be above min_logsnr, {min_logsnr:g}")
        self.min_logsnr, self.max_logsnr = min_logsnr, max_logsnr

    def draw(self, count: int) -> Tensor:
        return sample_timesteps_logsnr_uniform(count, self.min_logsnr, self.max_logsnr)


def build_congruent_sampler(
    step_counts: Sequence[int], device_fn: Callable[[], torch.device | str]
) -> Callable[[int], Tensor]:
    """Times of few-step sampling: a number of steps drawn from these, then one of its equally spaced times.

    The counts divide the largest one, so that all times lie on its grid.
    """
    most = max(step_counts)
    uneven = [count for count in step_counts if count < 1 or most % count]
    if uneven:
        raise ValueError(f"step_counts must divide the largest, {most}; {uneven[0]} does not")
    counts = torch.tensor(sorted(step_counts))
    grid = torch.linspace(1, 0, most + 1)[:-1]

    def draw(batch_size: int) -> Tensor:
        device = device_fn()
        each = torch.full((len(counts),), 1 / len(counts), device=device).expand(batch_size, -1)
        chosen = counts.to(device)[torch.multinomial(each, 1).squeeze(1)]
        position = (torch.rand(batch_size, device=device) * chosen).long()
        return grid.to(device)[position * (most // chosen)]

    return draw
