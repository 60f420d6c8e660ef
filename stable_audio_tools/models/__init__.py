"""Models as plain torch modules; nothing here knows of training, scripts or interfaces."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_audio_tools.models.factory import create_model_from_config, create_model_from_config_path

__all__ = ["create_model_from_config", "create_model_from_config_path"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("stable_audio_tools.models.factory"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
