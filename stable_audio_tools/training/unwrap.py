"""Export of training checkpoints: to a model, to an adapter, or to a model with merged adapters."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from stable_audio_tools.core.config import load
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.checkpoints import export_weights, open_weights, save_weights
from stable_audio_tools.models.lora import LoraFile, load_lora, merge_lora, write_lora
from stable_audio_tools.models.pretrained import load_model
from stable_audio_tools.training.lora_checkpoint import adapter_in

logger = logging.getLogger(__name__)


def unwrap(
    checkpoint: Path, target: Path, model_config: Path | None = None, ema: bool | None = None, half: bool = False
) -> None:
    """Write the weights of the model, then check that the new file loads back.

    `ema`: None takes averaged weights if there are any.
    """
    config = _config(checkpoint, model_config)
    export_weights(checkpoint, target, ema=ema, model_config=config, dtype=torch.float16 if half else None)
    load_model(config, target)
    logger.info("%s was loaded back and fits its config", target)


def unwrap_adapter(lora: LoraFile, target: Path, half: bool = False) -> None:
    """Write the adapter of a checkpoint to a file."""
    write_lora(lora, target, torch.float16 if half else None)
    logger.info("%s: %d layers, %s values", target, len(lora.layers), f"{lora.num_parameters:,}")


def unwrap_merged(
    checkpoint: Path,
    target: Path,
    adapters: Sequence[tuple[Path, float]],
    base: Path | None = None,
    model_config: Path | None = None,
    ema: bool | None = None,
    half: bool = False,
) -> None:
    """Write a model with merged adapters: the one of the checkpoint, and those in files, each at its strength.

    `base`: weights of the model, where the checkpoint holds an adapter alone.
    """
    own = adapter_in(checkpoint, ema)
    if own is not None and base is None:
        raise ConfigError(f"{checkpoint}: holds an adapter alone; give the weights of its model with --base-ckpt-path")
    if own is None and base is not None:
        raise ConfigError(f"--base-ckpt-path: {checkpoint} holds the whole model; leave it out")
    if own is None and not adapters:
        raise ConfigError(f"--merge-lora: {checkpoint} holds no adapter; name the file of one")
    config = _config(checkpoint, model_config)
    model = load_model(config, base or checkpoint, ema=None if base else ema)
    sources: list[tuple[LoraFile | Path, float]] = [*([] if own is None else [(own, 1.0)]), *adapters]
    for source, strength in sources:
        load_lora(model, source, strength)
    merge_lora(model)
    merged = [f"{Path(s.path if isinstance(s, LoraFile) else s).name}:{strength:g}" for s, strength in sources]
    origin = {"source": (base or checkpoint).name, "adapters": ", ".join(merged)}
    save_weights(model, target, model_config=config, provenance=origin, dtype=torch.float16 if half else None)
    logger.info("%s: %s in the weights of %s", target, origin["adapters"], origin["source"])


def _config(checkpoint: Path, model_config: Path | None) -> JsonObject:
    """Return the given config, or the one inside the checkpoint."""
    embedded = open_weights(checkpoint).model_config
    config = load(model_config) if model_config is not None else embedded
    if config is None:
        raise ConfigError(f"{checkpoint}: holds no model config; give it with --model-config")
    if embedded is not None and model_config is not None:
        # The network must be the one that was trained; other sections may differ.
        for key in ("model_type", "sample_rate", "model"):
            if _canonical(embedded.get(key)) != _canonical(config.get(key)):
                where = _first_difference(embedded.get(key), config.get(key), key)
                logger.warning(
                    "%s differs from the config inside the checkpoint at %s; the given one is used", model_config, where
                )
    return config


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _first_difference(a: object, b: object, path: str) -> str:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}):
            if _canonical(a.get(key)) != _canonical(b.get(key)):
                return _first_difference(a.get(key), b.get(key), f"{path}.{key}")
    return path
