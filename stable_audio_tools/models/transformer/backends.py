"""The kernels that compute attention. They differ in speed only: what one cannot compute as asked, it leaves to SDPA.

A query at position i sees the keys at i - before .. i + after. The last query stands at the last key, unless it is said
where the first one stands.
"""

import logging
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.core.errors import MissingPackage
from stable_audio_tools.core.packages import available, require

logger = logging.getLogger(__name__)

BackendName = Literal["auto", "sdpa", "flash", "flex"]


class Reach(NamedTuple):
    """How many positions a query sees before and after its own; None is without limit."""

    before: int | None = None
    after: int | None = None
    first: int | None = None  # position of the first query

    @classmethod
    def of(cls, causal: bool, window: Sequence[int] | None, first: int | None = None) -> "Reach":
        """`window` is [before, after], where a negative number is without limit."""
        before, after = (None, None) if window is None else (None if side < 0 else side for side in window)
        return cls(before, 0 if causal else after, first)

    def shift(self, q: Tensor, k: Tensor) -> int:
        """The key position of the first query."""
        return k.shape[-2] - q.shape[-2] if self.first is None else self.first


WHOLE = Reach()


class Kernel(Protocol):
    """Attention of q, k, v (b, h, n, d); `mask` (b, keys) is True at keys that may be seen."""

    name: str

    def fits(self, q: Tensor, k: Tensor, reach: Reach, mask: Tensor | None) -> bool:
        """Whether this kernel computes the call exactly as asked."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach, mask: Tensor | None) -> Tensor: ...


class ScaledDotProduct:
    """PyTorch's own kernels: every device, dtype and mask."""

    name = "SDPA"
    smallest_block = 128

    def fits(self, q: Tensor, k: Tensor, reach: Reach, mask: Tensor | None) -> bool:
        return True

    def attend(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach, mask: Tensor | None) -> Tensor:
        shift = reach.shift(q, k)
        if reach.before is not None and reach.after is not None:
            block = max(self.smallest_block, reach.before + reach.after)
            if q.shape[-2] > 2 * block:
                return self._attend_in_blocks(q, k, v, reach, mask, block)
        if reach.before is None and reach.after == 0 and shift == 0 and mask is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._attend_masked(q, k, v, reach, mask, shift)

    def _attend_in_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, reach: Reach, mask: Tensor | None, block: int
    ) -> Tensor:
        """A window in linear time: each block of queries meets only the keys that it can reach."""
        assert reach.before is not None and reach.after is not None
        queries, keys, shift = q.shape[-2], k.shape[-2], reach.shift(q, k)
        parts = []
        for start in range(0, queries, block):
            end = min(start + block, queries)
            low = max(0, start + shift - reach.before)
            high = max(low, min(keys, end + shift + reach.after))
            seen = slice(low, high)
            part_mask = None if mask is None else mask[:, seen]
            parts.append(
                self._attend_masked(
                    q[..., start:end, :], k[..., seen, :], v[..., seen, :], reach, part_mask, start + shift - low
                )
            )
        return torch.cat(parts, dim=-2)

    @staticmethod
    def _attend_masked(q: Tensor, k: Tensor, v: Tensor, reach: Reach, mask: Tensor | None, shift: int) -> Tensor:
        """`shift` is the key position of the first query."""
        allowed = None if mask is None else mask[:, None, None, :]
        first_hides = reach.after is not None and shift + reach.after < k.shape[-2] - 1
        last_hides = reach.before is not None and shift + q.shape[-2] - 1 - reach.before > 0
        if first_hides or last_hides:
            band = _band(q.shape[-2], k.shape[-2], shift, reach, q.device)
            allowed = band if allowed is None else band & allowed
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


@lru_cache(maxsize=16)
def _band(queries: int, keys: int, shift: int, reach: Reach, device: torch.device) -> Tensor:
    """(queries, keys), True where a query sees a key. Cached, so made outside of inference mode, for training too."""
    with torch.inference_mode(False):
        distance = torch.arange(keys, device=device) - (torch.arange(queries, device=device) + shift)[:, None]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if reach.before is not None:
            seen &= distance >= -reach.before
        if reach.after is not None:
            seen &= distance <= reach.after
        return seen


class FlashAttention:
    """The flash-attn package: half precision on CUDA, without key masks."""

    name = "flash-attn"

    def __init__(self, function: Callable[..., Tensor], devices: tuple[str, ...] = ("cuda",)) -> None:
        self.function = function
        self.devices = devices

    def fits(self, q: Tensor, k: Tensor, reach: Reach, mask: Tensor | None) -> bool:
        half = q.dtype in (torch.float16, torch.bfloat16)
        fits = half and mask is None and reach.first is None and q.shape[-1] <= 256
        return fits and q.device.type in self.devices

    def attend(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach, mask: Tensor | None) -> Tensor:
        causal = reach.after == 0
        window = tuple(-1 if side is None else side for side in (reach.before, reach.after))
        heads_last = (tensor.transpose(1, 2) for tensor in (q, k, v))  # (b, n, h, d)
        return self.function(*heads_last, causal=causal, window_size=window).transpose(1, 2)


class FlexAttention:
    """PyTorch's compiled FlexAttention: long windows on CUDA in any precision, skipping what no query reaches."""

    name = "FlexAttention"
    shortest = 2048  # below, compiling costs more than it saves

    def __init__(self, function: Callable[..., Any], devices: tuple[str, ...] = ("cuda",)) -> None:
        self.function = function
        self.devices = devices

    def fits(self, q: Tensor, k: Tensor, reach: Reach, mask: Tensor | None) -> bool:
        power_of_two = math.log2(q.shape[-1]).is_integer() and q.shape[-1] >= 16
        windowed = reach.before is not None and reach.first is None and q.shape[-2] >= self.shortest
        return q.device.type in self.devices and windowed and mask is None and power_of_two

    def attend(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach, mask: Tensor | None) -> Tensor:
        blocks = _flex_blocks(q.shape[-2], k.shape[-2], reach, q.device)
        out: Tensor = self.function(q, k, v, block_mask=blocks)
        return out


@lru_cache(maxsize=16)
def _flex_blocks(queries: int, keys: int, reach: Reach, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    before = keys if reach.before is None else reach.before
    after = keys if reach.after is None else reach.after

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = key - (query + keys - queries)
        return (distance >= -before) & (distance <= after)

    with torch.inference_mode(False):
        return create_block_mask(seen, None, None, queries, keys, device=str(device))


class AttentionBackend:
    """The kernels of this machine, fastest first; each call goes to the first that computes it exactly."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self.kernels = (*kernels, ScaledDotProduct())

    def __str__(self) -> str:
        return ", else ".join(kernel.name for kernel in self.kernels)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, reach: Reach = WHOLE, mask: Tensor | None = None
    ) -> Tensor:  # (b, h, n, d)
        kernel = next(kernel for kernel in self.kernels if kernel.fits(q, k, reach, mask))
        return kernel.attend(q, k, v, reach, mask)


class _Process:
    """What this process chose: a plain attribute, which compiled layers can read."""

    choice: BackendName = "auto"
    backend: AttentionBackend | None = None


def use_attention_backend(name: BackendName) -> None:
    """Choose the kernel of this process; "auto" takes all that are installed. SDPA does what the chosen one cannot."""
    if name not in get_args(BackendName):
        raise ValueError(f"no attention backend named {name!r}; allowed: {', '.join(get_args(BackendName))}")
    _Process.choice, _Process.backend = name, None


def attention_backend() -> AttentionBackend:
    """The backend that every attention layer uses: chosen, and named in the log, once."""
    if _Process.backend is None:
        _Process.backend = AttentionBackend(_chosen_kernels(_Process.choice))
        logger.info("attention: %s", _Process.backend)
    return _Process.backend


def _chosen_kernels(choice: BackendName) -> list[Kernel]:
    if choice == "flash":
        return [_flash_attention()]
    if choice == "flex":
        return [_flex_attention()]
    kernels: list[Kernel] = []
    if choice == "auto" and torch.cuda.is_available():
        if available("flash_attn"):
            try:
                kernels.append(_flash_attention())
            except MissingPackage as error:
                logger.warning("%s; attention does without it", error)
        if available("triton"):
            kernels.append(_flex_attention())
    return kernels


def _flash_attention() -> Kernel:
    return FlashAttention(require("flash_attn").flash_attn_func)


def _flex_attention() -> Kernel:
    from torch.nn.attention.flex_attention import flex_attention

    return FlexAttention(torch.compile(flex_attention, dynamic=False))
