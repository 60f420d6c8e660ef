"""From a training checkpoint to a file that generates."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.config import ConfigError, load
from stable_audio_tools.models.checkpoints import export_weights, open_weights
from stable_audio_tools.models.pretrained import load_model

logger = logging.getLogger(__name__)


def unwrap(
    checkpoint: Path, target: Path, model_config: Path | None = None, ema: bool | None = None, half: bool = False
) -> None:
    """Write the model's own weights, then build the model from the new file: what does not load back is no export.

    `ema`: None takes averaged weights where there are some.
    """
    embedded = open_weights(checkpoint).model_config
    config = load(model_config) if model_config is not None else embedded
    if config is None:
        raise ConfigError(f"{checkpoint}: holds no model config; give it with --model-config")
    if embedded is not None and model_config is not None:
        _compare(embedded, config, model_config)
    export_weights(checkpoint, target, ema=ema, model_config=config, dtype=torch.float16 if half else None)
    load_model(config, target)
    logger.info("%s was loaded back and fits its config", target)


def _compare(embedded: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """The network must be the one that was trained; other sections may differ."""
    for key in ("model_type", "sample_rate", "model"):
        if _canonical(embedded.get(key)) != _canonical(given.get(key)):
            where = _first_difference(embedded.get(key), given.get(key), key)
            logger.warning("%s differs from the config inside the checkpoint at %s; the one given is used", path, where)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _first_difference(a: Any, b: Any, path: str) -> str:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}):
            if _canonical(a.get(key)) != _canonical(b.get(key)):
                return _first_difference(a.get(key), b.get(key), f"{path}.{key}")
    return path
