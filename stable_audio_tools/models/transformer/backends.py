"""The kernels that compute attention. They differ in speed only: what one cannot compute as asked, it leaves to SDPA.

Time and memory of a window grow with the length and not with its square, whatever the kernel.

A query at position i sees the keys at i - before .. i + after. The last query is at the last key, unless it is said
where the first one stands.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    """The number of positions that a query sees before and after its own; None means no limit."""

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
        """Return True if this kernel computes the call exactly."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach, mask: Tensor | None) -> Tensor: ...


class ScaledDotProduct:
    """PyTorch's own kernels: every device, dtype and mask."""

    name = "SDPA"
    smallest_block = 128
    in_one_call = ("cuda",)  # devices on which all blocks of a window are one call; a CPU is faster block by block

    def fits(self, q: Tensor, k: Tensor, reach: Reach, mask: Tensor | None) -> bool:
        return True

    def attend(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach, mask: Tensor | None) -> Tensor:
        shift = reach.shift(q, k)
        if reach.before is not None and reach.after is not None:
            block = max(self.smallest_block, reach.before + reach.after)
            if q.shape[-2] > 2 * block:
                if mask is None and q.device.type in self.in_one_call:
                    return self._attend_to_stretches(q, k, v, reach, shift, block)
                return self._attend_in_blocks(q, k, v, reach, mask, block)
        if reach.before is None and reach.after == 0 and shift == 0 and mask is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._attend_masked(q, k, v, reach, mask, shift)

    @staticmethod
    def _attend_to_stretches(q: Tensor, k: Tensor, v: Tensor, reach: Reach, shift: int, block: int) -> Tensor:
        """A window in linear time, all blocks of queries in one call.

        Each block meets the stretch of keys that it can reach. Stretches overlap, and are views of one padded tensor.
        """
        batch, heads, queries, width = q.shape
        blocks, seen = _stretches(queries, k.shape[-2], shift, reach, block, q.device)
        stretch = seen.shape[-1]
        assert reach.before is not None
        first = shift - reach.before  # the key, perhaps before the first one, where the first stretch begins
        last = first + (blocks - 1) * block + stretch

        def by_block(x: Tensor) -> Tensor:
            padded = F.pad(x, (0, 0, -first, last - x.shape[-2]))  # what is negative cuts
            return padded.flatten(0, 1).unfold(1, stretch, block).transpose(-1, -2)

        filled = F.pad(q, (0, 0, 0, blocks * block - queries)).reshape(batch * heads, blocks, block, width)
        out = F.scaled_dot_product_attention(filled, by_block(k), by_block(v), attn_mask=seen)
        return out.reshape(batch, heads, blocks * block, v.shape[-1])[..., :queries, :]

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
    """(queries, keys), True where a query sees a key. Cached for training too, so outside of inference mode."""
    with torch.inference_mode(False):
        distance = torch.arange(keys, device=device) - (torch.arange(queries, device=device) + shift)[:, None]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if reach.before is not None:
            seen &= distance >= -reach.before
        if reach.after is not None:
            seen &= distance <= reach.after
        return seen


@lru_cache(maxsize=16)
def _stretches(
    queries: int, keys: int, shift: int, reach: Reach, block: int, device: torch.device
) -> tuple[int, Tensor]:
    """Number of blocks of queries, and (blocks, block, stretch), True where a query sees a key of its stretch.

    The mask grows with the number of queries and not with its square. A stretch is a multiple of 16, as fast kernels
    want. Queries that only fill the last block see one key, since a softmax over nothing is not a number.
    """
    assert reach.before is not None and reach.after is not None
    with torch.inference_mode(False):
        blocks = math.ceil(queries / block)
        stretch = math.ceil((block + reach.before + reach.after) / 16) * 16
        rows = torch.arange(block, device=device)[:, None]
        columns = torch.arange(stretch, device=device)
        within = (columns >= rows) & (columns <= rows + reach.before + reach.after)
        first = shift - reach.before + block * torch.arange(blocks, device=device)[:, None, None]
        real = (first + columns >= 0) & (first + columns < keys)
        is_filling = (block * torch.arange(blocks, device=device)[:, None, None] + rows) >= queries
        return blocks, (within & real) | (is_filling & (columns == 0))


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
    """PyTorch's compiled FlexAttention, on request: windows on CUDA in any precision, skipping what no query reaches.

    Each length is compiled for itself. Past `most_lengths` of them, or where a call does not compile, windows go to
    SDPA, and a warning says so: run as it is, FlexAttention computes the scores of all pairs.
    """

    name = "FlexAttention"
    shortest = 2048  # below, compiling costs more than it saves
    most_lengths = 64

    def __init__(self, function: Callable[..., Any], devices: tuple[str, ...] = ("cuda",)) -> None:
        self.function = function
        self.devices = devices
        self._fallback: ScaledDotProduct | None = None

    def fits(self, q: Tensor, k: Tensor, reach: Reach, mask: Tensor | None) -> bool:
        power_of_two = math.log2(q.shape[-1]).is_integer() and q.shape[-1] >= 16
        windowed = reach.before is not None and reach.first is None and q.shape[-2] >= self.shortest
        return q.device.type in self.devices and windowed and mask is None and power_of_two

    def attend(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach, mask: Tensor | None) -> Tensor:
        if self._fallback is not None:
            return self._fallback.attend(q, k, v, reach, mask)
        from torch._dynamo import exc  # PyTorch loads this slow part when something is compiled

        blocks = flex_blocks(q.shape[-2], k.shape[-2], reach, q.device)
        try:
            with _many_lengths(self.most_lengths):
                out: Tensor = self.function(q, k, v, block_mask=blocks)
                return out
        except (exc.TorchDynamoException, exc.FailOnRecompileLimitHit) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warning("attention: FlexAttention cannot compile windows (%s); SDPA takes its place", reason)
            self._fallback = ScaledDotProduct()
            return self._fallback.attend(q, k, v, reach, mask)


@contextmanager
def _many_lengths(count: int) -> Iterator[None]:
    """Allow `count` compilations of a function; more raise instead of running it uncompiled."""
    from torch._dynamo import config

    with config.patch(recompile_limit=count, fail_on_recompile_limit_hit=True, suppress_errors=False):
        yield


@lru_cache(maxsize=16)
def flex_blocks(queries: int, keys: int, reach: Reach, device: torch.device, block: int = 128) -> Any:
    """FlexAttention's `BlockMask` of a window, computed by block: no table of all pairs of positions is built."""
    from torch.nn.attention.flex_attention import BlockMask

    before = keys if reach.before is None else reach.before
    after = keys if reach.after is None else reach.after
    shift = keys - queries

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = key - (query + shift)
        return (distance >= -before) & (distance <= after)

    with torch.inference_mode(False):
        first = shift + block * torch.arange(math.ceil(queries / block))[:, None]  # positions of each row of blocks
        last = torch.minimum(first + block - 1, torch.tensor(keys - 1))
        low = block * torch.arange(math.ceil(keys / block))  # keys of each column of blocks
        high = low + block - 1
        touched = (high >= first - before) & (low <= last + after)
        whole = (low >= last - before) & (high <= first + after) & (high < keys)
        partial, full = _ordered(touched & ~whole, device), _ordered(touched & whole, device)
        return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=block, mask_mod=seen, seq_lengths=(queries, keys))


def _ordered(chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """A table (rows, columns) as the number of chosen columns of each row, and all columns with those first."""
    order = chosen.int().argsort(dim=1, descending=True, stable=True)
    return chosen.sum(1)[None, None].int().to(device), order[None, None].int().to(device)


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
    """The choice of this process: a plain attribute, which compiled layers can read."""

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
    if choice == "auto" and torch.cuda.is_available() and available("flash_attn"):
        try:
            kernels.append(_flash_attention())
        except MissingPackage as error:
            logger.warning("%s; attention does without it", error)
    return kernels


def _flash_attention() -> Kernel:
    return FlashAttention(require("flash_attn").flash_attn_func)


def _flex_attention() -> Kernel:
    from torch.nn.attention.flex_attention import flex_attention

    return FlexAttention(torch.compile(flex_attention, dynamic=False))
