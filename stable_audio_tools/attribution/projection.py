"""Random projections P of gradients to a few thousand numbers that preserve inner products: E (P g)(P h) = g h.

The projection of a parameter depends only on (seed, model id, its name), and projections of parameters are summed. No
matrix is stored: blocks are computed from keyed random numbers when needed. All projections are scaled so that
E |P g|^2 = |g|^2 for any dimension.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.attribution import keyed_random
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.packages import require

_BLOCK_ELEMENTS = 1 << 22  # of a dense matrix at once: 16 MiB, to fit into caches
_ROWS_AT_ONCE = 256  # tokens that are transformed together


class Projection(ABC):
    """A linear map of named gradients."""

    is_dense = True  # several samples can share the cost of its matrix

    def __init__(self, dim: int, seed: int = 42, model_id: int = 0) -> None:
        if dim < 1:
            raise ConfigError(f"--proj-dim: expected at least 1, got {dim}")
        self.dim, self.seed, self.model_id = dim, seed, model_id

    @abstractmethod
    def project(self, name: str, gradients: Tensor) -> Tensor:
        """Project (b, *shape of the parameter) to (b, dim); a row does not depend on the others."""

    def saves_gradient(self, outputs: int, inputs: int) -> bool:
        """Return whether projecting the factors of a linear layer is cheaper than forming its gradient."""
        return False

    def project_factors(self, name: str, delta: Tensor, activation: Tensor) -> Tensor:
        """Project the sum of outer products of delta (n, outputs) and activation (n, inputs) to (dim,)."""
        raise NotImplementedError

    def _key(self, *parts: object) -> int:
        return keyed_random.make_key(type(self).__name__, self.seed, self.model_id, *parts)


class DenseProjection(Projection):
    """A matrix of independent entries, computed in blocks: parameters x dim operations per sample."""

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
        """Entries of a row of the matrix: the dimension, rounded up to whole words of random bits."""
        return -(-self.dim // 64) * 64

    @abstractmethod
    def _entries(self, key: int, start: int, count: int, device: torch.device) -> Tensor: ...


class NormalProjection(DenseProjection):
    """Standard normal entries, as in the original D-TRAK."""

    def _entries(self, key: int, start: int, count: int, device: torch.device) -> Tensor:
        return keyed_random.normals(key, start, count, device)


class RademacherProjection(DenseProjection):
    """Entries of -1 and 1 (Achlioptas 2003): equally accurate, and several times faster to compute."""

    def _entries(self, key: int, start: int, count: int, device: torch.device) -> Tensor:
        return keyed_random.many_signs(key, start, count, device)


class SketchProjection(Projection):
    """TensorSketch (Pham & Pagh 2013): entry (i, j) of a gradient is added, with a random sign, to one bucket.

    The bucket is (h(i) + g(j)) mod dim, the sign s(i) r(j). This takes one operation per parameter. The sketch of an
    outer product is the circular convolution of the sketches of its factors, so the gradient of a linear layer need not
    be formed.
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
        """Compare two transforms of length dim per token with 2 x outputs x inputs operations."""
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
        """Sketch vectors (n, width) to (n, dim)."""
        bucket, sign = self._hash(name, side, vectors.shape[1], vectors)
        sketched = torch.zeros(len(vectors), self.dim, dtype=vectors.dtype, device=vectors.device)
        return sketched.index_add_(1, bucket, vectors * sign)

    def _hash(self, name: str, side: str, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        key = self._key(name, side)
        bucket = keyed_random.buckets(key, count, self.dim, like.device)
        return bucket, keyed_random.signs(keyed_random.make_key(key, "sign"), 0, count, like.device, like.dtype)


class FastJLProjection(Projection):
    """Normal entries by the CUDA kernels of the fast_jl package, with its random numbers."""

    _BATCHES = (8, 16, 32)  # sizes with kernels

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
    """Build the projection for a value of `--projection`."""
    if kind not in PROJECTIONS:
        raise ConfigError(f"--projection: expected one of {', '.join(PROJECTIONS)}; got {kind!r}")
    return PROJECTIONS[kind](dim, seed, model_id)
