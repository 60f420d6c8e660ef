"""The published calls of modules, which other people's code replaces, wraps and hooks.

Sampling projects its conditions once and skips some of these calls. That is only right while every call does what this
package wrote, so a network whose calls were altered is run call by call.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

_Call = TypeVar("_Call", bound=Callable[..., Any])

_CALLS: set[Callable[..., Any]] = set()


def published_call(function: _Call) -> _Call:
    """Record a method as one that other code may replace, on the class or on an instance."""
    _CALLS.add(function)
    return function


def runs_published(module: nn.Module, *names: str) -> bool:
    """Whether `forward`, or the methods of these names, are still those of this package in the module's class."""
    return all(getattr(type(module), name, None) in _CALLS for name in names or ("forward",))


def is_touched(module: nn.Module) -> bool:
    """Whether this very module has hooks on its call, or another call than its class."""
    own = vars(module)
    return "forward" in own or "apply_attn" in own or bool(module._forward_hooks or module._forward_pre_hooks)


def is_compiled(module: nn.Module) -> bool:
    """Whether the call of this module as a whole was compiled in place."""
    return module._compiled_call_impl is not None


def used(**options: Any) -> dict[str, Any]:
    """The options that are not None: what a module put in place of ours need not know stays out of its call."""
    return {name: value for name, value in options.items() if value is not None}
