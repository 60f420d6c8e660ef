"""Imports at the time of use: optional packages, and methods implemented in a higher layer."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from stable_audio_tools.core.errors import MissingPackage


def require(name: str, extra: str | None = None) -> ModuleType:
    """Import an optional package; if it is missing, raise an error with the command that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        distribution = package.replace("_", "-")
        # On the package index this name belongs to a different project, so extras are installed from a clone.
        remedy = f"pip install -e '.[{extra}]' in the clone of this project" if extra else f"pip install {distribution}"
        missing = getattr(error, "name", None)
        if missing is not None and missing.split(".")[0] == package:
            raise MissingPackage(f"{distribution} is not installed; install it with: {remedy}") from None
        raise MissingPackage(f"{distribution} is installed but cannot be imported ({error}); try: {remedy}") from error


def available(name: str) -> bool:
    """Return whether a package is installed, without importing it."""
    return find_spec(name.split(".")[0]) is not None


class LateMethod:
    """A method that calls a function given by its path, "package.module:function", imported at the first access.

    Published classes have methods such as `model.generate(...)`, although generation is a layer above the models.
    """

    def __init__(self, path: str) -> None:
        self.module, _, self.function = path.partition(":")
        self.__doc__ = f"Calls `{self.module}.{self.function}` with this object as its first argument."

    def __get__(self, instance: object | None, owner: type) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(import_module(self.module), self.function)
        return function if instance is None else partial(function, instance)
