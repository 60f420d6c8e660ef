"""Adapters as parametrisations of weights, under the names of stable-audio-tools 0.0.20 and Stable Audio 3.

Programs of that family import these names. State dicts hold `parametrizations.weight.N.lora_A` and so on, where N
counts the adapters of a layer. Adapters of `attach_lora` and `load_lora` are faster and leave the names of the base
unchanged; the files of both are the same.

Strength scales the low-rank change before magnitudes are applied; at strength 0 the weight equals the base weight.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stable_audio_tools.models.lora.formula import Magnitudes, adapted_weight, singular_bases

Kind = Literal["lora", "dora", "dora-rows", "dora-cols", "bora", "lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs"]
Bases = Mapping[str, Tensor]  # the singular vectors of a weight: U (rows, r) and V (cols, r)
LayerConfig = Mapping[type[nn.Module], Mapping[str, Callable[..., "LoRAParametrization"]]]


class AdapterSelection(TypedDict, total=False):
    """The noise levels and layers in which one adapter acts during a pass."""

    lora_index: int | None
    interval: Sequence[float]
    layer_filter: str


class LoRAParametrization(nn.Module):
    """One adapter of one weight: W (rows, cols, ...) -> the adapted weight."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    M_xs: nn.Parameter
    U: Tensor
    V: Tensor
    magnitude: nn.Parameter
    magnitude_r: nn.Parameter
    magnitude_c: nn.Parameter
    lora_strength: Tensor

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        fan_in_fan_out: bool = False,
        rank: int = 4,
        lora_dropout_p: float = 0.0,
        lora_alpha: float = 1,
        adapter_type: Kind = "lora",
        W0: Tensor | None = None,
        lora_index: int = 0,
        svd_bases: Bases | None = None,
    ) -> None:
        """`W0` (fan_out, fan_in) gives magnitudes and bases; `fan_in_fan_out` is for weights stored transposed."""
        super().__init__()
        if adapter_type not in get_args(Kind):
            raise ValueError(f"adapter_type is {adapter_type!r}; allowed: {', '.join(get_args(Kind))}")
        self.rank, self.lora_alpha, self.scaling = rank, lora_alpha, lora_alpha / rank
        self.adapter_type, self.lora_index, self.fan_in_fan_out = adapter_type, lora_index, fan_in_fan_out
        self.enabled = True
        rows, cols = (fan_in, fan_out) if fan_in_fan_out else (fan_out, fan_in)
        base = None if W0 is None else W0.detach().reshape(rows, cols).float()
        self.lora_dropout = nn.Dropout(lora_dropout_p) if lora_dropout_p > 0 else None
        self.register_buffer("lora_dropout_mask", torch.ones((fan_in, 1) if fan_in_fan_out else (1, fan_in)))
        self.register_buffer("lora_strength", torch.tensor(1.0), persistent=False)
        self.form = adapter_type.removesuffix("-xs")
        if adapter_type.endswith("-xs"):
            left, right = _bases(base, rank, svd_bases, adapter_type)
            self.register_buffer("U", left)
            self.register_buffer("V", right)
            self.M_xs = nn.Parameter(torch.zeros(rank, rank))
        else:
            self.lora_A = nn.Parameter(torch.zeros((fan_in, rank) if fan_in_fan_out else (rank, fan_in)))
            self.lora_B = nn.Parameter(torch.zeros((rank, fan_out) if fan_in_fan_out else (fan_out, rank)))
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        by_rows = torch.ones(rows) if base is None else base.norm(dim=1)
        by_cols = torch.ones(cols) if base is None else base.norm(dim=0)
        if self.form == "bora":
            self.magnitude_r, self.magnitude_c = nn.Parameter(by_rows), nn.Parameter(by_cols)
        elif self.form != "lora":
            self.magnitude = nn.Parameter(by_cols if self.form == "dora-cols" else by_rows)
        if W0 is not None:
            self.to(W0.device)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight, or the weight itself if the adapter is off or has no strength."""
        if not self.enabled:
            return weight
        if self.adapter_type.endswith("-xs"):
            up, down = self.U, self.M_xs.to(self.U.dtype) @ self.V.T
        else:
            first = self.lora_A
            if self.lora_dropout is not None:
                first = first * self.lora_dropout(self.lora_dropout_mask)
            up, down = (first, self.lora_B) if self.fan_in_fan_out else (self.lora_B, first)
        magnitudes = Magnitudes(None, None)
        if self.form == "bora":
            magnitudes = Magnitudes(self.magnitude_r, self.magnitude_c)
        elif self.form == "dora-cols":
            magnitudes = Magnitudes(None, self.magnitude)
        elif self.form != "lora":
            magnitudes = Magnitudes(self.magnitude, None)
        flat = weight.reshape(len(weight), -1)
        scale = self.scaling * self.lora_strength
        adapted = adapted_weight(flat, up, scale * down, 1.0, magnitudes).view(weight.shape).to(weight.dtype)
        return torch.where(self.lora_strength == 0, weight, adapted)

    def disable_lora(self) -> None:
        self.enabled = False

    def enable_lora(self) -> None:
        self.enabled = True

    @classmethod
    def from_linear(cls, layer: nn.Module, rank: int = 4, **options: Any) -> "LoRAParametrization":
        """Build the adapter of a linear layer, or of any layer whose weight has its outputs first."""
        weight = _base_weight(layer)
        flat = weight.reshape(len(weight), -1)
        return cls(flat.shape[1], flat.shape[0], rank=rank, W0=flat, **options)

    from_conv1d = from_linear
    from_conv2d = from_linear

    @classmethod
    def from_embedding(cls, layer: nn.Module, rank: int = 4, **options: Any) -> "LoRAParametrization":
        """Build the adapter of an embedding, whose weight has its inputs first."""
        weight = _base_weight(layer)
        return cls(weight.shape[0], weight.shape[1], fan_in_fan_out=True, rank=rank, W0=weight, **options)


def _bases(base: Tensor | None, rank: int, stored: Bases | None, kind: str) -> tuple[Tensor, Tensor]:
    if stored is not None:
        return stored["U"][:, :rank].float().clone(), stored["V"][:, :rank].float().clone()
    if base is None:
        raise ValueError(f"adapter_type {kind!r} needs the weight W0 or its svd_bases")
    left, right = singular_bases(base, rank)
    return left.clone(), right.clone()


def _base_weight(layer: nn.Module) -> Tensor:
    """Return the weight below all adapters."""
    stack = _stack(layer)
    weight = layer.weight if stack is None else stack.original
    assert isinstance(weight, Tensor)
    return weight.detach()


def _stack(layer: nn.Module) -> parametrize.ParametrizationList | None:
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    stacks = layer.parametrizations
    assert isinstance(stacks, nn.ModuleDict)
    stack = stacks["weight"]
    assert isinstance(stack, parametrize.ParametrizationList)
    return stack


default_lora_config: LayerConfig = {nn.Linear: {"weight": LoRAParametrization.from_linear}}


def layer_config(rank: int, alpha: float, adapter_type: str, lora_index: int = 0) -> LayerConfig:
    """Return the adapters of linear layers and of convolutions over time, for `add_lora`."""
    build = partial(
        LoRAParametrization.from_linear,
        rank=rank,
        lora_alpha=alpha,
        adapter_type=adapter_type,
        lora_index=lora_index,
    )
    return {nn.Linear: {"weight": build}, nn.Conv1d: {"weight": build}}


def add_lora(
    model: nn.Module,
    lora_config: LayerConfig = default_lora_config,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    svd_bases: Mapping[str, Bases] | None = None,
) -> None:
    """Add an adapter to every layer of the given types whose name contains a pattern of `include`, none of `exclude`.

    Patterns are parts of names; `layers.[0-3]` stands for four of them. `svd_bases` holds singular vectors by
    `<layer>.weight`, which are otherwise computed.
    """
    for name, module in list(model.named_modules()):
        kind = next((kind for kind in lora_config if isinstance(module, kind)), None)
        is_chosen = (include is None or _matches(name, include)) and not _matches(name, exclude or ())
        if kind is None or not is_chosen:
            continue
        for attribute, build in lora_config[kind].items():
            bases = (svd_bases or {}).get(f"{name}.{attribute}")
            adapter = build(module) if bases is None else build(module, svd_bases=bases)
            parametrize.register_parametrization(module, attribute, adapter, unsafe=True)


def add_lora_by_name(
    model: nn.Module,
    target_module_names: Sequence[str],
    lora_config: LayerConfig = default_lora_config,
    svd_bases: Mapping[str, Bases] | None = None,
) -> None:
    """Add adapters to the layers whose name contains one of the given patterns."""
    add_lora(model, lora_config, include=target_module_names, svd_bases=svd_bases)


def remove_lora(model: nn.Module) -> None:
    """Remove all adapters and restore the base weights."""
    remove_parametrizations(model, keep_adapted=False)


def remove_parametrizations(model: nn.Module, keep_adapted: bool) -> int:
    """Remove all adapters, leaving adapted or base weights; return the number of layers."""
    layers = {id(layer): layer for layer, _ in _adapted(model)}.values()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=keep_adapted)
    return len(layers)


def remove_lora_by_index(model: nn.Module, lora_index: int) -> None:
    """Remove the adapters of one index."""
    for layer in {id(layer): layer for layer, _ in _adapted(model)}.values():
        stack = _stack(layer)
        assert stack is not None
        chosen = [
            place
            for place, adapter in enumerate(stack)
            if isinstance(adapter, LoRAParametrization) and adapter.lora_index == lora_index
        ]
        if len(chosen) == len(stack):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        else:
            for place in reversed(chosen):
                del stack[place]


def _adapted(model: nn.Module) -> Iterator[tuple[nn.Module, LoRAParametrization]]:
    for module in model.modules():
        for adapter in _stack(module) or ():
            if isinstance(adapter, LoRAParametrization):
                yield module, adapter


def get_lora_layers(model: nn.Module) -> list[tuple[str, LoRAParametrization]]:
    """Return every adapter with the name of its layer."""
    names = {id(module): name for name, module in model.named_modules()}
    return [(names[id(module)], adapter) for module, adapter in _adapted(model)]


def has_lora(model: nn.Module) -> bool:
    """Return whether any layer has an adapter."""
    return next(_adapted(model), None) is not None


def get_lora_count(model: nn.Module) -> int:
    """Return the number of stacked adapters."""
    return len({adapter.lora_index for _, adapter in _adapted(model)})


def _of_index(model: nn.Module, lora_index: int | None) -> list[LoRAParametrization]:
    return [adapter for _, adapter in _adapted(model) if lora_index in (None, adapter.lora_index)]


def set_lora_strength(model: nn.Module, strength: float, lora_index: int | None = None) -> None:
    """Set the strength of all adapters, or of those of one index."""
    for adapter in _of_index(model, lora_index):
        adapter.lora_strength.fill_(float(strength))


def enable_lora(model: nn.Module, lora_index: int | None = None) -> None:
    """Switch on all adapters, or those of one index."""
    for adapter in _of_index(model, lora_index):
        adapter.enable_lora()


def disable_lora(model: nn.Module, lora_index: int | None = None) -> None:
    """Switch off all adapters, or those of one index."""
    for adapter in _of_index(model, lora_index):
        adapter.disable_lora()


def filter_lora_layers(model: nn.Module, lora_layer_filter: str | None, lora_index: int | None = None) -> None:
    """Switch adapters off in layers whose name contains one of the comma-separated patterns, and on in all others."""
    patterns = [part.strip().lower() for part in (lora_layer_filter or "").split(",") if part.strip()]
    for name, adapter in get_lora_layers(model):
        if lora_index in (None, adapter.lora_index):
            adapter.enabled = not _matches(name, patterns)


@contextmanager
def chosen_loras(
    model: nn.Module,
    noise_level: Callable[[], float],
    interval: Sequence[float] | None,
    layer_filter: str | None,
    choices: Sequence[AdapterSelection] | None,
) -> Iterator[None]:
    """Let adapters act in one pass only if its noise level is in `interval` and outside of filtered layers.

    `choices` say so for each adapter by its index. Without any of the three, adapters act as they are switched.
    """
    if interval is None and not layer_filter and choices is None:
        yield
        return
    before = [(adapter, adapter.enabled) for _, adapter in _adapted(model)]
    level = noise_level() if before else 0.0
    for choice in choices or [AdapterSelection(interval=interval or (0.0, 1.0), layer_filter=layer_filter or "")]:
        low, high = choice.get("interval", (0.0, 1.0))
        if low <= level <= high:
            filter_lora_layers(model, choice.get("layer_filter", ""), choice.get("lora_index"))
        else:
            disable_lora(model, choice.get("lora_index"))
    try:
        yield
    finally:
        for adapter, was_enabled in before:
            adapter.enabled = was_enabled


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(part in name for pattern in patterns for part in expand_pattern(pattern.strip()))


def expand_pattern(pattern: str) -> list[str]:
    """Expand `layers.[0-2]` to layers.0, layers.1 and layers.2."""
    literals = re.split(r"\[\d+-\d+\]", pattern)
    ranges = [(int(first), int(last)) for first, last in re.findall(r"\[(\d+)-(\d+)\]", pattern)]
    numbers = [range(min(ends), max(ends) + 1) for ends in ranges]
    return [
        "".join(literal + str(number) for literal, number in zip(literals, (*chosen, "")))
        for chosen in product(*numbers)
    ]


def tie_weights(linear: nn.Linear, embedding: nn.Embedding) -> None:
    """Let an embedding share base weight and adapter with the linear layer that inverts it."""
    ours, theirs = _plain_pair(linear, embedding)
    theirs.original = ours.original
    first, second = ours[0], theirs[0]
    assert isinstance(first, LoRAParametrization) and isinstance(second, LoRAParametrization)
    second.lora_A, second.lora_B = first.lora_B, first.lora_A


def untie_weights(linear: nn.Linear, embedding: nn.Embedding) -> None:
    """Give a tied embedding its own base weight and adapter."""
    _, theirs = _plain_pair(linear, embedding)
    original, adapter = theirs.original, theirs[0]
    assert isinstance(original, Tensor) and isinstance(adapter, LoRAParametrization)
    theirs.original = nn.Parameter(original.detach().clone())
    adapter.lora_A = nn.Parameter(adapter.lora_A.detach().clone())
    adapter.lora_B = nn.Parameter(adapter.lora_B.detach().clone())


def _plain_pair(
    linear: nn.Linear, embedding: nn.Embedding
) -> tuple[parametrize.ParametrizationList, parametrize.ParametrizationList]:
    stacks = _stack(linear), _stack(embedding)
    for stack in stacks:
        adapter = None if stack is None else stack[0]
        if not isinstance(adapter, LoRAParametrization) or adapter.adapter_type != "lora":
            raise ValueError("tied weights need an adapter of type 'lora' on both layers")
    assert stacks[0] is not None and stacks[1] is not None
    return stacks[0], stacks[1]
