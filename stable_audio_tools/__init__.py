"""Train, fine-tune and run generative audio models from JSON configs.

Importing this package loads nothing heavy: the names below are fetched when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stable_audio_tools.version import __version__

if TYPE_CHECKING:
    from stable_audio_tools.core.generations import generation
    from stable_audio_tools.inference.generation.model import load
    from stable_audio_tools.models.factory import create_model_from_config, create_model_from_config_path
    from stable_audio_tools.models.pretrained import get_pretrained_model, load_model

_HOMES = {
    "create_model_from_config": "stable_audio_tools.models.factory",
    "create_model_from_config_path": "stable_audio_tools.models.factory",
    "generation": "stable_audio_tools.core.generations",
    "get_pretrained_model": "stable_audio_tools.models.pretrained",
    "load": "stable_audio_tools.inference.generation.model",
    "load_model": "stable_audio_tools.models.pretrained",
}

__all__ = [
    "__version__",
    "create_model_from_config",
    "create_model_from_config_path",
    "generation",
    "get_pretrained_model",
    "load",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
