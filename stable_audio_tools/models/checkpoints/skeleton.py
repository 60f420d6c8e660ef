"""Construction of models without memory for their weights, which are then filled from a file.

Parameters go to the meta device when a module registers them, and random initialisation is skipped. Buffers and all
other tensors of a constructor are computed normally, so that tables which are not in files (rotary frequencies,
filters, windows) equal the ones of a normal build.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

_RANDOM_FILLS = frozenset(
    {
        Tensor.bernoulli_,
        Tensor.cauchy_,
        Tensor.exponential_,
        Tensor.geometric_,
        Tensor.log_normal_,
        Tensor.normal_,
        Tensor.random_,
        Tensor.uniform_,
        nn.init.kaiming_uniform_,
        nn.init.normal_,
        nn.init.uniform_,
    }
)


_thread = threading.local()


class _SkipValues(TorchFunctionMode):
    """A mode that skips fills and norms of meta tensors, which cost a second of imports and have no values."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        if func is torch.norm_except_dim and args[0].is_meta:
            direction, _, kept = args
            sizes = [size if axis == kept else 1 for axis, size in enumerate(direction.shape)]
            return torch.empty(sizes, dtype=direction.dtype, device="meta")
        return func(*args, **kwargs)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules inside the block, in this thread, with parameters without values and buffers with values."""
    thread = threading.get_ident()
    replacements: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}  # shared parameters stay shared

    def hook(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        elsewhere = threading.get_ident() != thread or getattr(_thread, "keeps_values", False)
        if elsewhere or parameter.is_meta or is_lazy(parameter):
            return None
        known, replacement = replacements.get(id(parameter), (None, None))
        if known is None or known() is not parameter or replacement is None:
            replacement = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
            replacements[id(parameter)] = (weakref.ref(parameter), replacement)
        return replacement

    handle = register_module_parameter_registration_hook(hook)  # type: ignore[arg-type]
    try:
        with _SkipValues():
            yield
    finally:
        handle.remove()


@contextmanager
def parameters_with_values() -> Iterator[None]:
    """Keep the values of parameters registered inside `parameters_on_meta`, for a part that is loaded separately."""
    before = getattr(_thread, "keeps_values", False)
    _thread.keeps_values = True
    try:
        yield
    finally:
        _thread.keeps_values = before
