"""Random projections P of gradients to a few thousand numbers that keep inner products: E (P g)(P h) = g h.

What belongs to a parameter depends on (seed, model id, its name) alone, and projections of parameters add up. No matrix
is ever held: a block of it is made from counters when it is needed. All are scaled so that E |P g|^2 = |g|^2 whatever
the dimension.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.attribution import keyed_random
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.packages import require

_BLOCK_ELEMENTS = 1 << 22  # of a dense matrix at once: 16 MiB, what fits near the processor
_ROWS_AT_ONCE = 256  # token rows that are transformed together


class Projection(ABC):
    """A linear map of named gradients."""

    is_dense = True  # made at a cost that several samples can share

    def __init__(self, dim: int, seed: int = 42, model_id: int = 0) -> None:
        if dim < 1:
            raise ConfigError(f"--proj-dim: expected at least 1, got {dim}")
        self.dim, self.seed, self.model_id = dim, seed, model_id

    @abstractmethod
    def project(self, name: str, gradients: Tensor) -> Tensor:
        """(b, *shape of the parameter) -> (b, dim); each row is computed as if it were alone."""

    def saves_gradient(self, outputs: int, inputs: int) -> bool:
        """Is it cheaper to project a linear layer's factors than to make its gradient first?"""
        return False

    def project_factors(self, name: str, delta: Tensor, activation: Tensor) -> Tensor:
        """delta (n, outputs), activation (n, inputs) -> (dim,), the projection of the sum of their outer products."""
        raise NotImplementedError

    def _key(self, *parts: object) -> int:
        return keyed_random.make_key(type(self).__name__, self.seed, self.model_id, *parts)


class DenseProjection(Projection):
    """A matrix of independent entries, made block by block: parameters x dim operations for each sample."""

    def project(self, name: str, gradients: Tensor) -> Tensor:
        flat = gradients.flatten(1)
        total = torch.zeros(len(flat), self.dim, dtype=flat.dtype, device=flat.device)
        rows, width = max(64, _BLOCK_ELEMENTS // self._width // 64 * 64), self._width
        for start in range(0, flat.shape[1], rows):
            stop = min(start + rows, flat.shape[1])
            count = -(-(stop - start) * width // 64) * 64
            block = self._entries(self._key(name), start * width, count, flat.device)[: (stop - start) * width]
            block = block.view(stop - start, width)[:, : self.dim].to(flat.dtype)
            for row in range(len(flat)):  # one by one, so that neighbours cannot change the rounding
                total[row] += flat[row, start:stop] @ block
        return total / math.sqrt(self.dim)

    @property
    def _width(self) -> int:
        """Entries of a row of the matrix: the dimension, up to whole words of random bits."""
        return -(-self.dim // 64) * 64

    @abstractmethod
    def _entries(self, key: int, start: int, count: int, device: torch.device) -> Tensor: ...


class NormalProjection(DenseProjection):
    """Standard normal entries, as the original D-TRAK has them."""

    def _entries(self, key: int, start: int, count: int, device: torch.device) -> Tensor:
        return keyed_random.normals(key, start, count, device)


class RademacherProjection(DenseProjection):
    """Entries of -1 and 1 (Achlioptas 2003): as good, and several times faster to make."""

    def _entries(self, key: int, start: int, count: int, device: torch.device) -> Tensor:
        return keyed_random.many_signs(key, start, count, device)


class SketchProjection(Projection):
    """TensorSketch (Pham & Pagh 2013): entry (i, j) of a weight's gradient goes, with a random sign, to one bucket.

    Bucket (h(i) + g(j)) mod dim, sign s(i) r(j). One operation for each parameter; and an outer product is the circular
    convolution of the sketches of its two factors, so that a linear layer's gradient need not be made at all.
    """

    is_dense = False

    def project(self, name: str, gradients: Tensor) -> Tensor:
        matrix = gradients.flatten(2) if gradients.ndim > 2 else gradients[..., None]  # (b, i, j)
        row_bucket, row_sign = self._hash(name, "row", matrix.shape[1], matrix)
        bucket, sign = self._hash(name, "column", matrix.shape[2], matrix)
        places = ((row_bucket[:, None] + bucket) % self.dim).flatten()
        total = torch.zeros(len(matrix), self.dim, dtype=matrix.dtype, device=matrix.device)
        for row in range(len(matrix)):
            total[row].index_add_(0, places, (matrix[row] * row_sign[:, None] * sign).flatten())
        return total

    def saves_gradient(self, outputs: int, inputs: int) -> bool:
        """Two transforms of length dim for each token, against 2 x outputs x inputs operations."""
        return outputs * inputs > 8 * self.dim * math.log2(max(2, self.dim))

    def project_factors(self, name: str, delta: Tensor, activation: Tensor) -> Tensor:
        spectrum = torch.zeros(self.dim // 2 + 1, dtype=delta.dtype.to_complex(), device=delta.device)
        for start in range(0, len(delta), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            left = torch.fft.rfft(self._sketch(name, "row", delta[rows]))
            right = torch.fft.rfft(self._sketch(name, "column", activation[rows]))
            spectrum += (left * right).sum(0)
        return torch.fft.irfft(spectrum, n=self.dim)

    def _sketch(self, name: str, side: str, vectors: Tensor) -> Tensor:
        """(n, width) -> (n, dim)"""
        bucket, sign = self._hash(name, side, vectors.shape[1], vectors)
        sketched = torch.zeros(len(vectors), self.dim, dtype=vectors.dtype, device=vectors.device)
        return sketched.index_add_(1, bucket, vectors * sign)

    def _hash(self, name: str, side: str, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        key = self._key(name, side)
        bucket = keyed_random.buckets(key, count, self.dim, like.device)
        return bucket, keyed_random.signs(keyed_random.make_key(key, "sign"), 0, count, like.device, like.dtype)


class FastJLProjection(Projection):
    """Normal entries by the CUDA kernels of the fast_jl package, with its own random numbers."""

    _BATCHES = (8, 16, 32)  # sizes that it has kernels for

    def __init__(self, dim: int, seed: int = 42, model_id: int = 0) -> None:
        super().__init__(dim, seed, model_id)
        if dim % 512:
            raise ConfigError(f"--proj-dim: the kernels of fast_jl need a multiple of 512, got {dim}")
        self.kernels = require("fast_jl")

    def project(self, name: str, gradients: Tensor) -> Tensor:
        if gradients.device.type != "cuda":
            raise ConfigError("--projection fast-jl runs on CUDA only; use sketch, rademacher or normal here")
        flat = gradients.flatten(1).float().contiguous()
        count = torch.cuda.get_device_properties(flat.device).multi_processor_count
        seed = self._key(name) % 2**31
        parts = [self._project_some(part, seed, count) for part in flat.split(self._BATCHES[-1])]
        return torch.cat(parts) / math.sqrt(self.dim)

    def _project_some(self, flat: Tensor, seed: int, multiprocessors: int) -> Tensor:
        size = next(size for size in self._BATCHES if size >= len(flat))
        padded = F.pad(flat, (0, 0, 0, size - len(flat)))
        kernel = getattr(self.kernels, f"project_normal_{size}")
        projected: Tensor = kernel(padded, self.dim, seed, multiprocessors)
        return projected[: len(flat)]


PROJECTIONS: dict[str, type[Projection]] = {
    "sketch": SketchProjection,
    "rademacher": RademacherProjection,
    "normal": NormalProjection,
    "fast-jl": FastJLProjection,
}


def make_projection(kind: str, dim: int, seed: int = 42, model_id: int = 0) -> Projection:
    """The projection of a name, as `--projection` takes it."""
    if kind not in PROJECTIONS:
        raise ConfigError(f"--projection: expected one of {', '.join(PROJECTIONS)}; got {kind!r}")
    return PROJECTIONS[kind](dim, seed, model_id)
