"""Published calls of modules, which other people's code replaces, wraps and hooks.

Sampling projects its conditions once and skips some of these calls. That is only correct while every call runs the code
of this package, so a network with altered calls is run call by call.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

_Call = TypeVar("_Call", bound=Callable[..., Any])

_CALLS: set[Callable[..., Any]] = set()


def published_call(function: _Call) -> _Call:
    """Register a method that other code may replace, on the class or on an instance."""
    _CALLS.add(function)
    return function


def runs_published(module: nn.Module, *names: str) -> bool:
    """Return whether `forward`, or the named methods, of the module's class are still the ones of this package."""
    return all(getattr(type(module), name, None) in _CALLS for name in names or ("forward",))


def is_touched(module: nn.Module) -> bool:
    """Return whether this module has hooks on its call, or a call that differs from its class."""
    own = vars(module)
    return "forward" in own or "apply_attn" in own or bool(module._forward_hooks or module._forward_pre_hooks)


def is_compiled(module: nn.Module) -> bool:
    """Return whether the whole call of this module was compiled in place."""
    return module._compiled_call_impl is not None


def used(**options: Any) -> dict[str, Any]:
    """Return the options that are not None, so that a replaced module need not accept the others."""
    return {name: value for name, value in options.items() if value is not None}
