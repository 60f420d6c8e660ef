"""Training: Lightning modules, their losses and callbacks, and the run that `train.py` starts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_audio_tools.training.factory import (
        create_demo_callback_from_config,
        create_song_describer_eval_callback_from_config,
        create_tqdm_callback_from_config,
        create_training_wrapper_from_config,
    )

__all__ = [
    "create_demo_callback_from_config",
    "create_song_describer_eval_callback_from_config",
    "create_tqdm_callback_from_config",
    "create_training_wrapper_from_config",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("stable_audio_tools.training.factory"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
