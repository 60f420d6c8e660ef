"""Tensors and files of parametrised adapters, under the names of stable-audio-tools 0.0.20."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.models.lora.parametrization import (
    LoRAParametrization,
    add_lora,
    get_lora_layers,
    layer_config,
)

_TRAINED = ("lora_A", "lora_B", "M_xs", "magnitude", "magnitude_r", "magnitude_c")
_PRECISIONS = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}
_CONDITIONED = ("diffusion_cond", "diffusion_cond_inpaint")


def name_is_lora(name: str) -> bool:
    """Return whether a state-dict name belongs to a trained tensor of an adapter."""
    parts = name.split(".")
    return len(parts) >= 4 and parts[-4] == "parametrizations" and parts[-1] in _TRAINED


def get_lora_params(model: nn.Module, print_shapes: bool = False) -> Iterator[nn.Parameter]:
    """Return the trained tensors of all adapters; `print_shapes` has no effect."""
    return (parameter for name, parameter in model.named_parameters() if name_is_lora(name))


def get_bias_params(model: nn.Module, print_shapes: bool = False) -> Iterator[nn.Parameter]:
    """Return all biases; `print_shapes` has no effect."""
    return (parameter for name, parameter in model.named_parameters() if name.rpartition(".")[2] == "bias")


def get_lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained tensors of all adapters by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if name_is_lora(name)}


def apply_to_lora(fn: Callable[[LoRAParametrization], object]) -> Callable[[nn.Module], None]:
    """Return a function for `Module.apply` that calls `fn` with adapters alone."""

    def apply(layer: nn.Module) -> None:
        if isinstance(layer, LoRAParametrization):
            fn(layer)

    return apply


def cast_base_to_precision(model: nn.Module, precision: str) -> None:
    """Cast a model to a half precision and its adapters back to float32."""
    if precision not in _PRECISIONS:
        raise UserError(f"base_precision is {precision!r}; allowed: {', '.join(_PRECISIONS)}")
    model.to(_PRECISIONS[precision])
    for parameter in get_lora_params(model):
        parameter.data = parameter.data.float()


def detect_dora_variant(state_dict: Mapping[str, Tensor]) -> str | None:
    """Return the axis of the magnitudes of an old file, `dora-cols` or `dora-rows`; None if they are vectors."""
    for name, value in state_dict.items():
        if name.endswith(".magnitude"):
            if value.ndim != 2:
                return None
            return "dora-cols" if len(value) == 1 else "dora-rows"
    return None


def resolve_adapter_type(adapter_type: str, state_dict: Mapping[str, Tensor] | None = None) -> str:
    """Return the type that `dora` stands for in a file: along rows unless its magnitudes say columns."""
    if adapter_type != "dora":
        return adapter_type
    return detect_dora_variant(state_dict or {}) or "dora-rows"


def prepare_dora_state_dict(state_dict: dict[str, Tensor]) -> None:
    """Flatten the magnitudes of old files, in place."""
    for name, value in state_dict.items():
        if name.endswith(".magnitude") and value.ndim == 2:
            state_dict[name] = value.flatten()


def remap_lora_state_dict(state_dict: Mapping[str, Tensor], target_index: int) -> dict[str, Tensor]:
    """Rename the tensors of the first adapter of each layer to those of another."""
    first, other = ".parametrizations.weight.0.", f".parametrizations.weight.{target_index}."
    return {name.replace(first, other): value for name, value in state_dict.items()}


def infer_global_rank(lora_sd: Mapping[str, Tensor]) -> int:
    """Return the rank of the tensors of a file."""
    for name, value in lora_sd.items():
        if name.endswith((".lora_A", ".M_xs")):
            return len(value)
        if name.endswith(".lora_B"):
            return value.shape[1]
    raise UserError("these tensors hold no adapter: there is no lora_A, lora_B or M_xs among them")


def load_multiple_lora(model: nn.Module, lora_state_dicts: Sequence[Mapping[str, Tensor]]) -> nn.Module:
    """Load several sets of tensors of one adapter, among which `select_lora` chooses."""
    adapters = [adapter for _, adapter in get_lora_layers(model)]
    slots: list[list[dict[str, nn.Parameter]]] = [[] for _ in adapters]
    for state in lora_state_dicts:
        model.load_state_dict(dict(state), strict=False)
        for adapter, kept in zip(adapters, slots):
            kept.append({name: nn.Parameter(value.detach().clone()) for name, value in adapter.named_parameters()})
    for adapter, kept in zip(adapters, slots):
        adapter._multi_lora_slots = kept  # type: ignore[assignment]
    return model


def select_lora(model: nn.Module, index: int) -> nn.Module:
    """Use one of the sets that `load_multiple_lora` loaded."""
    for _, adapter in get_lora_layers(model):
        for name, value in adapter._multi_lora_slots[index].items():  # type: ignore[index, union-attr]
            setattr(adapter, name, value)
    return model


def save_lora_safetensors(
    state_dict: Mapping[str, Tensor], lora_config: Mapping[str, object], path: str | Path
) -> None:
    """Write an adapter in half precision with its settings."""
    from safetensors.torch import save_file

    halved = {name: value.half() if value.is_floating_point() else value for name, value in state_dict.items()}
    save_file(
        {name: value.contiguous() for name, value in halved.items()},
        str(path),
        metadata={"lora_config": json.dumps(dict(lora_config))},
    )


def load_lora_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read tensors and settings of an adapter file, `.safetensors` or a training checkpoint."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such adapter file")
    if Path(path).suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        return tensors, json.loads(metadata.get("lora_config", "{}"))
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if "state_dict" not in checkpoint:
        raise UserError(f"{path}: not an adapter checkpoint, it has no state_dict")
    return dict(checkpoint["state_dict"]), dict(checkpoint.get("lora_config", {}))


def convert_lora_ckpt_to_safetensors(ckpt_path: str | Path, output_path: str | Path | None = None) -> str:
    """Write a training checkpoint of an adapter as `.safetensors`, beside it if no path is given."""
    target = Path(ckpt_path).with_suffix(".safetensors") if output_path is None else Path(output_path)
    save_lora_safetensors(*load_lora_checkpoint(ckpt_path), target)
    return str(target)


def load_and_apply_loras(
    model: nn.Module,
    lora_ckpt_paths: Sequence[str | Path],
    model_type: str,
    svd_bases_path: str | Path | None = None,
) -> list[str]:
    """Add the adapters of files to a model, one on top of the other; return their names.

    Diffusion models with conditions get them on the network and on the conditioners. `svd_bases_path` is a file of
    singular vectors for the -xs types, which are otherwise computed.
    """
    parts = {"model.": model.get_submodule("model"), "conditioner.": model.get_submodule("conditioner")}
    if model_type not in _CONDITIONED:
        parts = {"": model}
    stored = {} if svd_bases_path is None else torch.load(svd_bases_path, map_location="cpu", weights_only=True)
    names = []
    for index, path in enumerate(lora_ckpt_paths):
        state, settings = load_lora_checkpoint(path)
        kind = resolve_adapter_type(str(settings.get("adapter_type", "lora")), state)
        rank = _number(path, settings, "rank", infer_global_rank(state))
        config = layer_config(int(rank), _number(path, settings, "alpha", rank), kind, index)
        include, exclude = (_patterns(path, settings, key) for key in ("include", "exclude"))
        prepare_dora_state_dict(state)
        state = {_parametrized_name(name): value for name, value in state.items()}
        state = remap_lora_state_dict(state, index)
        unused = set(state)
        for prefix, part in parts.items():
            bases = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
            add_lora(part, config, include, exclude, bases if kind.endswith("-xs") else None)
            known = set(get_lora_state_dict(part))
            # Files written here name layers by their place in the whole model, published ones by that in the part.
            places = {name: name if name in known else name.removeprefix(prefix) for name in state}
            used = {place: state[name] for name, place in places.items() if place in known}
            part.load_state_dict(used, strict=False)
            unused -= {name for name, place in places.items() if place in known}
        if len(unused) == len(state):
            raise UserError(f"{path}: none of its tensors belongs to a layer of this model; it is for another model")
        names.append(Path(path).stem)
    model.use_lora, model.lora_names = bool(names), names  # type: ignore[assignment]
    return names


def _parametrized_name(name: str) -> str:
    """Return the published name of a tensor; files written here leave the parametrisation out."""
    layer, _, factor = name.rpartition(".")
    return name if ".parametrizations." in name else f"{layer}.parametrizations.weight.0.{factor}"


def _number(path: str | Path, settings: Mapping[str, object], key: str, default: float) -> float:
    value = settings.get(key, default)
    if not isinstance(value, int | float):
        raise UserError(f"{path}: {key} of its lora_config is {value!r}; expected a number")
    return value


def _patterns(path: str | Path, settings: Mapping[str, object], key: str) -> list[str] | None:
    value = settings.get(key)
    if value is None:
        return None
    if not isinstance(value, list):
        raise UserError(f"{path}: {key} of its lora_config is {value!r}; expected a list of parts of names")
    return [str(pattern) for pattern in value]
