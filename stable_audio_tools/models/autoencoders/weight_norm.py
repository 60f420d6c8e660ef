"""Weight-normalised convolutions: w = g * v / |v|, the norm taken over all axes but the first (Salimans & Kingma 2016).

Files hold `weight_g` and `weight_v`, the names of every published checkpoint. The product is computed in each forward
pass; `fold_weight_norm` keeps it between passes at inference without touching parameters or state dict, and
`remove_weight_norm_from_model` replaces the pair permanently by one plain `weight`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm as HookedWeightNorm

from stable_audio_tools.models.autoencoders.layers import Conv1d, ConvTranspose1d
from stable_audio_tools.models.precision import autocast_dtype

M = TypeVar("M", bound=nn.Module)
W = TypeVar("W", bound="WeightNormed")

_OTHER_NAMES = (("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v"))


class _Folded(NamedTuple):
    """A product, and the state of the two parameters that it was computed from."""

    weight: Tensor
    sources: tuple[Tensor, int, Tensor, int]
    dtype: torch.dtype

    def is_current(self, sources: tuple[Tensor, int, Tensor, int], dtype: torch.dtype) -> bool:
        g, g_version, v, v_version = self.sources
        same = g is sources[0] and v is sources[2] and (g_version, v_version) == (sources[1], sources[3])
        return same and self.dtype == dtype


class WeightNormed(nn.Module):
    """Mixin before a convolution class: splits its weight into gain and direction."""

    weight_g: nn.Parameter
    weight_v: nn.Parameter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._keeps_product = False
        self._folded: _Folded | None = None
        super().__init__(*args, **kwargs)
        direction = self._parameters.pop("weight")
        assert direction is not None
        self.weight_g = nn.Parameter(torch.norm_except_dim(direction.detach(), 2, 0))
        self.weight_v = direction

    @property
    def is_weight_normed(self) -> bool:
        return "weight_g" in self._parameters

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "weight_g" in self.__dict__.get("_parameters", ()):
            return self._normed_weight()
        return super().__getattr__(name)

    def _normed_weight(self) -> Tensor:
        if not self._keeps_product or self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return torch._weight_norm(self.weight_v, self.weight_g, 0)
        sources = (self.weight_g, _version(self.weight_g), self.weight_v, _version(self.weight_v))
        dtype = autocast_dtype(self.weight_v)  # autocast itself would convert the product in every pass
        if self._folded is None or not self._folded.is_current(sources, dtype):
            product = torch._weight_norm(self.weight_v, self.weight_g, 0)
            self._folded = _Folded(product.to(dtype), sources, dtype)
        return self._folded.weight

    def fold_weight_norm(self, keep: bool = True) -> None:
        """Keep the product between passes, or stop keeping it."""
        self._keeps_product = keep
        self._folded = None

    def remove_weight_norm(self) -> None:
        """Replace gain and direction by their product."""
        if not self.is_weight_normed:
            return
        with torch.no_grad():
            weight = torch._weight_norm(self.weight_v, self.weight_g, 0)
        trains = self.weight_v.requires_grad
        del self.weight_g, self.weight_v
        self._folded = None
        self.register_parameter("weight", nn.Parameter(weight, requires_grad=trains))

    def train(self: W, mode: bool = True) -> W:
        self._folded = None
        return super().train(mode)

    def _apply(self: W, *args: Any, **kwargs: Any) -> W:
        self._folded = None  # moves and casts swap the data below the parameters
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.is_weight_normed:
            _rename_to_gain_and_direction(state_dict, prefix)
        self._folded = None
        super()._load_from_state_dict(state_dict, prefix, *args)


def _version(parameter: Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version


def _rename_to_gain_and_direction(state_dict: dict[str, Any], prefix: str) -> None:
    """Accept the names of torch's newer parametrisation, and weights whose norm was removed before saving."""
    for other, name in _OTHER_NAMES:
        if prefix + other in state_dict:
            state_dict[f"{prefix}{name}"] = state_dict.pop(prefix + other)
    if f"{prefix}weight" in state_dict and f"{prefix}weight_v" not in state_dict:
        weight = state_dict.pop(f"{prefix}weight")
        state_dict[f"{prefix}weight_v"] = weight
        state_dict[f"{prefix}weight_g"] = torch.norm_except_dim(weight, 2, 0)


class WNConv1d(WeightNormed, Conv1d):
    """Weight-normalised `nn.Conv1d`."""


class WNConv2d(WeightNormed, nn.Conv2d):
    """Weight-normalised `nn.Conv2d`."""


class WNConvTranspose1d(WeightNormed, ConvTranspose1d):
    """Weight-normalised `nn.ConvTranspose1d`; its first axis is the input channels."""


def _normed_layers(model: nn.Module) -> Iterator[WeightNormed]:
    for module in model.modules():
        if isinstance(module, WeightNormed) and module.is_weight_normed:
            yield module


def fold_weight_norm(model: M) -> M:
    """Compute each weight once and reuse it in eval mode without gradients, until the parameters change.

    Parameters and state dict do not change. A change through `parameter.data` is not noticed while folded.
    """
    for layer in _normed_layers(model):
        layer.fold_weight_norm()
    return model


def unfold_weight_norm(model: M) -> M:
    """Undo `fold_weight_norm`, and free the kept weights."""
    for layer in _normed_layers(model):
        layer.fold_weight_norm(False)
    return model


@contextmanager
def folded_weight_norm(model: nn.Module) -> Iterator[None]:
    """Fold weight norm inside a `with` block; layers that were already folded stay folded."""
    layers = [layer for layer in _normed_layers(model) if not layer._keeps_product]
    for layer in layers:
        layer.fold_weight_norm()
    try:
        yield
    finally:
        for layer in layers:
            layer.fold_weight_norm(False)


def remove_weight_norm_from_model(model: M) -> M:
    """Replace every weight norm below `model`, including torch's own two kinds, by a plain weight."""
    for module in model.modules():
        if isinstance(module, WeightNormed):
            module.remove_weight_norm()
        elif any(isinstance(hook, HookedWeightNorm) for hook in module._forward_pre_hooks.values()):
            nn.utils.remove_weight_norm(module)
        elif parametrize.is_parametrized(module, "weight"):
            steps = getattr(module, "parametrizations").weight  # noqa: B009
            if any(type(step).__name__ == "_WeightNorm" for step in steps):
                parametrize.remove_parametrizations(module, "weight")
    return model
