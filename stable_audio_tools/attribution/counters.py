"""Random numbers by position: the value at index i is a hash of (key, i), so any block can be made anywhere, any time.

The hash is the finaliser of SplitMix64 (Steele et al. 2014), in 64-bit integers that wrap: the same on every device.
"""

from hashlib import blake2b

import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_UNIFORM_BITS = 24  # what a float32 holds exactly


def make_key(*parts: object) -> int:
    """64 bits that change with any of the parts."""
    words = "\x1f".join(str(part) for part in parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(words, digest_size=8).digest(), "little")


def bits(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """(count,) int64, uniform over all 64-bit words: those at positions start, start + 1, ..."""
    x = torch.arange(start, start + count, device=device, dtype=torch.int64) * _signed(_STEP) + _signed(key)
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


def signs(key: int, start: int, count: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(count,) of -1 and 1."""
    return 1 - 2 * (bits(key, start, count, device) & 1).to(dtype)


def buckets(key: int, count: int, size: int, device: torch.device) -> Tensor:
    """(count,) numbers in [0, size); even to one part in 2^31 / size."""
    return (bits(key, 0, count, device) & 0x7FFFFFFF) % size


def many_signs(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """(count,) of -1 and 1, sixty-four from each word; `start` and `count` are multiples of 64."""
    words = bits(key, start // 64, count // 64, device)
    places = torch.arange(64, device=device)
    return 1 - 2 * ((words[:, None] >> places) & 1).flatten().to(torch.float32)


def normals(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """(count,) standard normal, a pair from each word (Box & Muller 1958); `start` and `count` are even."""
    words = bits(key, start // 2, count // 2, device)
    mask, unit = (1 << _UNIFORM_BITS) - 1, 2.0**-_UNIFORM_BITS
    first = ((words & mask) + 1).to(torch.float32) * unit  # (0, 1]
    second = (_shifted(words, 32) & mask).to(torch.float32) * unit
    radius, angle = (-2 * first.log()).sqrt(), second * (2 * torch.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1).flatten()


def _signed(word: int) -> int:
    """The same 64 bits as a signed number."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def _shifted(x: Tensor, places: int) -> Tensor:
    """Shifted right with zeros coming in."""
    return (x >> places) & ((1 << (64 - places)) - 1)
