"""Merges adapters into base weights and back, and extracts them from the difference of two models."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import CheckpointError, UserError
from stable_audio_tools.models.lora.adapter import adapted_layers, refuse_merged
from stable_audio_tools.models.lora.base import base_facts, dense_weight, is_quantized
from stable_audio_tools.models.lora.config import LoraConfig
from stable_audio_tools.models.lora.factors import AdapterControl
from stable_audio_tools.models.lora.formula import TINY, leading_vectors
from stable_audio_tools.models.lora.layers import AdaptedLayer
from stable_audio_tools.models.lora.parametrization import remove_parametrizations
from stable_audio_tools.models.lora.stored import LoraFile
from stable_audio_tools.models.lora.targets import find_targets, rank_of


class Extracted(NamedTuple):
    lora: LoraFile
    kept: float  # share of the squared difference that the factors hold, over all layers
    unchanged: int  # layers that are the same in both models
    beyond: list[str]  # tensors that differ and belong to no adapted layer


@torch.no_grad()
def merge_lora(model: nn.Module) -> int:
    """Add all adapters, at their strengths, to the base weights -> number of layers.

    Passes then cost what the base's do, and `state_dict` holds the sum. `unmerge_lora` gives the base back, bit by bit,
    from a copy on the CPU. Adapters of `add_lora` are merged for good, and removed.
    """
    parametrized = remove_parametrizations(model, keep_adapted=True)
    layers = adapted_layers(model)
    if parametrized and not layers:
        return parametrized
    if not layers:
        raise UserError("this model has no adapters to merge")
    refuse_merged(model)
    controls = _controls(layers.values())
    for control in controls:
        if control.interval is not None:
            raise UserError(
                f"adapter {control.name!r} acts at some noise levels alone, which merged weights cannot; set its "
                "interval to None to merge it"
            )
    for path, layer in layers.items():
        if is_quantized(layer):
            raise UserError(
                f"{path}: adapters do not merge into 8-bit or 4-bit weights; load the base in full precision"
            )
    for layer in layers.values():
        merged, bias_change = layer.adapted_weight(), layer.bias_change(list(layer.factors()))
        changed = _weights(layer)
        if bias_change is not None and layer.bias is not None:
            changed["bias"] = layer.bias
        layer.kept_weights = {name: value.detach().to("cpu", copy=True) for name, value in changed.items()}
        _write(layer, merged)
        if bias_change is not None and layer.bias is not None:
            layer.bias.add_(bias_change)
    for control in controls:
        control.is_merged = True
    return len(layers) + parametrized


@torch.no_grad()
def unmerge_lora(model: nn.Module) -> int:
    """Restore the base weights from before `merge_lora` -> number of layers."""
    merged = [layer for layer in adapted_layers(model).values() if layer.kept_weights is not None]
    if not merged:
        raise UserError("no adapters are merged into this model")
    for layer in merged:
        assert layer.kept_weights is not None
        for name, value in layer.kept_weights.items():
            layer.get_parameter(name).copy_(value)
        layer.kept_weights = None
    for control in _controls(merged):
        control.is_merged = False
    return len(merged)


@torch.no_grad()
def extract_lora(
    base: nn.Module,
    tuned: nn.Module,
    rank: int,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> Extracted:
    """Extract an adapter from the difference of two models: the best B A of this rank, by SVD (Eckart & Young 1936)."""
    config = LoraConfig(rank=rank, include=None if include is None else list(include), exclude=list(exclude))
    targets = find_targets(base, config)
    ours, theirs = base.state_dict(), tuned.state_dict()
    wrong = [name for name, value in ours.items() if name not in theirs or theirs[name].shape != value.shape]
    if wrong:
        raise CheckpointError(
            f"the two models differ in {len(wrong)} of {len(ours)} tensors by name or shape, the first {wrong[0]!r}; "
            "an adapter comes from two sets of weights of one model"
        )
    layers, total, kept, unchanged = {}, 0.0, 0.0, 0
    for path, layer in targets.items():
        change = dense_weight(tuned.get_submodule(path)).float() - dense_weight(layer).float()
        if not change.any():
            unchanged += 1
            continue
        up, down = closest_factors(change, min(rank_of(path, config), *change.shape))
        layers[path] = {"lora_A": down, "lora_B": up}
        total += float(change.square().sum())
        kept += float((up @ down).square().sum())
    if not layers:
        raise CheckpointError(f"none of the {len(targets)} layers differs between the two models; nothing to extract")
    inside = {
        f"{path}.{name}" for path, layer in targets.items() for name, _ in layer.named_parameters() if name != "bias"
    }
    beyond = [name for name, value in ours.items() if name not in inside and not torch.equal(value, theirs[name])]
    facts = base_facts(base, layers)
    return Extracted(LoraFile("extracted", "native", layers, config, facts=facts), kept / total, unchanged, beyond)


def _controls(layers: Iterable[AdaptedLayer]) -> list[AdapterControl]:
    return list({id(held.control): held.control for layer in layers for held in layer.factors()}.values())


def closest_factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return B (rows, r) and A (r, cols) of equal norm, with B A the closest of rank r to a matrix."""
    if len(change) > change.shape[1]:
        down, up = closest_factors(change.T, rank)
        return up.T.contiguous(), down.T.contiguous()
    matrix = change.double()
    left, values = leading_vectors(matrix, rank)
    root = values.clamp_min(TINY).sqrt()
    return (left * root).float(), (left.T @ matrix / root[:, None]).float()


def _weights(layer: AdaptedLayer) -> dict[str, nn.Parameter]:
    """Return the parameters of the weight: itself, or gain and direction."""
    own = dict(layer.named_parameters(recurse=False))
    return {name: own[name] for name in ("weight", "weight_g", "weight_v") if name in own}


def _write(layer: AdaptedLayer, merged: Tensor) -> None:
    parameters = _weights(layer)
    first = next(iter(parameters.values()))
    if "weight" in parameters:
        first.copy_(merged.view(first.shape))
        return
    parameters["weight_v"].copy_(merged.view(parameters["weight_v"].shape))
    parameters["weight_g"].copy_(torch.norm_except_dim(parameters["weight_v"], 2, 0))
