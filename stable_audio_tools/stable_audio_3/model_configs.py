"""Short names of the published models, and the repositories that hold them."""

from dataclasses import dataclass
from pathlib import Path

_FILES = ("model_config.json", "model.safetensors")


@dataclass(frozen=True)
class ModelConfig:
    """A repository on the Hugging Face hub with a config and weights.

    `holders` are repositories of whole models that hold the same autoencoder; one that was downloaded before is used.
    """

    repo_id: str
    config_path: str = _FILES[0]
    ckpt_path: str = _FILES[1]
    holders: tuple[str, ...] = ()

    def resolve(self) -> tuple[str, str]:
        """Local paths of config and weights, downloaded if they are not in the cache."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        for repository in self.holders:
            cached = [try_to_load_from_cache(repository, name) for name in (self.config_path, self.ckpt_path)]
            if all(isinstance(path, str) and Path(path).is_file() for path in cached):
                return str(cached[0]), str(cached[1])
        return hf_hub_download(self.repo_id, self.config_path), hf_hub_download(self.repo_id, self.ckpt_path)


_SIZES = ("small-music", "small-sfx", "medium")
models = {name: ModelConfig(f"stabilityai/stable-audio-3-{name}") for size in _SIZES for name in (size, f"{size}-base")}
ae_models = {
    "same-s": ModelConfig(
        "stabilityai/SAME-S", holders=tuple(models[name].repo_id for name in ("small-music", "small-sfx"))
    ),
    "same-l": ModelConfig("stabilityai/SAME-L", holders=(models["medium"].repo_id,)),
}
base_models = {name: config for name, config in models.items() if name.endswith("-base")}
all_models = {**models, **ae_models}
