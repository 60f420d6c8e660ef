"""Applies adapter files to models, matched by name and shape, and converts them between formats."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.lora.adapter import LoraAdapter, adapted_layers, check_name, put_on, unload_lora
from stable_audio_tools.models.lora.base import base_facts, same_weights
from stable_audio_tools.models.lora.factors import AdapterControl, LoraFactors, output_factor
from stable_audio_tools.models.lora.files import COMFY_DOTTED, COMFY_PREFIX, read_lora, write_lora
from stable_audio_tools.models.lora.stored import Layers, LoraFile, LoraFormat, kronecker_shape
from stable_audio_tools.models.lora.targets import adaptable_layers, rank_of

logger = logging.getLogger(__name__)

Source = str | Path | LoraFile
# Prefixes of other programs' paths in our models.
_ROOTS = ("", "model.", "model.model.", "conditioner.", "diffusion.", "model.conditioner.")


def load_lora(
    model: nn.Module,
    source: Source,
    strength: float = 1.0,
    name: str | None = None,
    interval: Sequence[float] | None = None,
    layers: Sequence[str] | None = None,
    *,
    alpha: float | None = None,
    trainable: bool = False,
) -> LoraAdapter:
    """Attach an adapter from a file to a model, beside its other adapters; after an error the model is as before.

    `interval`: noise levels at which samplers use it. `layers`: patterns of the layers it acts on. `alpha`: for files
    that do not hold it (LoRAW's). `trainable` freezes the base, and the adapter trains on.
    """
    lora = fit_to(model, source if isinstance(source, LoraFile) else read_lora(source, alpha))
    if not lora.knows_alpha:
        logger.warning(
            "%s holds no alpha; its rank, %d, is used (set alpha to change that)", lora.name, lora.config.rank
        )
    name = check_name(model, name or _free_name(model, Path(lora.path).stem))
    targets = {path: model.get_submodule(path) for path in lora.layers}
    _compare_base(model, lora)
    control = AdapterControl(name, lora.config, strength=float(strength), facts=dict(lora.facts))
    adapter = put_on(model, control, targets)
    _fill(adapter, lora)
    if trainable:
        model.requires_grad_(False)
    adapter.requires_grad_(trainable)
    try:
        adapter.interval = None if interval is None else (interval[0], interval[1])
        adapter.layer_filter = layers
    except ValueError:
        unload_lora(model, name)
        raise
    return adapter


def fill_lora(adapter: LoraAdapter, source: Source) -> None:
    """Fill an attached adapter from a file of the same type, ranks and layers; a different alpha changes no output."""
    lora = source if isinstance(source, LoraFile) else read_lora(source)
    lora = _renamed(lora, dict(adapter.layers()))
    ours, theirs = adapter.config.adapter_type, lora.config.adapter_type
    if ours != theirs:
        raise CheckpointError(f"{lora.path}: an adapter of type {theirs}, but one of type {ours} is to start from it")
    known = dict(adapter.layers())
    missing, unexpected = sorted(set(known) - set(lora.layers)), sorted(set(lora.layers) - set(known))
    if missing or unexpected:
        raise CheckpointError(
            f"{lora.path}: of the adapter's {len(known)} layers it has {len(known) - len(missing)}, lacks "
            f"{len(missing)}{_example(missing)} and has {len(unexpected)} others{_example(unexpected)}; include and "
            "exclude must be those that it was trained with"
        )
    for path, held in lora.layers.items():
        own = known[path].tensors()
        if set(own) != set(held):
            raise CheckpointError(
                f"{lora.path}: {path} holds {', '.join(sorted(held))}, and rank {known[path].rank} needs "
                f"{', '.join(sorted(own))}; set rank to {lora.config.rank}"
            )
        for factor, tensor in held.items():
            wanted = own[factor]
            if tensor.shape != wanted.shape:
                raise CheckpointError(
                    f"{lora.path}: {path}.{factor} has shape {list(tensor.shape)}, and rank {known[path].rank} needs "
                    f"{list(wanted.shape)}; set rank to {lora.config.rank}"
                )
    _fill(adapter, _rescaled(lora, known) if lora.knows_alpha else lora)


def save_lora(
    adapter: LoraAdapter,
    path: str | Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, object] | None = None,
    *,
    model: nn.Module | None = None,
    format: LoraFormat = "native",
) -> Path:
    """Write an adapter to a file. `dtype`: None as trained. `metadata`: base_name, trigger, step and the like.

    With `model`, the hash of its base weights is written too, by which a later load recognises the base.
    """
    return write_lora(as_file(adapter, str(path), metadata, model, format), path, dtype)


def as_file(
    adapter: LoraAdapter,
    path: str,
    metadata: Mapping[str, object] | None = None,
    model: nn.Module | None = None,
    format: LoraFormat = "native",
) -> LoraFile:
    """Return an attached adapter as the file that `save_lora` writes."""
    layers: Layers = {
        where: {name: tensor.detach() for name, tensor in factors.tensors().items()}
        for where, factors in adapter.layers()
    }
    facts = {**adapter.facts, **(metadata or {})}
    if model is not None:
        facts |= base_facts(model, adapter.targets)
    return LoraFile(path, format, layers, adapter.config, facts=facts)


def fit_to(model: nn.Module, lora: LoraFile) -> LoraFile:
    """Rename the layers to the paths of this model; anything but a complete fit by name and shape is an error."""
    known = adaptable_layers(model)
    fitted = _renamed(lora, known)
    matched = [path for path in fitted.layers if path in known]
    strange = [path for path in fitted.layers if path not in known]
    if strange:
        raise CheckpointError(
            f"{lora.path}: an adapter of another model: {len(matched)} of its {len(fitted.layers)} layers are matched, "
            f"{len(strange)} unexpected{_example(strange)}, {len(known) - len(matched)} of this model's layers missing"
        )
    wrong = [text for path in matched if (text := _misfit(fitted, path, known[path]))]
    if wrong:
        raise CheckpointError(
            f"{lora.path}: an adapter of a model of another size: {len(matched) - len(wrong)} of its {len(matched)} "
            f"layers fit, {len(wrong)} do not; {wrong[0]}"
        )
    return fitted


def _renamed(lora: LoraFile, known: Mapping[str, object]) -> LoraFile:
    """Rename the paths of the file to paths of the model, each by the first prefix that fits."""
    if lora.format == "comfyui":
        flat = {path.replace(".", "_"): path for path in known}
        names = {}
        for name in lora.layers:
            roots = [f"{root.replace('.', '_')}{name.removeprefix(COMFY_PREFIX)}" for root in _ROOTS]
            dotted = _rooted(name.removeprefix(COMFY_DOTTED), known) if name.startswith(COMFY_DOTTED) else None
            names[name] = dotted or next((flat[root] for root in roots if root in flat), name)
    else:
        names = {name: _rooted(name, known) for name in lora.layers}
    twice = [path for path, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise CheckpointError(
            f"{lora.path}: {len(twice)} layers of this model have two adapters in it{_example(twice)}"
        )
    return replace(lora, layers={names[name]: held for name, held in lora.layers.items()})


def _rooted(name: str, known: Mapping[str, object]) -> str:
    return next((root + name for root in _ROOTS if root + name in known), name)


def _misfit(lora: LoraFile, path: str, layer: nn.Module) -> str | None:
    if isinstance(layer, nn.Linear):  # whose weight may be packed
        rows, cols = layer.out_features, layer.in_features
    else:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        rows, cols = weight.shape[0], weight[0].numel()
    held = lora.layers[path]
    core = min(rank_of(path, lora.config), rows, cols)
    wanted = {
        "lora_A": (None, cols),
        "lora_B": (rows, None),
        "magnitude": (rows if lora.config.form.rows else cols,),
        "magnitude_r": (rows,),
        "magnitude_c": (cols,),
        "M_xs": (core, core),
        "hada_w1_a": (rows, None),
        "hada_w1_b": (None, cols),
        "hada_w2_a": (rows, None),
        "hada_w2_b": (None, cols),
    }
    if lora.config.form.product == "kronecker":
        sizes = kronecker_shape(held)
        if sizes == (rows, cols):
            return None
        return f"{path}: its factors make a matrix of {sizes[0]} x {sizes[1]}, and the layer's is {rows} x {cols}"
    for name, tensor in held.items():
        shape = wanted[name]
        if len(shape) != tensor.ndim or any(size not in (None, given) for size, given in zip(shape, tensor.shape)):
            return f"{path}.{name} has shape {list(tensor.shape)}, and the layer's weight is {rows} x {cols}"
        if name == "lora_A" and len(tensor) > min(rows, cols):
            return f"{path} has rank {len(tensor)}, and the layer's weight is {rows} x {cols}"
    return None


def _compare_base(model: nn.Module, lora: LoraFile) -> None:
    if not lora.facts.get("base_hashes") or same_weights(base_facts(model, lora.layers), lora.facts) is not False:
        return
    base = lora.facts.get("base_name") or "another model of the same shape"
    if lora.config.form.core:
        raise CheckpointError(
            f"{lora.path}: trained for the weights of {base}; an adapter of type {lora.config.adapter_type} is in "
            "their singular vectors and has no meaning on others"
        )
    logger.warning(
        "%s was trained for other weights (%s) of the same shape; it loads, but may act less well", lora.name, base
    )


def _rescaled(lora: LoraFile, known: Mapping[str, LoraFactors]) -> LoraFile:
    """Rescale the factors so that they change the weights equally under the scales of other factors."""
    layers: Layers = {}
    for path, held in lora.layers.items():
        last, ratio = output_factor(held), lora.scale(path) / known[path].scale
        layers[path] = {**held, last: held[last] if ratio == 1 else held[last] * ratio}
    return replace(lora, layers=layers)


def _fill(adapter: LoraAdapter, lora: LoraFile) -> None:
    for path, factors in adapter.layers():
        factors.fill(lora.layers[path])


def _free_name(model: nn.Module, stem: str) -> str:
    stem = stem.replace(".", "_") or "lora"
    taken = {factors.control.name for layer in adapted_layers(model).values() for factors in layer.factors()}
    names = (stem if count == 1 else f"{stem}_{count}" for count in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _example(paths: Sequence[str]) -> str:
    return f" ({paths[0]})" if paths else ""


_BELOW = {"model.": "model.", "conditioners.": "conditioner."}  # Stable Audio 3's paths begin inside the wrapper


def convert_lora(lora: LoraFile, target: LoraFormat, model: nn.Module | None = None) -> LoraFile:
    """Convert an adapter to another format. `model` resolves its names; only ComfyUI's underscores need one."""
    if model is not None:
        return replace(fit_to(model, lora), format=target)
    names = {name: name for name in lora.layers}
    if lora.format == "comfyui":
        flat = next((name for name in names if name.startswith(COMFY_PREFIX)), None)
        if flat is not None:
            raise CheckpointError(
                f"{lora.path}: ComfyUI's names ({flat}) do not show where a path is divided; give --model-config"
            )
        names = {name: f"model.model.{name.partition('.')[2]}" for name in names}
    elif lora.format == "sa3":
        for name in names:
            names[name] = next((root + name for start, root in _BELOW.items() if name.startswith(start)), name)
    return replace(lora, layers={names[name]: held for name, held in lora.layers.items()}, format=target)
