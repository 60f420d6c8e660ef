"""Three ways to the same projected gradients; `make_engine` chooses by shape."""

import math
from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor

from stable_audio_tools.attribution.engines.engine import GradientEngine
from stable_audio_tools.attribution.engines.hooks import HookEngine
from stable_audio_tools.attribution.engines.loop import LoopEngine
from stable_audio_tools.attribution.engines.vmap import VmapEngine
from stable_audio_tools.attribution.projection import Projection
from stable_audio_tools.attribution.task import DiffusionTask
from stable_audio_tools.core.errors import ConfigError

EngineName = Literal["auto", "hooks", "vmap", "loop"]
_SHARED_ELEMENTS = 1 << 28  # gradients of a group that may be held to share a dense matrix: 1 GiB

__all__ = ["EngineName", "GradientEngine", "HookEngine", "LoopEngine", "VmapEngine", "choose_engine", "make_engine"]


def choose_engine(parameters: Mapping[str, Tensor], projection: Projection, checkpointing: bool) -> EngineName:
    """Hooks, unless a dense matrix is better made once for a group of samples whose gradients fit into memory."""
    elements = sum(parameter.numel() for parameter in parameters.values())
    shares = projection.is_dense and not checkpointing and elements * VmapEngine.group <= _SHARED_ELEMENTS
    return "vmap" if shares else "hooks"


def make_engine(
    name: str,
    task: DiffusionTask,
    parameters: Mapping[str, Tensor],
    projection: Projection,
    *,
    rows_at_once: int = 0,
    checkpointing: bool = False,
) -> GradientEngine:
    """The engine of a name; `rows_at_once` timesteps share a pass, 0 for all of them."""
    if name not in get_args(EngineName):
        raise ConfigError(f"--engine: expected one of {', '.join(get_args(EngineName))}; got {name!r}")
    chosen = choose_engine(parameters, projection, checkpointing) if name == "auto" else name
    if chosen == "vmap":
        if checkpointing:
            raise ConfigError("--engine vmap does not work with --checkpointing; use hooks or loop")
        return VmapEngine(task, parameters, projection)
    rows = rows_at_once or math.inf
    if chosen == "loop":
        return LoopEngine(task, parameters, projection)
    return HookEngine(task, parameters, projection, rows)
