"""Random numbers by key and position, independent of batch, order, worker, process and device.

The value at position i is a hash of (key, i), so that any block can be computed anywhere. The hash is the finaliser of
SplitMix64 (Steele et al. 2014) in wrapping 64-bit integers. Noise comes from torch's generator on the CPU, seeded by
a key of (seed, timestep, sample).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

import torch
from torch import Tensor

from stable_audio_tools.data.draws import seeded

_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_UNIFORM_BITS = 24  # what a float32 holds exactly


def make_key(*parts: object) -> int:
    """Return 64 bits that change with any of the parts."""
    words = "\x1f".join(str(part) for part in parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(words, digest_size=8).digest(), "little")


def bits(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return the words at positions start, start + 1, ...: (count,) int64, uniform over all 64-bit words."""
    x = torch.arange(start, start + count, device=device, dtype=torch.int64) * _signed(_STEP) + _signed(key)
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


def signs(key: int, start: int, count: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (count,) values of -1 and 1."""
    return 1 - 2 * (bits(key, start, count, device) & 1).to(dtype)


def buckets(key: int, count: int, size: int, device: torch.device) -> Tensor:
    """Return (count,) numbers in [0, size), uniform to one part in 2^31 / size."""
    return (bits(key, 0, count, device) & 0x7FFFFFFF) % size


def many_signs(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return (count,) values of -1 and 1, sixty-four per word; `start` and `count` are multiples of 64."""
    words = bits(key, start // 64, count // 64, device)
    places = torch.arange(64, device=device)
    return 1 - 2 * ((words[:, None] >> places) & 1).flatten().to(torch.float32)


def normals(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return (count,) standard normal values, a pair per word (Box & Muller 1958); `start` and `count` are even."""
    words = bits(key, start // 2, count // 2, device)
    mask, unit = (1 << _UNIFORM_BITS) - 1, 2.0**-_UNIFORM_BITS
    first = ((words & mask) + 1).to(torch.float32) * unit  # (0, 1]
    second = (_shifted(words, 32) & mask).to(torch.float32) * unit
    radius, angle = (-2 * first.log()).sqrt(), second * (2 * torch.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1).flatten()


def _signed(word: int) -> int:
    """Return the same 64 bits as a signed number."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def _shifted(x: Tensor, places: int) -> Tensor:
    """Shift right and fill with zeros."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def keyed_noise(shape: Sequence[int], seed: int, steps: Sequence[int], sample: str) -> Tensor:
    """Draw standard normal noise (len(steps), *shape) on the CPU, once per timestep of this sample."""
    draws = [torch.randn(tuple(shape), generator=_generator("noise", seed, step, sample)) for step in steps]
    return torch.stack(draws)


def keyed_drops(probability: float, seed: int, steps: Sequence[int], sample: str) -> Tensor:
    """Draw the timesteps at which the conditions of this sample are dropped, (len(steps),) bool."""
    draws = [torch.rand((), generator=_generator("drop", seed, step, sample)) for step in steps]
    return torch.stack(draws) < probability


@contextmanager
def keyed_encoding(seed: int, sample: str, device: torch.device) -> Iterator[None]:
    """Seed all random draws inside the block, such as a variational encoder's, by a key of the sample."""
    key = make_key("encode", seed, sample) % 2**63
    devices = [device] if device.type == "cuda" else []
    with seeded(key), torch.random.fork_rng(devices=devices):
        if devices:
            torch.cuda.manual_seed(key)
        yield


def _generator(kind: str, seed: int, step: int, sample: str) -> torch.Generator:
    return torch.Generator().manual_seed(make_key(kind, seed, step, sample) % 2**63)
