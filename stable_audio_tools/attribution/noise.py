"""What is random in a feature, keyed by (seed, timestep, sample): never by batch, order, worker, process or device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from stable_audio_tools.attribution.counters import make_key
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.draws import seeded

TimestepStrategy = Literal["uniform", "cumulative"]


def select_timesteps(count: int, num_train_steps: int = 1000, strategy: str = "uniform") -> list[int]:
    """Steps out of `num_train_steps`: spread evenly from 0 on, or the first ones; time is step / num_train_steps."""
    if strategy not in get_args(TimestepStrategy):
        raise ConfigError(f"--t-strategy: expected {' or '.join(get_args(TimestepStrategy))}, got {strategy!r}")
    if not 1 <= count <= num_train_steps:
        raise ConfigError(f"--K: expected 1 to --num-train-steps ({num_train_steps}), got {count}")
    stride = num_train_steps // count if strategy == "uniform" else 1
    return list(range(0, num_train_steps, stride))[:count]


def keyed_noise(shape: Sequence[int], seed: int, steps: Sequence[int], sample: str) -> Tensor:
    """(len(steps), *shape) standard normal on the CPU, one draw for each timestep of this sample."""
    draws = [torch.randn(tuple(shape), generator=_generator("noise", seed, step, sample)) for step in steps]
    return torch.stack(draws)


def keyed_drops(probability: float, seed: int, steps: Sequence[int], sample: str) -> Tensor:
    """(len(steps),) bool: where the conditions of this sample are dropped."""
    draws = [torch.rand((), generator=_generator("drop", seed, step, sample)) for step in steps]
    return torch.stack(draws) < probability


@contextmanager
def keyed_encoding(seed: int, sample: str, device: torch.device) -> Iterator[None]:
    """Inside the block all that draws (a variational encoder) draws from a key of the sample."""
    key = make_key("encode", seed, sample) % 2**63
    devices = [device] if device.type == "cuda" else []
    with seeded(key), torch.random.fork_rng(devices=devices):
        if devices:
            torch.cuda.manual_seed(key)
        yield


def _generator(kind: str, seed: int, step: int, sample: str) -> torch.Generator:
    return torch.Generator().manual_seed(make_key(kind, seed, step, sample) % 2**63)
