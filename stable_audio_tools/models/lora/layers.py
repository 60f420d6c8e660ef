"""Adapted layers: a base layer whose class has another forward pass, and the factors that it reads.

The base layer keeps its own parameters under its own names, so base checkpoints load and save as without adapters; the
factors are submodules, so moves, casts, copies and averages reach them, but its state dict omits them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.lora.base import dense_weight, is_quantized
from stable_audio_tools.models.lora.factors import LoraFactors
from stable_audio_tools.models.lora.formula import enlarged


class AdaptedLayer(nn.Module):
    """Mixin before the class of a base layer: y = W x + sum of strength (W' - W) x + b."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    lora_factors: nn.ModuleDict
    kept_weights: dict[str, Tensor] | None  # of the base, on the CPU, while adapters are merged into it

    def factors(self) -> Iterator[LoraFactors]:
        """Yield the factors of every adapter of this layer."""
        for factors in self.lora_factors.values():
            assert isinstance(factors, LoraFactors)
            yield factors

    def base_weight(self) -> Tensor:
        """Return W as a matrix (rows, cols)."""
        return dense_weight(self)

    def _made_of(self) -> tuple[Any, ...] | None:
        """Return the memory and version of the base weight's parameters; None while a compiler runs."""
        if torch.compiler.is_compiling():
            return None
        own = self.named_parameters(recurse=False)
        return tuple((p.data_ptr(), p.dtype, _version(p)) for name, p in own if name != "bias")

    def adapted_weight(self) -> Tensor:
        """W + sum of strength (W' - W), (rows, cols), in the precision of the factors."""
        weight, made = self.base_weight(), None
        for factors in self.factors():
            if factors.strength:
                change = factors.strength * factors.change(weight)
                made = change if made is None else made + change
        return weight if made is None else weight.to(made.dtype) + made

    def forward(self, x: Tensor) -> Tensor:
        active = [factors for factors in self.factors() if factors.strength and not factors.skipped()]
        if not active or self.kept_weights is not None:
            return self._base(x)
        return self._adapted(x, active)

    def _base(self, x: Tensor) -> Tensor:
        """W x + b"""
        out: Tensor = super().forward(x)
        return out

    def _adapted(self, x: Tensor, active: list[LoraFactors]) -> Tensor:
        """Each adapter adds strength (rows (W + s B A) cols - W) x: products with W first, low-rank ones on top."""
        dense = [factors.strength * factors.dense_change() for factors in active if not factors.is_pair]
        active = [factors for factors in active if factors.is_pair]
        out = self._adapted_by_pairs(x, active) if active else self._base(x)
        return out + self._apply_change(x, sum(dense[1:], dense[0])).to(out.dtype) if dense else out

    def _adapted_by_pairs(self, x: Tensor, active: list[LoraFactors]) -> Tensor:
        weight = self.base_weight() if any(factors.has_gains for factors in active) else None
        share, on_rows = 1.0, None  # of W x itself: a number, and a vector on top
        products: list[tuple[Tensor, float, Tensor | None]] = []
        low_rank = []
        for factors in active:
            strength, (rows, cols) = factors.strength, factors.gains(weight, self._made_of())
            source = x if cols is None else self._scale_inputs(x, cols - 1)
            low_rank.append((source, factors, strength, rows))
            if cols is not None:
                share -= strength
                products.append((source, strength, None if rows is None else strength * (rows - 1)))
            elif rows is not None:
                more = strength * (rows - 1)
                on_rows = more if on_rows is None else on_rows + more
        if share != 0.0 or on_rows is not None or not products:
            products.insert(0, (x, share, on_rows))
        out = self._sum(products)
        for term in low_rank:
            out = self._add_low_rank(out, *term)
        change = self.bias_change(active)
        return out if change is None else out + self._as_rows(change, out)

    def bias_change(self, active: Sequence[LoraFactors]) -> Tensor | None:
        """Return the sum of strength (b' - b); None where no adapter scales the bias."""
        bias, total = self._parameters.get("bias"), None
        scaling = [factors for factors in active if factors.control.config.scale_bias and factors.strength]
        if bias is None or not scaling:
            return None
        weight = self.base_weight()
        for factors in scaling:
            rows = factors.gains(weight, self._made_of()).rows
            assert rows is not None
            change = factors.strength * (rows - 1) * bias
            total = change if total is None else total + change
        return total

    def _sum(self, products: list[tuple[Tensor, float, Tensor | None]]) -> Tensor:
        """Sum of (number + row vector) W x, plus b."""
        if len(products) == 1 and products[0][1] == 1.0 and products[0][2] is None:
            return self._base(products[0][0])
        total: Tensor | None = None
        for source, share, on_rows in products:
            out = self._product(source)
            if share == 1.0 and on_rows is not None:
                out = enlarged(out, self._as_rows(on_rows, out))
            elif on_rows is not None:
                out = out * self._as_rows(share + on_rows, out)
            elif share != 1.0:
                out = out * share
            total = out if total is None else total + out
        assert total is not None
        return total if self.bias is None else total + self._as_rows(self.bias, total)

    def _product(self, x: Tensor) -> Tensor:
        """W x"""
        raise NotImplementedError

    def _apply_change(self, x: Tensor, change: Tensor) -> Tensor:
        """change (rows, cols) x"""
        raise NotImplementedError

    def _scale_inputs(self, x: Tensor, more: Tensor) -> Tensor:
        """(1 + more) x"""
        raise NotImplementedError

    def _as_rows(self, values: Tensor, like: Tensor) -> Tensor:
        """(rows,) so that it spreads over an output."""
        raise NotImplementedError

    def _add_low_rank(
        self, out: Tensor, x: Tensor, factors: LoraFactors, strength: float, rows: Tensor | None
    ) -> Tensor:
        """out + strength rows s B A x"""
        raise NotImplementedError


class AdaptedLinear(AdaptedLayer):
    """x (..., cols) -> (..., rows)"""

    def _adapted(self, x: Tensor, active: list[LoraFactors]) -> Tensor:
        # With two axes throughout: autograd would copy the gradient of what is added to through a view.
        out = super()._adapted(x.reshape(-1, x.shape[-1]), active)
        return out.view(*x.shape[:-1], out.shape[-1])

    def _product(self, x: Tensor) -> Tensor:
        if is_quantized(self):
            out = self._base(x)
            return out if self.bias is None else out - self.bias
        return F.linear(x, self.weight)

    def _apply_change(self, x: Tensor, change: Tensor) -> Tensor:
        return F.linear(x, change.to(x.dtype))

    def _scale_inputs(self, x: Tensor, more: Tensor) -> Tensor:
        return enlarged(x, more.to(x.dtype))

    def _as_rows(self, values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.dtype)

    def _add_low_rank(
        self, out: Tensor, x: Tensor, factors: LoraFactors, strength: float, rows: Tensor | None
    ) -> Tensor:
        hidden = factors.drop(F.linear(x, factors.pair_as(x.dtype)[1])) * (strength * factors.scale)
        up = factors.pair_as(out.dtype)[0] if rows is None else (factors.pair()[0] * rows[:, None]).to(out.dtype)
        # In place: nothing keeps the output of a product for its gradient.
        return out.addmm_(hidden.to(out.dtype), up.T)


class AdaptedConv1d(AdaptedLayer):
    """x (b, c, n) -> (b, rows, n); columns are the flattened kernel."""

    kernel_size: tuple[int, ...]
    groups: int
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def _adapted(self, x: Tensor, active: list[LoraFactors]) -> Tensor:
        scales_taps = self.kernel_size != (1,) and any(factors.control.config.form.cols for factors in active)
        if self.groups == 1 and not scales_taps:
            return super()._adapted(x, active)
        matrix = self.base_weight()
        changes = [factors.strength * factors.change(matrix, drop=True) for factors in active]
        change = torch.stack(changes).sum(0).view(self.weight.shape)
        more = self.bias_change(active)
        bias = self.bias if more is None or self.bias is None else self.bias + more.to(self.bias.dtype)
        return self._conv_forward(x, self.weight + change.to(self.weight.dtype), bias)

    def _product(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, None)

    def _apply_change(self, x: Tensor, change: Tensor) -> Tensor:
        return self._conv_forward(x, change.view(self.weight.shape).to(x.dtype), None)

    def _scale_inputs(self, x: Tensor, more: Tensor) -> Tensor:
        return enlarged(x, more.to(x.dtype)[:, None])

    def _as_rows(self, values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.dtype)[:, None]

    def _add_low_rank(
        self, out: Tensor, x: Tensor, factors: LoraFactors, strength: float, rows: Tensor | None
    ) -> Tensor:
        down = factors.pair_as(x.dtype)[1]
        kernel = down.view(len(down), *self.weight.shape[1:])
        hidden = factors.drop(self._conv_forward(x, kernel, None)) * (strength * factors.scale)
        up = factors.pair_as(out.dtype)[0] if rows is None else (factors.pair()[0] * rows[:, None]).to(out.dtype)
        return out + torch.matmul(up, hidden.to(out.dtype))


class AdaptedEmbedding(AdaptedLayer):
    """indices (...) -> (..., cols): rows of W'."""

    def _adapted(self, x: Tensor, active: list[LoraFactors]) -> Tensor:
        out = base = self._base(x)
        weight = self.base_weight()
        for factors in active:
            if not factors.is_pair:
                out = out + (factors.strength * F.embedding(x, factors.dense_change())).to(out.dtype)
                continue
            up, down = factors.pair()
            rows, cols = factors.gains(weight, self._made_of())
            changed = base + factors.drop(F.embedding(x, up)) @ down * factors.scale
            if rows is not None:
                changed = changed * F.embedding(x, rows[:, None])
            if cols is not None:
                changed = changed * cols
            out = out + (factors.strength * (changed - base)).to(out.dtype)
        return out


def _version(parameter: Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version


_MIXINS: dict[type[nn.Module], type[AdaptedLayer]] = {
    nn.Linear: AdaptedLinear,
    nn.Conv1d: AdaptedConv1d,
    nn.Embedding: AdaptedEmbedding,
}


@cache
def _adapted_class(base: type[nn.Module]) -> type[AdaptedLayer]:
    mixin = next(mixin for kind, mixin in _MIXINS.items() if issubclass(base, kind))
    return type(f"Adapted{base.__name__}", (mixin, base), {"__module__": __name__})


def adapt_layer(layer: nn.Module, factors: LoraFactors) -> AdaptedLayer:
    """Attach factors to a layer."""
    if not isinstance(layer, AdaptedLayer):
        kind: Any = type(layer)
        layer.__class__ = _adapted_class(kind)
        assert isinstance(layer, AdaptedLayer)
        layer.lora_factors = nn.ModuleDict()
        layer.kept_weights = None
    layer.lora_factors[factors.control.name] = factors
    factors.train(layer.training)
    return layer


def release_layer(layer: AdaptedLayer, name: str) -> None:
    """Remove one adapter; without adapters the layer has its original class again."""
    del layer.lora_factors[name]
    if not layer.lora_factors:
        del layer.lora_factors, layer.kept_weights
        layer.__class__ = type(layer).__bases__[1]
