"""Checkpoints of an adapter's training: the adapter, its average and the state of the run, without the frozen base."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints.pickles import read_pickle
from stable_audio_tools.models.checkpoints.sharded import Checkpoint
from stable_audio_tools.models.lora import LoraAdapter, LoraFile, lora_config_from, same_weights

CHECKPOINT_KEY = "lora"  # key of the description; in the state dict, the prefix of the tensors
_PREFIX = f"{CHECKPOINT_KEY}."
_AVERAGE = "_ema.ema_model."


def describe(adapter: LoraAdapter, facts: JsonObject, step: int) -> JsonObject:
    """Return the description of the adapter in a checkpoint."""
    return {"config": adapter.config.model_dump(), "name": adapter.name, "facts": {**facts, "step": step}}


def is_of_adapter(checkpoint: Path) -> bool:
    """Return whether train_lora.py wrote a training checkpoint."""
    return checkpoint.is_file() and CHECKPOINT_KEY in read_pickle(checkpoint)


def check_resumed(checkpoint: Path, adapter: LoraAdapter, facts: JsonObject) -> None:
    """Refuse a checkpoint of another kind of run, of another base or of another adapter, before anything is changed."""
    content = read_pickle(checkpoint)
    if CHECKPOINT_KEY not in content:
        raise CheckpointError(f"{checkpoint}: not a checkpoint of train_lora.py; resume it with train.py")
    if same_weights(facts, content[CHECKPOINT_KEY]["facts"]) is False:
        base = content[CHECKPOINT_KEY]["facts"].get("base_name")
        raise CheckpointError(
            f"{checkpoint}: was trained on other base weights ({base}); give those with --pretrained-ckpt-path"
        )
    stored = {name: tuple(tensor.shape) for name, tensor in _adapter_tensors(content).items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    if stored != wanted:
        differing = sorted({name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name)})
        raise CheckpointError(
            f"{checkpoint}: holds another adapter ({len(differing)} tensors differ, the first {differing[0]}); resume "
            "with the type, rank and layers that the run began with"
        )


def adapter_in(checkpoint: Path, ema: bool | None = None) -> LoraFile | None:
    """Return the adapter of a training checkpoint, averaged if there is an average; None for checkpoints of other runs.

    `ema`: True requires the average, False takes the weights of the last step.
    """
    content = read_pickle(checkpoint) if checkpoint.is_file() and checkpoint.suffix == ".ckpt" else {}
    if CHECKPOINT_KEY not in content or "state_dict" not in content:
        return None
    about, tensors = content[CHECKPOINT_KEY], _adapter_tensors(content)
    averages = _averages(content["state_dict"], about["name"], tensors)
    if ema and not averages:
        raise CheckpointError(f"{checkpoint}: holds no averaged weights; leave --ema out")
    if ema is not False:
        tensors |= averages
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, factor = name.rpartition(".")
        layers.setdefault(path, {})[factor] = tensor
    return LoraFile(str(checkpoint), "native", layers, lora_config_from(about["config"]), facts=about["facts"])


def _adapter_tensors(content: Checkpoint) -> dict[str, Tensor]:
    state = content["state_dict"]
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}


def _averages(state: Mapping[str, Tensor], name: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return averages by the names of the adapter; an average of a part of the model has shorter paths."""
    found = {}
    for key, tensor in state.items():
        if _AVERAGE in key and f".lora_factors.{name}." in key:
            short = key.partition(_AVERAGE)[2].replace(f".lora_factors.{name}.", ".")
            found.update({full: tensor for full in wanted if full == short or full == f"model.{short}"})
    return found
