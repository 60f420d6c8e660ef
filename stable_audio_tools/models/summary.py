"""Summary of a model config: parameters per part, latent rate and memory, computed on the meta device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.factory import ModelFile, check_model_config

_GIB, _MIB = 2**30, 2**20


def summarise_model_config(config: Mapping[str, Any]) -> JsonObject:
    """Return the facts that `stable-audio-tools check` prints; one ConfigError lists every mistake of the config."""
    top, part = check_model_config(config)
    try:
        with torch.device("meta"):
            model = part.build(sample_rate=top.sample_rate, model_type=top.model_type)
    except ValueError as error:
        raise ConfigError(f"model: cannot be built ({error})") from error
    problem = _channel_problem(model, top)
    if problem is not None:
        raise ConfigError(problem)
    counts = {name: count_parameters(child) for name, child in model.named_children()}
    summary: JsonObject = {
        "model type": top.model_type,
        "sample rate": f"{top.sample_rate} Hz",
        "parameters": {"total": count_parameters(model), **{k: v for k, v in counts.items() if v}},
    }
    owners = (model, getattr(model, "pretransform", None))
    ratio = next((found for owner in owners if isinstance(found := getattr(owner, "downsampling_ratio", None), int)), 0)
    if ratio:
        summary["latent rate"] = f"{top.sample_rate / ratio:.2f} Hz (one latent frame per {ratio} samples)"
    if top.sample_size:
        window = f"{top.sample_size} samples, {top.sample_size / top.sample_rate:.2f} s"
        summary["window"] = f"{window}, {top.sample_size // ratio} latent frames" if ratio else window
    summary["memory"] = memory_estimate(model, top.training or {})
    return summary


def _channel_problem(model: nn.Module, top: ModelFile) -> str | None:
    """Compare the channels that the data loader delivers in training with those that the model takes."""
    training = top.training
    if training is None or training.get("pre_encoded") or training.get("force_input_mono"):
        return None
    codec: Any = getattr(model, "pretransform", None)
    owner: Any = model if codec is None else codec
    taken = model.audio_channels if hasattr(model, "audio_channels") else getattr(owner, "io_channels", None)
    if taken is None:
        return None
    if taken == top.audio_channels:
        return None
    return f"audio_channels: is {top.audio_channels}, but the model takes audio of {taken} channels; use {taken}"


def count_parameters(module: nn.Module) -> int:
    """Count parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_tensors(module: nn.Module) -> int:
    """Count parameters and buffers."""
    return count_parameters(module) + sum(buffer.numel() for buffer in module.buffers())


def memory_estimate(model: nn.Module, training: JsonObject) -> dict[str, str]:
    """Estimate the memory of the weights; activations need more, which grows with batch and window.

    Training holds float32 weights, and for each trained parameter a gradient, two Adam moments and, with averaging, a
    copy.
    """
    total = count_parameters(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    copies = 3 + bool(training.get("use_ema", True))
    return {
        "inference, float16": _format_bytes(2 * total),
        "inference, float32": _format_bytes(4 * total),
        "training, before activations": _format_bytes(4 * total + 4 * copies * trained),
    }


def _format_bytes(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / _MIB:.1f} MiB"
