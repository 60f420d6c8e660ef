"""An adapter between file and model: its tensors by layer, its config and its facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from stable_audio_tools.core.errors import CheckpointError, ConfigError
from stable_audio_tools.models.lora.config import LoraConfig, lora_config_from
from stable_audio_tools.models.lora.targets import rank_of
from stable_audio_tools.version import __version__

LoraFormat = Literal["native", "loraw", "sa3", "comfyui"]
Layers = dict[str, dict[str, Tensor]]  # path -> factor -> tensor


@dataclass(frozen=True)
class LoraFile:
    """An adapter read from a file, or ready to be written."""

    path: str
    format: LoraFormat
    layers: Layers  # names as in the file, factors by our names
    config: LoraConfig
    alphas: dict[str, float] = field(default_factory=dict)  # of formats with one per layer
    facts: dict[str, object] = field(default_factory=dict)
    knows_alpha: bool = True

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for factors in self.layers.values() for tensor in factors.values())

    def scale(self, path: str) -> float:
        """Return the factor of B A in a layer."""
        return self.config.scale(rank_of(path, self.config))

    def with_alpha(self, alpha: float) -> "LoraFile":
        """Return a copy with another alpha, for formats that do not hold it."""
        return replace(self, config=self.config.model_copy(update={"alpha": alpha}), knows_alpha=True)


def header_config(config: LoraConfig) -> dict[str, object]:
    """Return the config for a header: type, rank, alpha, and every other key that differs from its default."""
    said = config.model_dump(exclude_defaults=True, exclude={"lr", "multiplier", "base_precision"})
    return {"adapter_type": config.adapter_type, "rank": config.rank, "alpha": config.alpha or config.rank, **said}


def config_of(section: Mapping[str, object], path: str) -> LoraConfig:
    """Read a config from a header; keys without a meaning here are ignored."""
    known = {key: section[key] for key in LoraConfig.model_fields if key in section}
    alpha = known.get("alpha")
    if isinstance(alpha, int):
        known["alpha"] = float(alpha)
    try:
        return lora_config_from(known, "lora_config")
    except ConfigError as error:
        raise CheckpointError(f"{path}: its header cannot be used ({error.problems[0]})") from None


def check_shapes(lora: LoraFile) -> None:
    """Check that every layer has the factors of the type, and that they fit each other."""
    form = lora.config.form
    both = form.rows and form.cols
    wanted = {"M_xs"} if form.core else {"lora_A", "lora_B"}
    wanted |= {"magnitude_r", "magnitude_c"} if both else {"magnitude"} if form.rows or form.cols else set()
    for path, factors in lora.layers.items():
        if set(factors) != wanted:
            raise CheckpointError(
                f"{lora.path}: {path} holds {', '.join(sorted(factors))}, but an adapter of type "
                f"{lora.config.adapter_type} has {', '.join(sorted(wanted))}"
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in factors.items()}
        if form.core:
            fits = len(shapes["M_xs"]) == 2 and len(set(shapes["M_xs"])) == 1
        else:
            down, up = shapes["lora_A"], shapes["lora_B"]
            fits = len(down) == len(up) == 2 and down[0] == up[1]
        if not fits:
            listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise CheckpointError(f"{lora.path}: the factors of {path} do not fit each other ({listed})")


def native_header(lora: LoraFile) -> dict[str, object]:
    """Return the `lora` object of a native header."""
    return {"config": header_config(lora.config), "targets": list(lora.layers), **lora.facts, "version": __version__}
