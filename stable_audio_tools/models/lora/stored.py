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
    expected = {"M_xs"} if form.core else {"lora_A", "lora_B"}
    if form.product == "hadamard":
        expected = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
    expected |= {"magnitude_r", "magnitude_c"} if both else {"magnitude"} if form.rows or form.cols else set()
    for path, factors in lora.layers.items():
        if form.product == "kronecker":
            expected = {"lokr_w1", *({"lokr_w2"} if "lokr_w2" in factors else {"lokr_w2_a", "lokr_w2_b"})}
        if set(factors) != expected:
            raise CheckpointError(
                f"{lora.path}: {path} holds {', '.join(sorted(factors))}, but an adapter of type "
                f"{lora.config.adapter_type} has {', '.join(sorted(expected))}"
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in factors.items()}
        if form.core:
            fits = len(shapes["M_xs"]) == 2 and len(set(shapes["M_xs"])) == 1
        elif form.product == "hadamard":
            pairs = [(shapes[f"hada_w{number}_a"], shapes[f"hada_w{number}_b"]) for number in (1, 2)]
            fits = all(len(up) == len(down) == 2 and up[1] == down[0] for up, down in pairs)
            fits = fits and pairs[0][0][0] == pairs[1][0][0] and pairs[0][1][1] == pairs[1][1][1]
        elif form.product == "kronecker":
            inner = shapes.get("lokr_w2_a", (0, 0))[-1:], shapes.get("lokr_w2_b", (0, 0))[:1]
            fits = all(len(shape) == 2 for shape in shapes.values()) and inner[0] == inner[1]
        else:
            down, up = shapes["lora_A"], shapes["lora_B"]
            fits = len(down) == len(up) == 2 and down[0] == up[1]
        if not fits:
            listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise CheckpointError(f"{lora.path}: the factors of {path} do not fit each other ({listed})")


def kronecker_shape(factors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the shape of the matrix of Kronecker factors."""
    first = factors["lokr_w1"].shape
    rows = factors["lokr_w2" if "lokr_w2" in factors else "lokr_w2_a"].shape[0]
    cols = factors["lokr_w2" if "lokr_w2" in factors else "lokr_w2_b"].shape[1]
    return first[0] * rows, first[1] * cols


def native_header(lora: LoraFile) -> dict[str, object]:
    """Return the `lora` object of a native header."""
    return {"config": header_config(lora.config), "targets": list(lora.layers), **lora.facts, "version": __version__}
