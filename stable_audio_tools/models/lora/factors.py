"""The tensors of one adapter in one layer, and what all layers of an adapter share."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.lora.config import LoraConfig
from stable_audio_tools.models.lora.formula import (
    Gains,
    Magnitudes,
    adapted_weight,
    col_squares,
    gains,
    matrix_of,
    row_squares,
    singular_bases,
)

Result = TypeVar("Result")

FACTOR_NAMES = (
    "lora_A",
    "lora_B",
    "M_xs",
    "magnitude",
    "magnitude_r",
    "magnitude_c",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_w1",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
)
_OUTPUT_FACTORS = ("M_xs", "lora_B", "hada_w2_a", "lokr_w2", "lokr_w2_a")


def output_factor(names: Iterable[str]) -> str:
    """Return the factor in which the change of W is linear and which starts at zero: scales are folded into it."""
    return next(name for name in _OUTPUT_FACTORS if name in names)


def largest_divisor(size: int, limit: int | None) -> int:
    """Return the largest divisor of a size up to its square root, and up to a limit."""
    bound = min(math.isqrt(size), limit or size)
    return next(divisor for divisor in range(bound, 0, -1) if size % divisor == 0)


@dataclass
class AdapterControl:
    """The state shared by all layers of one adapter; a copied model gets its own."""

    name: str
    config: LoraConfig
    strength: float = 1.0
    enabled: bool = True
    interval: tuple[float, float] | None = None
    in_interval: bool = True  # set by the sampler, from the noise level of the step
    is_merged: bool = False
    layer_filter: tuple[str, ...] | None = None
    facts: dict[str, object] = field(default_factory=dict)  # of its file: trigger, step, base model
    fingerprint: tuple[Any, str] | None = None  # of the factors, and the state of them that it was computed from

    @property
    def effective_strength(self) -> float:
        return self.strength if self.enabled and self.in_interval else 0.0


class LoraFactors(nn.Module):
    """The trained tensors of one adapter in one layer. The handle saves them; the layer's state dict omits them."""

    lora_A: nn.Parameter  # (r, cols)
    lora_B: nn.Parameter  # (rows, r)
    M_xs: nn.Parameter  # (r, r)
    U: Tensor  # (rows, r)
    V: Tensor  # (cols, r)
    magnitude: nn.Parameter
    magnitude_r: nn.Parameter
    magnitude_c: nn.Parameter
    hada_w1_a: nn.Parameter  # (rows, r)
    hada_w1_b: nn.Parameter  # (r, cols)
    hada_w2_a: nn.Parameter  # (rows, r)
    hada_w2_b: nn.Parameter  # (r, cols)
    lokr_w1: nn.Parameter  # (rows / p, cols / q)
    lokr_w2: nn.Parameter  # (p, q), or the product of the next two
    lokr_w2_a: nn.Parameter  # (p, r)
    lokr_w2_b: nn.Parameter  # (r, q)

    def __init__(self, control: AdapterControl, weight: Tensor, rank: int, taps: int = 1) -> None:
        """`weight` is the base's (rows, cols); of its columns, `taps` neighbours belong to one input channel."""
        super().__init__()
        config, form = control.config, control.config.form
        self.control = control
        self.scale = config.scale(rank)
        self.is_pair = form.product == "matrix"  # one product of two thin matrices, applied one after the other
        self.rank = min(rank, *weight.shape)
        self.dropout, self.module_dropout = config.dropout, config.module_dropout
        self.selected = True  # by the layer filter
        rows, cols = weight.shape
        make: Any = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        if form.core:
            self.M_xs = nn.Parameter(torch.zeros(self.rank, self.rank, **make))
            left, right = singular_bases(weight, self.rank)
            self.register_buffer("U", left, persistent=False)
            self.register_buffer("V", right, persistent=False)
        elif form.product == "matrix":
            self.lora_A = nn.Parameter(torch.empty(self.rank, cols, **make))
            self.lora_B = nn.Parameter(torch.zeros(rows, self.rank, **make))
        elif form.product == "hadamard":
            for name, shape in (("w1_a", (rows, self.rank)), ("w1_b", (self.rank, cols))):
                setattr(self, f"hada_{name}", nn.Parameter(torch.empty(shape, **make)))
                setattr(self, f"hada_{name.replace('1', '2')}", nn.Parameter(torch.zeros(shape, **make)))
        else:
            first = largest_divisor(rows, config.lokr_factor), largest_divisor(cols // taps, config.lokr_factor)
            p, q = rows // first[0], cols // first[1]
            self.lokr_w1 = nn.Parameter(torch.empty(first, **make))
            if 2 * self.rank < max(p, q // taps):
                self.lokr_w2_a = nn.Parameter(torch.zeros(p, self.rank, **make))
                self.lokr_w2_b = nn.Parameter(torch.empty(self.rank, q, **make))
            else:
                self.lokr_w2 = nn.Parameter(torch.zeros(p, q, **make))
        both = form.rows and form.cols
        if form.rows:
            setattr(self, "magnitude_r" if both else "magnitude", nn.Parameter(row_squares(weight).sqrt()))
        if form.cols:
            setattr(self, "magnitude_c" if both else "magnitude", nn.Parameter(col_squares(weight).sqrt()))
        self._squares: tuple[Any, tuple[Tensor, Tensor]] | None = None
        self._kept: dict[str, tuple[Any, Any]] = {}  # results of frozen factors, with what they were computed from

    @property
    def strength(self) -> float:
        return self.control.effective_strength if self.selected else 0.0

    @property
    def magnitudes(self) -> Magnitudes:
        form = self.control.config.form
        if form.rows and form.cols:
            return Magnitudes(self.magnitude_r, self.magnitude_c)
        return Magnitudes(self.magnitude if form.rows else None, self.magnitude if form.cols else None)

    def pair(self) -> tuple[Tensor, Tensor]:
        """B (rows, r), A (r, cols)"""
        if self.control.config.form.core:
            return self.U, self.M_xs @ self.V.T
        return self.lora_B, self.lora_A

    def dense_change(self, drop: bool = True) -> Tensor:
        """Return W' - W of Hadamard and Kronecker factors, (rows, cols)."""
        tensors: dict[str, Tensor] = {**self.tensors()}
        inner = next(name for name in ("hada_w1_b", "lokr_w2_b", "lokr_w2") if name in tensors)
        with torch.autocast(tensors[inner].device.type, enabled=False):
            if drop and self.dropout:
                tensors[inner] = tensors[inner] * self.drop(tensors[inner].new_ones(len(tensors[inner]), 1))
            return self.scale * matrix_of(tensors)

    def pair_as(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return `pair` in the precision of a pass; converted once while nothing trains."""

        def convert() -> tuple[Tensor, Tensor]:
            up, down = self.pair()
            return up.to(dtype), down.to(dtype)

        return self._while_frozen("pair", dtype, convert)

    @property
    def has_gains(self) -> bool:
        form = self.control.config.form
        return form.rows or form.cols

    def gains(self, weight: Tensor | None, made_of: Any) -> Gains:
        """Return the gains for a base weight (rows, cols); `made_of` changes when the weight does.

        Computed once while nothing trains.
        """
        if weight is None or not self.has_gains:
            return Gains(None, None)

        def compute() -> Gains:
            with torch.autocast(weight.device.type, enabled=False):
                up, down = self.pair()
                return gains(weight, up, down, self.scale, self.magnitudes, self._squares_of(weight, made_of))

        return compute() if made_of is None else self._while_frozen("gains", made_of, compute)

    def change(self, weight: Tensor, drop: bool = False) -> Tensor:
        """W' - W, (rows, cols)"""
        if not self.is_pair:
            return self.dense_change(drop)
        with torch.autocast(weight.device.type, enabled=False):
            up, down = self.pair()
            if drop and self.dropout:
                down = down * self.drop(down.new_ones(len(down), 1))
            wide = weight.to(up.dtype)
            return adapted_weight(wide, up, down, self.scale, self.magnitudes) - wide

    def drop(self, hidden: Tensor) -> Tensor:
        """Apply dropout to the rank's units."""
        return F.dropout(hidden, self.dropout, self.training) if self.dropout else hidden

    def skipped(self) -> bool:
        """Draw whether this pass omits the adapter, from torch's generator, which checkpointing and resume keep."""
        return self.training and self.module_dropout > 0 and bool(torch.rand(()) < self.module_dropout)

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the tensors of the file format, by name."""
        return dict(self.named_parameters(recurse=False))

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a file, with their rank."""
        for name in set(self.tensors()) - set(tensors):
            delattr(self, name)
        for name, tensor in tensors.items():
            held = self.tensors().get(name)
            if held is None:
                like = next(self.parameters())
                held = nn.Parameter(like.new_empty(tensor.shape))
                setattr(self, name, held)
            elif held.shape != tensor.shape:
                held.data = held.new_empty(tensor.shape)
            held.copy_(tensor)
            if name in ("lora_A", "M_xs", "hada_w1_b", "lokr_w2_b"):
                self.rank = len(tensor)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        return {} if destination is None else destination

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _while_frozen(self, name: str, made_of: Any, compute: Callable[[], Result]) -> Result:
        """Return the result of `compute`, cached until the factors or `made_of` change; never with gradients."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        own = tuple((p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in self.parameters())
        state = (made_of, own)
        kept = self._kept.get(name)
        if kept is None or kept[0] != state:
            kept = self._kept[name] = (state, compute())
        result: Result = kept[1]
        return result

    def _squares_of(self, weight: Tensor, made_of: Any) -> tuple[Tensor, Tensor]:
        """Kept until the base weight changes."""
        if made_of is None:
            return row_squares(weight), col_squares(weight)
        if self._squares is None or self._squares[0] != made_of:
            with torch.no_grad():
                self._squares = (made_of, (row_squares(weight), col_squares(weight)))
        return self._squares[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_squares": None, "_kept": {}}
