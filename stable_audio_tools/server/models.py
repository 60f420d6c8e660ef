"""Models that a server offers: where each comes from, what it accepts, and which are in memory."""

import gc
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stable_audio_tools.core.config import load as load_json
from stable_audio_tools.core.errors import CheckpointError, UserError

if TYPE_CHECKING:
    from stable_audio_tools.inference.generation.facts import ModelFacts
    from stable_audio_tools.inference.generation.model import AudioModel

_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class ServedModel:
    """A model by its name on this server."""

    name: str
    model: str
    weights: str | None = None
    adapters: tuple[tuple[str, float], ...] = ()  # files and their strengths

    def facts(self) -> "ModelFacts":
        """Read the config of the model, without its weights."""
        from stable_audio_tools.inference.generation.facts import facts_of
        from stable_audio_tools.inference.generation.model import find_config
        from stable_audio_tools.models.checkpoints import open_weights
        from stable_audio_tools.models.checkpoints.formats import CONFIG_NAME
        from stable_audio_tools.models.pretrained import fetch_from_hub

        path = Path(self.model).expanduser()
        if not path.exists():
            if path.suffix == ".json" or path.suffix in _SUFFIXES:
                raise UserError(f"{self.model}: no such file")
            return facts_of(load_json(fetch_from_hub(self.model, CONFIG_NAME)))
        config = find_config(path, self.weights)
        if config is None:
            config = open_weights(path).model_config
        if config is None:
            raise CheckpointError(f"{path}: no model config is stored with these weights; write CONFIG.json,{path}")
        return facts_of(config)

    @property
    def file_bytes(self) -> int | None:
        """Size of the weights on disk; None if they are not here."""
        path = Path(self.weights or self.model).expanduser()
        files = [file for file in path.iterdir() if file.suffix in _SUFFIXES] if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files) if files and all(file.is_file() for file in files) else None


def read_source(text: str) -> ServedModel:
    """Read `[NAME=]MODEL[,WEIGHTS]`: a folder, a name on the Hub, a weight file, or a config with its weights."""
    name, equals, rest = text.partition("=")
    if not equals:
        name, rest = "", text
    model, _, weights = rest.partition(",")
    if not model or (equals and not name):
        raise UserError(f"{text}: expected a model, as [NAME=]MODEL[,WEIGHTS]")
    if model.endswith(".json") and not weights:
        raise UserError(f"{text}: a config alone has no weights; write {model},WEIGHTS")
    path = Path(model)
    is_file = path.suffix in (".json", *_SUFFIXES)
    return ServedModel(name or (path.stem if is_file else path.name), model, weights or None)


class ModelPool:
    """Loaded models, of which the ones used longest ago leave when `most_bytes` would be exceeded."""

    def __init__(
        self, sources: Mapping[str, ServedModel], device: str | None, precision: str, most_bytes: float
    ) -> None:
        self._sources, self._device, self._precision, self._most_bytes = sources, device, precision, most_bytes
        self._loaded: OrderedDict[str, AudioModel] = OrderedDict()
        self._bytes: dict[str, int] = {}

    def get(self, name: str) -> "AudioModel":
        """Return a model, loaded if necessary."""
        if name not in self._loaded:
            source = self._sources[name]
            needed = self._bytes.get(name, source.file_bytes or 0)
            while self._loaded and sum(self._bytes[other] for other in self._loaded) + needed > self._most_bytes:
                self._evict()
            self._loaded[name] = self._load(source)
            self._bytes[name] = sum(
                tensor.nbytes for tensor in self._loaded[name].module.state_dict(keep_vars=True).values()
            )
        self._loaded.move_to_end(name)
        return self._loaded[name]

    @property
    def names(self) -> list[str]:
        """Names of the loaded models, the one used last at the end."""
        return list(self._loaded)

    def _load(self, source: ServedModel) -> "AudioModel":
        from stable_audio_tools.inference.generation.model import load

        model = load(source.model, source.weights, self._device, precision=self._precision)
        for path, strength in source.adapters:
            model.load_lora(path, strength)
        return model

    def _evict(self) -> None:
        import torch

        self._loaded.popitem(last=False)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
