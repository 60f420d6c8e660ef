"""Adapter files: tensors by layer, and a header that describes them.

| format | a tensor's name | alpha |
|---|---|---|
| `native` | `model.model.transformer.layers.0.ff.ff.2.lora_A` | header |
| `sa3` | `model.transformer.layers.0.ff.ff.2.parametrizations.weight.0.lora_A` | header |
| `loraw` | `model/model/transformer/layers/0/ff/ff/2/lora_down.weight` | not in the file |
| `comfyui` | `lora_unet_transformer_layers_0_ff_ff_2.lora_down.weight` | a tensor per layer |

Paths of Stable Audio 3 begin below the wrapper (its backbone or its conditioner), ComfyUI's below the transformer.
A native file is a `.safetensors` file whose header holds, under `lora`, the type, rank, alpha, targets, base model with
the hash of its weights, trigger text, step and library version. It also holds `lora_config`, where Stable Audio 3
reads the type, rank and alpha.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.models.checkpoints import StoredWeights, open_weights
from stable_audio_tools.models.checkpoints.formats import CHECKSUM, checksum
from stable_audio_tools.models.lora.config import LoraConfig
from stable_audio_tools.models.lora.factors import FACTOR_NAMES, output_factor
from stable_audio_tools.models.lora.stored import (
    Layers,
    LoraFile,
    LoraFormat,
    check_shapes,
    config_of,
    header_config,
    native_header,
)

logger = logging.getLogger(__name__)

_FACTORS = "|".join(FACTOR_NAMES)
_SA3 = re.compile(rf"(?P<path>.+)\.parametrizations\.weight\.\d+\.(?P<factor>{_FACTORS})")
_NATIVE = re.compile(rf"(?P<path>.+)\.(?P<factor>{_FACTORS})")
_LORAW = re.compile(r"(?P<path>[^.]+)/(?P<factor>lora_down\.weight|lora_up\.weight|dora_mag\.weight|dora_mag\.bias)")
_COMFY = re.compile(
    r"(?P<path>(?:lora_unet_|lora_te_|diffusion_model\.).+)\."
    r"(?P<factor>lora_down\.weight|lora_up\.weight|lora_A\.weight|lora_B\.weight|dora_scale|alpha|"
    r"hada_w[12]_[ab]|lokr_w1|lokr_w2|lokr_w2_[ab])"
)
_PATTERNS: dict[LoraFormat, re.Pattern[str]] = {"sa3": _SA3, "loraw": _LORAW, "comfyui": _COMFY, "native": _NATIVE}
_OUR_NAMES = {
    "lora_down.weight": "lora_A",
    "lora_A.weight": "lora_A",
    "lora_up.weight": "lora_B",
    "lora_B.weight": "lora_B",
    "dora_mag.weight": "magnitude",
    "dora_scale": "magnitude",
}
_COMFY_NAMES = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}
_BACKBONE = "model.model."  # the transformer inside the wrapper of a conditional model
Header = dict[str, Mapping[str, Any]]  # by the keys `lora` and `lora_config`
COMFY_PREFIX, COMFY_DOTTED = "lora_unet_", "diffusion_model."


def parse(path: str, tensors: Mapping[str, Tensor], header: Header) -> LoraFile:
    """Recognise the format of a file by its tensor names, and read it."""
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    for format_name, pattern in _PATTERNS.items():
        found = {name: match for name in tensors if (match := pattern.fullmatch(name))}
        if not found:
            continue
        strange = [
            name for name in tensors if name not in found and not name.endswith(("lora_dropout_mask", ".U", ".V"))
        ]
        if strange:
            raise CheckpointError(
                f"{path}: an adapter file by {len(found)} of its names, but {strange[0]!r} and {len(strange) - 1} more "
                "are not an adapter's"
            )
        return _parse_as(format_name, path, {name: tensors[name] for name in found}, found, header)
    raise CheckpointError(
        f"{path}: not an adapter file: none of its {len(tensors)} tensors has an adapter's name (the first is "
        f"{next(iter(tensors))!r})"
    )


def assemble(lora: LoraFile) -> tuple[dict[str, Tensor], Header]:
    """Return tensors and header of a file in `lora.format`; the layers have our paths."""
    write = {"native": _as_native, "sa3": _as_sa3, "loraw": _as_loraw, "comfyui": _as_comfyui}[lora.format]
    return write(lora)


def _parse_as(
    format_name: LoraFormat,
    path: str,
    tensors: Mapping[str, Tensor],
    found: Mapping[str, re.Match[str]],
    header: Header,
) -> LoraFile:
    layers: Layers = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        where, factor = found[name]["path"], found[name]["factor"]
        if format_name == "loraw":
            where = where.replace("/", ".")
        if factor == "alpha":
            alphas[where] = float(tensor)
        elif factor != "dora_mag.bias":  # saved by LoRAW, which computes nothing with it
            layers.setdefault(where, {})[_OUR_NAMES.get(factor, factor)] = tensor
    if format_name in ("native", "sa3"):
        section = header.get("lora", {}).get("config") if format_name == "native" else header.get("lora_config")
        config = _settle_type(config_of(section, path), layers) if section else _guess_config(path, layers)
        said = isinstance(section, Mapping) and "alpha" in section
    else:
        config, said = _guess_config(path, layers), bool(alphas)
        if format_name == "loraw" and config.form.rows:
            config = config.model_copy(update={"scale_bias": True})
    facts = {k: v for k, v in header.get("lora", {}).items() if k not in ("config", "targets")}
    lora = LoraFile(path, format_name, _flat(layers), config, alphas, facts, said)
    return _with_common_alpha(lora) if alphas else lora


def _flat(layers: Layers) -> Layers:
    """Kernels laid flat to two axes, magnitudes to one."""
    return {
        path: {
            name: tensor.reshape(-1)
            if name.startswith("magnitude")
            else tensor
            if tensor.ndim < 2
            else tensor.flatten(1)
            for name, tensor in factors.items()
        }
        for path, factors in layers.items()
    }


def _settle_type(config: LoraConfig, layers: Layers) -> LoraConfig:
    """Correct the type of early Stable Audio 3 files, which say `dora` for both axes, from the shape of a magnitude."""
    if config.adapter_type not in ("dora-rows", "dora-rows-xs"):
        return config
    shapes = [factors["magnitude"].shape for factors in layers.values() if "magnitude" in factors]
    if any(len(shape) == 2 and shape[0] == 1 and shape[1] != 1 for shape in shapes):
        kind = config.adapter_type.replace("rows", "cols")
        return config.model_copy(update={"adapter_type": kind})
    return config


def _guess_config(path: str, layers: Layers) -> LoraConfig:
    """Infer type and rank from the tensors."""
    factors = next(iter(layers.values()))
    product = next((kind for kind, name in (("loha", "hada_w1_a"), ("lokr", "lokr_w1")) if name in factors), None)
    if product is not None:
        ranks = [rank for held in layers.values() if (rank := _stored_rank(held)) is not None]
        return config_of({"adapter_type": product, "rank": max(ranks, default=1)}, path)
    core = "-xs" if "M_xs" in factors else ""
    if "magnitude_r" in factors:
        kind = "bora"
    elif "magnitude" in factors:
        shape, up = factors["magnitude"].shape, factors.get("lora_B")
        across = len(shape) >= 2 and shape[0] == 1 and shape[1] != 1
        rows = up is None or shape.numel() == up.shape[0]
        kind = "dora-cols" if across or not rows else "dora-rows"
    else:
        kind = "lora"
    ranks = [len(held[name]) for held in layers.values() for name in ("lora_A", "M_xs") if name in held]
    if not ranks:
        raise CheckpointError(f"{path}: holds no lora_A or lora_down factors")
    return config_of({"adapter_type": kind + core, "rank": max(ranks)}, path)


def _with_common_alpha(lora: LoraFile) -> LoraFile:
    """Set one alpha where the scales of all layers (alpha / rank in ComfyUI) agree; fold them into B otherwise."""
    scales = {}
    for path, held in lora.layers.items():
        rank = _stored_rank(held)
        scales[path] = 1.0 if rank is None else lora.alphas.get(path, rank) / rank
    if len(set(scales.values())) == 1:
        return replace(lora.with_alpha(next(iter(scales.values())) * lora.config.rank), alphas={})
    layers = {}
    for path, held in lora.layers.items():
        last = output_factor(held)
        layers[path] = {**held, last: held[last] * scales[path]}
    return replace(lora.with_alpha(float(lora.config.rank)), layers=layers, alphas={})


def _stored_rank(factors: Mapping[str, Tensor]) -> int | None:
    """Return the rank of a layer's factors; None for a whole matrix, which programs do not scale by alpha / rank."""
    names = ("lora_A", "M_xs", "hada_w1_b", "lokr_w2_b")
    return next((len(factors[name]) for name in names if name in factors), None)


def _as_native(lora: LoraFile) -> tuple[dict[str, Tensor], Header]:
    tensors = {f"{path}.{name}": tensor for path, held in lora.layers.items() for name, tensor in held.items()}
    return tensors, {"lora": native_header(lora), "lora_config": header_config(lora.config)}


def _as_sa3(lora: LoraFile) -> tuple[dict[str, Tensor], Header]:
    if lora.config.form.product != "matrix":
        raise CheckpointError(f"{lora.path}: Stable Audio 3 has no adapters of type {lora.config.adapter_type}")
    _warn_of_biases(lora, "Stable Audio 3", scales=False)
    tensors = {}
    for path, held in lora.layers.items():
        below = path.removeprefix("model.").removeprefix("conditioner.")
        for name, tensor in held.items():
            tensors[f"{below}.parametrizations.weight.0.{name}"] = tensor
    return tensors, {"lora_config": header_config(lora.config)}


def _as_loraw(lora: LoraFile) -> tuple[dict[str, Tensor], Header]:
    """Fold the scale into the up factor, so that alpha equals rank: LoRAW's files hold no alpha."""
    _refuse(lora, ("lora", "dora-rows"), "LoRAW")
    _warn_of_biases(lora, "LoRAW", scales=True)
    tensors = {}
    for path, held in lora.layers.items():
        root = path.replace(".", "/")
        tensors[f"{root}/lora_down.weight"] = held["lora_A"]
        tensors[f"{root}/lora_up.weight"] = held["lora_B"] * lora.scale(path)
        if "magnitude" in held:
            tensors[f"{root}/dora_mag.weight"] = held["magnitude"][:, None]
            tensors[f"{root}/dora_mag.bias"] = torch.zeros_like(held["magnitude"])
    return tensors, {}


def _as_comfyui(lora: LoraFile) -> tuple[dict[str, Tensor], Header]:
    _refuse(lora, ("lora", "dora-rows", "loha", "lokr"), "ComfyUI")
    _warn_of_biases(lora, "ComfyUI", scales=False)
    tensors: dict[str, Tensor] = {}
    outside = [path for path in lora.layers if not path.startswith(_BACKBONE)]
    if outside:
        raise CheckpointError(
            f"{lora.path}: ComfyUI's format holds layers of the transformer alone, and this adapter has {outside[0]} "
            f"and {len(outside) - 1} more outside it"
        )
    for path, held in lora.layers.items():
        root = COMFY_PREFIX + path.removeprefix(_BACKBONE).replace(".", "_")
        rank = _stored_rank(held)
        if rank is None:
            tensors |= {f"{root}.lokr_w1": held["lokr_w1"], f"{root}.lokr_w2": held["lokr_w2"] * lora.scale(path)}
            continue
        tensors |= {f"{root}.{_COMFY_NAMES.get(name, name)}": tensor for name, tensor in held.items()}
        tensors[f"{root}.alpha"] = torch.tensor(lora.scale(path) * rank)
        if "magnitude" in held:
            tensors[f"{root}.dora_scale"] = tensors.pop(f"{root}.magnitude")[:, None]
    return tensors, {}


def _warn_of_biases(lora: LoraFile, program: str, scales: bool) -> None:
    if lora.config.form.rows and lora.config.scale_bias != scales:
        logger.warning(
            "%s: %s %s the biases of layers by the magnitudes, and this adapter %s; its output differs there in "
            "layers with a bias",
            lora.path,
            program,
            "scales" if scales else "does not scale",
            "does not" if scales else "does",
        )


def _refuse(lora: LoraFile, kinds: tuple[str, ...], program: str) -> None:
    if lora.config.adapter_type not in kinds:
        raise CheckpointError(
            f"{lora.path}: {program} has no adapters of type {lora.config.adapter_type}, only {' and '.join(kinds)}"
        )


def read_lora(path: str | Path, alpha: float | None = None) -> LoraFile:
    """Read an adapter of any known format. `alpha` is for files that do not hold it."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; name the adapter file in it")
    stored = open_weights(path)
    found = parse(stored.path, stored.tensors, _header(stored))
    check_shapes(found)
    return found if alpha is None else found.with_alpha(alpha)


def write_lora(lora: LoraFile, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write an adapter in the format `lora.format`, atomically."""
    path = Path(path)
    tensors, header = assemble(lora)
    if dtype is not None:
        tensors = {name: value.to(dtype) for name, value in tensors.items()}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".safetensors":
                from safetensors.torch import save_file

                metadata = {"format": "pt", **{key: json.dumps(value) for key, value in header.items()}}
                save_file(tensors, temporary, {**metadata, CHECKSUM: checksum(tensors, metadata)})
            elif path.suffix == ".ckpt":
                content = tensors if lora.format == "loraw" else {"state_dict": tensors, **header}
                with temporary.open("wb") as file:
                    torch.save(content, file)
            else:
                raise CheckpointError(
                    f"{path}: unknown suffix {path.suffix!r}; adapters are .safetensors or .ckpt files"
                )
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({error})") from error
    return path


def describe_lora(path: str | Path) -> str:
    """Describe an adapter file in a few lines."""
    lora = read_lora(path)
    config, facts = lora.config, dict(lora.facts)
    size = sum(t.numel() * t.element_size() for held in lora.layers.values() for t in held.values())
    kinds = sorted({str(t.dtype).removeprefix("torch.") for held in lora.layers.values() for t in held.values()})
    alpha = f"{config.alpha or config.rank:g}" if lora.knows_alpha else f"not in the file, taken as {config.rank}"
    ranks = "".join(f", {rank} at {pattern!r}" for pattern, rank in config.ranks.items())
    lines = [
        f"{lora.name}: an adapter of type {config.adapter_type} in {_NOUNS[lora.format]}",
        f"rank {config.rank}{ranks}, alpha {alpha}",
        f"{len(lora.layers)} layers, {lora.num_parameters:,} values, {size / 2**20:.2f} MiB, {', '.join(kinds)}",
    ]
    shown = {key: value for key, value in facts.items() if value not in (None, "", {})}
    lines += [f"{key.replace('_', ' ')}: {_format_fact(value)}" for key, value in shown.items()]
    names = list(lora.layers)
    lines += [f"  {name}" for name in names[:5]] + ([f"  and {len(names) - 5} more"] if len(names) > 5 else [])
    return "\n".join(lines)


_NOUNS = {
    "native": "this package's format",
    "loraw": "LoRAW's format",
    "sa3": "Stable Audio 3's format",
    "comfyui": "ComfyUI's format",
}


def _header(stored: StoredWeights) -> Header:
    """Read the header: JSON in a safetensors file, objects in a .ckpt."""
    header: Header = {}
    for key in ("lora", "lora_config"):
        value = stored.extra.get(key)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise CheckpointError(
                    f"{stored.path}: {key!r} in its header is not JSON; the file is damaged"
                ) from None
        if isinstance(value, Mapping):
            header[key] = value
    return header


def _format_fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
