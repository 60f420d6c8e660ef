"""Adapter files from one program's format to another's."""

from dataclasses import replace

from torch import nn

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.lora.formats import COMFY_PREFIX
from stable_audio_tools.models.lora.loading import fit_to
from stable_audio_tools.models.lora.stored import LoraFile, LoraFormat

_BELOW = {"model.": "model.", "conditioners.": "conditioner."}  # Stable Audio 3's paths begin inside the wrapper


def convert_lora(lora: LoraFile, target: LoraFormat, model: nn.Module | None = None) -> LoraFile:
    """The adapter as a file of another format. `model` settles names; only ComfyUI's underscores need one."""
    return replace(_with_our_paths(lora, model), format=target)


def _with_our_paths(lora: LoraFile, model: nn.Module | None) -> LoraFile:
    if model is not None:
        return fit_to(model, lora)
    if lora.format == "comfyui":
        return replace(lora, layers={_from_dots(lora, name): held for name, held in lora.layers.items()})
    if lora.format == "sa3":
        return replace(lora, layers={_from_sa3(name): held for name, held in lora.layers.items()})
    return lora


def _from_sa3(name: str) -> str:
    return next((root + name for start, root in _BELOW.items() if name.startswith(start)), name)


def _from_dots(lora: LoraFile, name: str) -> str:
    if name.startswith(COMFY_PREFIX):
        raise CheckpointError(
            f"{lora.path}: ComfyUI's names ({name}) do not tell where a path is divided; give --model-config"
        )
    return f"model.model.{name.partition('.')[2]}"
