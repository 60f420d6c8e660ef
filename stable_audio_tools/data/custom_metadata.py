"""A user's module with `get_custom_metadata(info, audio) -> dict`, loaded in each process from its path."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.faults import BadItem

ItemInfo = dict[str, Any]  # metadata of an item
MetadataFunction = Callable[[ItemInfo, Tensor | None], Mapping[str, Any] | None]


class CustomMetadata:
    """Calls the module's function; only the path is sent to worker processes, so the module need not be picklable."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._function: MetadataFunction | None = None
        self._load()

    def __call__(self, info: ItemInfo, audio: Tensor | None) -> Mapping[str, Any] | None:
        return (self._function or self._load())(info, audio)

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_function": None}

    def _load(self) -> MetadataFunction:
        name = f"custom_metadata_{sha256(self.path.encode()).hexdigest()[:12]}"
        if not Path(self.path).is_file():
            raise ConfigError(f"custom_metadata_module: no file {self.path}")
        spec = importlib.util.spec_from_file_location(name, self.path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"custom_metadata_module: {self.path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # the user's code may fail in any way; its traceback stays attached
            sys.modules.pop(name, None)
            raise ConfigError(f"custom_metadata_module: {self.path} fails on import: {_say(error)}") from error
        function = getattr(module, "get_custom_metadata", None)
        if not callable(function):
            raise ConfigError(f"custom_metadata_module: {self.path} has no function get_custom_metadata(info, audio)")
        self._function = function
        return self._function


def call_custom(function: MetadataFunction, info: ItemInfo, audio: Tensor | None) -> ItemInfo:
    """Return the metadata that the user's function adds; its errors become a `BadItem`."""
    try:
        added = function(info, audio)
    except Exception as error:  # the user's code may fail in any way; its traceback stays attached
        raise BadItem("bad metadata", f"get_custom_metadata failed: {_say(error)}") from error
    if added is None:
        return {}
    if not isinstance(added, Mapping):
        raise BadItem("bad metadata", f"get_custom_metadata must return a dict, got {type(added).__name__}")
    return dict(added)


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
