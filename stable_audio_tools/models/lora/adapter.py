"""Adapters on a model: attached, found, switched, limited to noise levels, taken off."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.models.lora.base import cast_base, dense_weight
from stable_audio_tools.models.lora.config import LoraConfig
from stable_audio_tools.models.lora.factors import AdapterControl, LoraFactors
from stable_audio_tools.models.lora.layers import AdaptedLayer, adapt_layer, release_layer
from stable_audio_tools.models.lora.targets import find_targets, rank_of, select_paths

DEFAULT_NAME = "lora"
_NORMAL = {"hada_w1_a": 0.1, "hada_w1_b": 1.0, "hada_w2_b": 1.0}  # deviations at the start, by factor


class LoraAdapter(nn.Module):
    """Handle of one adapter of a model: its tensors as parameters and state dict, its switches as attributes.

    The layers of the model use the same tensors. State-dict names are `<path of the layer>.<factor>`.
    """

    def __init__(self, control: AdapterControl, factors: Mapping[str, LoraFactors]) -> None:
        super().__init__()
        self.control = control
        self.targets = tuple(factors)
        self.factors = nn.ModuleList(factors.values())

    @property
    def name(self) -> str:
        return self.control.name

    @property
    def config(self) -> LoraConfig:
        return self.control.config

    @property
    def facts(self) -> dict[str, object]:
        """Facts from its file: trigger text, step, base model."""
        return self.control.facts

    @property
    def num_parameters(self) -> int:
        """Values in the adapter."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def strength(self) -> float:
        """The factor of W' - W; any number, 0 is the base."""
        return self.control.strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._refuse_if_merged()
        self.control.strength = float(value)

    @property
    def enabled(self) -> bool:
        return self.control.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._refuse_if_merged()
        self.control.enabled = bool(value)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Noise levels, 0 (data) to 1 (noise), at which samplers use the adapter; None means all."""
        return self.control.interval

    @interval.setter
    def interval(self, value: Sequence[float] | None) -> None:
        self._refuse_if_merged()
        if value is None:
            self.control.interval = None
            return
        low, high = map(float, value)
        if not low <= high:
            raise UserError(f"interval of adapter {self.name!r}: expected [lowest, highest] noise level, got {value}")
        self.control.interval = (low, high)

    @property
    def layer_filter(self) -> tuple[str, ...] | None:
        """Patterns of the layers on which the adapter acts; None means all."""
        return self.control.layer_filter

    @layer_filter.setter
    def layer_filter(self, patterns: Sequence[str] | None) -> None:
        self._refuse_if_merged()
        chosen = set(self.targets)
        if patterns is not None:
            chosen = select_paths(list(patterns), self.targets, f"layers of adapter {self.name!r}")
        for path, factors in self.layers():
            factors.selected = path in chosen
        self.control.layer_filter = None if patterns is None else tuple(patterns)

    def layers(self) -> Iterator[tuple[str, LoraFactors]]:
        """Yield the path and the factors of each adapted layer."""
        for path, factors in zip(self.targets, self.factors):
            assert isinstance(factors, LoraFactors)
            yield path, factors

    def named_factors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield parameters by their state-dict names."""
        for path, factors in self.layers():
            for name, tensor in factors.tensors().items():
                yield f"{path}.{name}", tensor

    def _refuse_if_merged(self) -> None:
        if self.control.is_merged:
            raise UserError(f"adapter {self.name!r} is merged into the weights; call unmerge_lora before changing it")

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        for name, tensor in self.named_factors():
            destination[f"{prefix}{name}"] = tensor if keep_vars else tensor.detach()

    @torch.no_grad()
    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: object,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        values = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        for name, tensor in self.named_factors():
            value = values.pop(name, None)
            if value is None:
                missing_keys.append(f"{prefix}{name}")
            elif value.shape != tensor.shape:
                error_msgs.append(f"{prefix}{name}: shape {tuple(value.shape)}, expected {tuple(tensor.shape)}")
            else:
                tensor.copy_(value)
        unexpected_keys.extend(f"{prefix}{name}" for name in values)


def attach_lora(model: nn.Module, config: LoraConfig, seed: int | None = None, name: str = DEFAULT_NAME) -> LoraAdapter:
    """Freeze a model and attach a trainable adapter; the model's output is unchanged.

    `seed` fixes the random factors; if omitted, torch's generator draws them. Load base weights first: they are cast to
    `base_precision`, and magnitudes start as their norms.
    """
    targets = find_targets(model, config)
    check_name(model, name)
    refuse_merged(model)
    if config.base_precision is not None:
        cast_base(model, config.base_precision, targets)
        targets = {path: model.get_submodule(path) for path in targets}
    adapter = put_on(model, AdapterControl(name, config, strength=config.multiplier), targets)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for _, factors in adapter.layers():
        draw_start(factors, generator)
    model.requires_grad_(False)
    adapter.requires_grad_(True)
    return adapter


def put_on(model: nn.Module, control: AdapterControl, targets: Mapping[str, nn.Module]) -> LoraAdapter:
    """Attach empty factors of one adapter to layers, by path."""
    refuse_merged(model)
    factors_by_path: dict[str, LoraFactors] = {}
    for path, layer in targets.items():
        taps = layer.kernel_size[0] if isinstance(layer, nn.Conv1d) else 1
        factors_by_path[path] = LoraFactors(control, dense_weight(layer), rank_of(path, control.config), taps)
    for path, factors in factors_by_path.items():
        adapt_layer(targets[path], factors)
    return LoraAdapter(control, factors_by_path)


def attached_loras(model: nn.Module) -> dict[str, LoraAdapter]:
    """Return the adapters of a model, by name, in the order of attachment."""
    found: dict[str, dict[str, LoraFactors]] = {}
    for path, layer in adapted_layers(model).items():
        for factors in layer.factors():
            found.setdefault(factors.control.name, {})[path] = factors
    return {name: LoraAdapter(next(iter(held.values())).control, held) for name, held in found.items()}


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """Return the layers with an adapter, by path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, AdaptedLayer)}


def unload_lora(model: nn.Module, name: str | None = None) -> None:
    """Remove one adapter, or all of them; the base is then as before."""
    layers = adapted_layers(model)
    known = {factors.control.name for layer in layers.values() for factors in layer.factors()}
    if name is not None and name not in known:
        raise UserError(f"no adapter named {name!r} on this model; {nearest(name, known)}")
    refuse_merged(model)
    for layer in layers.values():
        for held in [factors.control.name for factors in layer.factors()]:
            if name in (None, held):
                release_layer(layer, held)


def check_name(model: nn.Module, name: str) -> str:
    """Return the name if no adapter of this model has it."""
    if not name or "." in name:
        raise ConfigError(f"adapter name {name!r}: expected a word without dots")
    if name in {factors.control.name for layer in adapted_layers(model).values() for factors in layer.factors()}:
        raise ConfigError(f"an adapter named {name!r} is already on this model; give another name or unload it first")
    return name


def refuse_merged(model: nn.Module) -> None:
    """Refuse changes while adapters are merged into the base weights."""
    if any(layer.kept_weights is not None for layer in adapted_layers(model).values()):
        raise UserError("adapters are merged into this model; call unmerge_lora first")


def draw_start(factors: LoraFactors, generator: torch.Generator | None) -> None:
    """Draw the random factors on the CPU, so that a seed gives the same start on every device."""
    for name, tensor in factors.tensors().items():
        drawn = torch.empty(tensor.shape)
        if name in ("lora_A", "lokr_w1", "lokr_w2_b"):
            nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=generator)
        elif name in _NORMAL:
            nn.init.normal_(drawn, std=_NORMAL[name], generator=generator)
        else:
            continue
        with torch.no_grad():
            tensor.copy_(drawn)


class NoiseIntervals:
    """The adapters of a backbone that have an interval of noise levels, for one sampling run."""

    def __init__(self, model: object) -> None:
        layers = adapted_layers(model).values() if isinstance(model, nn.Module) else ()
        controls = {id(factors.control): factors.control for layer in layers for factors in layer.factors()}
        self._controls = [control for control in controls.values() if control.interval is not None]

    @contextmanager
    def at(self, level: Tensor) -> Iterator[tuple[bool, ...]]:
        """Activate the adapters whose interval holds the level (b,) of the first item; yield which are active."""
        if not self._controls:
            yield ()
            return
        # Bounds are rounded as the level is, so that an equal one is within.
        bounds = [level.new_tensor(control.interval) for control in self._controls]
        acting = tuple(bool(low <= level[0] <= high) for low, high in bounds)
        try:
            for control, acts in zip(self._controls, acting):
                control.in_interval = acts
            yield acting
        finally:
            for control in self._controls:
                control.in_interval = True
