"""Published methods of a class whose functions live on a higher floor of the package."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any


class LateMethod:
    """A method that calls a function named by its path, "package.module:function", imported at the first access.

    Other people's code calls `model.generate(...)`, while generation is built on models and not below them. The class
    names the function; nothing is imported until somebody asks for it.
    """

    def __init__(self, path: str) -> None:
        self.module, _, self.function = path.partition(":")
        self.__doc__ = f"Calls `{self.module}.{self.function}` with this object as its first argument."

    def __get__(self, instance: object | None, owner: type) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(import_module(self.module), self.function)
        return function if instance is None else partial(function, instance)
