"""Pretrained parts by the name of their repository on the Hugging Face hub, or by a folder that holds the same files.

Files in the cache are read without network access.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stable_audio_tools.core.errors import UserError

logger = logging.getLogger(__name__)

CONFIG_FILES = ("config.json",)
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)
FEATURE_FILES = ("preprocessor_config.json", "processor_config.json")


def load_pretrained(loader: Any, name: str, files: Sequence[str], key: str, **options: Any) -> Any:
    """Call `loader.from_pretrained(name)` on a folder, the cache or the hub.

    One of `files` must exist: without them some loaders create an empty tokenizer instead of an error. `key` is the
    config key of the name, for messages. A `subfolder` among the options is a folder of the repository.
    """
    if options.get("subfolder"):
        files = [f"{options['subfolder']}/{file}" for file in files]
    name = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    present = _held_here(name, files)
    if Path(name).is_dir() and not present:
        raise UserError(f"{key}: folder {name!r} holds none of {', '.join(files)}")
    reason: Exception | None = None
    for local in (True, False) if present else (False,):
        try:
            if not local:
                logger.info("downloading %s (%s) from the Hugging Face hub", name, key)
            found = loader.from_pretrained(name, local_files_only=local, **options)
        except OSError as error:
            reason = error
            continue
        if present or _held_here(name, files):
            return found
    detail = str(reason).splitlines()[0] if reason is not None and str(reason) else f"it has none of {', '.join(files)}"
    raise UserError(
        f"{key}: cannot read {name!r} from a folder, the cache or the Hugging Face hub ({detail}). Check the name. "
        f"To work offline, run `hf download {name}` where there is a network and copy the cache (HF_HOME), or put the "
        f"files into a folder, and give its path as {key}; HF_HUB_OFFLINE=1 keeps from asking the network"
    ) from reason


def _held_here(name: str, files: Sequence[str]) -> bool:
    if Path(name).is_dir():
        return any((Path(name) / file).is_file() for file in files)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
    except HFValidationError:
        raise UserError(f"{name!r} is neither a folder nor the name of a repository on the Hugging Face hub") from None


def read_pretrained_config(name: str, key: str) -> dict[str, Any]:
    """Read the `config.json` of a folder or repository."""
    file = Path(name).expanduser() / CONFIG_FILES[0]
    if file.is_file():
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return config
    from transformers import AutoConfig

    found: dict[str, Any] = load_pretrained(AutoConfig, name, CONFIG_FILES, key).to_dict()
    return found


def in_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the keyword of `from_pretrained` for the type of the weights; transformers 5 renamed it."""
    from transformers import __version__

    return {"dtype" if int(__version__.split(".")[0]) >= 5 else "torch_dtype": dtype}


def only_shapes_wanted() -> bool:
    """Return True if parameters are created on the meta device, to be filled from a file."""
    probe = nn.Module()
    probe.register_parameter("probe", nn.Parameter(torch.empty(0)))
    return bool(probe.get_parameter("probe").is_meta)
