"""The run of `train_lora.py`: the model is frozen and carries an adapter, which alone is trained."""

import logging
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.lora import (
    LoraAdapter,
    attach_lora,
    base_facts,
    fill_lora,
    lora_config_from,
    read_lora,
)
from stable_audio_tools.training.callbacks.adapters import AdapterCheckpoints, AdapterDemos, AdapterFiles, AdapterGuard
from stable_audio_tools.training.lora_checkpoint import CHECKPOINT_KEY, check_resumed
from stable_audio_tools.training.memory import MemoryEstimate
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.run import Recipe, build_model, fit
from stable_audio_tools.training.settings import LoraSettings, TrainSettings

logger = logging.getLogger(__name__)

DEFAULT_RATE = 1e-4
ADAPTERS = "adapters"  # folder of a run


def fit_lora(settings: LoraSettings) -> Path:
    """Train an adapter, and return the run folder."""
    if not settings.pretrained_ckpt_path:
        raise ConfigError("--pretrained-ckpt-path: missing; an adapter is trained on the weights of a model")
    if not (settings.strategy == "auto" or settings.strategy.startswith("ddp")):
        raise ConfigError(f"--strategy {settings.strategy}: an adapter is too small to be divided; use auto or ddp")
    return fit(settings, LoraRecipe(settings))


class LoraRecipe(Recipe):
    """A frozen base with an adapter on it."""

    def __init__(self, settings: LoraSettings) -> None:
        self.settings = settings
        self.model: nn.Module
        self.adapter: LoraAdapter
        self.facts: JsonObject

    def model_config(self, config: JsonObject) -> JsonObject:
        if "arc" in (config.get("training") or {}):
            raise ConfigError("training.arc: adapters are not trained adversarially; leave the section out")
        section = self.settings.lora_section({**self._section_of_file(config), **(config.get("lora") or {})})
        lora = lora_config_from(section)
        return {**config, "lora": section, "training": with_rate(config, lora.lr)}

    def build(self, settings: TrainSettings, config: JsonObject, resumed: Path | None) -> nn.Module:
        # No checkpoint of such a run holds the base.
        self.model = build_model(settings, config, resuming=False)
        lora = lora_config_from(config["lora"])
        _check_precision(lora.base_precision, settings)
        self.adapter = attach_lora(self.model, lora, seed=settings.seed)
        self.facts = {"base_name": _name_of(settings.pretrained_ckpt_path)}
        self.facts |= base_facts(self.model, self.adapter.targets)
        if self.settings.trigger_text:
            self.facts["trigger"] = self.settings.trigger_text
        if resumed is not None:
            check_resumed(resumed, self.adapter, self.facts)
        elif self.settings.lora_ckpt_path:
            fill_lora(self.adapter, self.settings.lora_ckpt_path)
        _log_size(self.adapter, self.model)
        return self.model

    def prepare(self, wrapper: TrainingModule, folder: Path) -> list[pl.Callback]:
        wrapper.add_module(CHECKPOINT_KEY, self.adapter)
        prefix = next(name for name, module in wrapper.named_modules() if module is self.model)
        settings = self.settings
        return [
            MemoryEstimate(settings.batch_size),
            AdapterGuard(self.adapter),
            AdapterDemos(self.adapter),
            AdapterCheckpoints(self.adapter, f"{prefix}.", self.facts),
            AdapterFiles(self.adapter, folder / ADAPTERS, settings.adapter_every, settings.keep_adapters, self.facts),
        ]

    def next_command(self, folder: Path, checkpoint: Path) -> str:
        adapters = sorted((folder / ADAPTERS).glob("step_*.safetensors"))
        base = f"--model-config {self.settings.model_config} --ckpt-path {self.settings.pretrained_ckpt_path}"
        return f"python generate.py {base} --lora {adapters[-1] if adapters else checkpoint}"

    def _section_of_file(self, config: JsonObject) -> JsonObject:
        """Return the section of the adapter file to continue from, without what the config replaces."""
        if not self.settings.lora_ckpt_path:
            return {}
        stored = read_lora(self.settings.lora_ckpt_path).config.model_dump(exclude_defaults=True)
        given = config.get("lora") or {}
        if "component_whitelist" in given:
            stored.pop("include", None)
        if "weight_decompose" in given:
            stored.pop("adapter_type", None)
        return stored


def with_rate(config: JsonObject, rate: float | None) -> JsonObject:
    """Return the `training` section with the rate of the adapter, if it has one, in the optimiser of the model."""
    training = dict(config.get("training") or {})
    optimizers = training.get("optimizer_configs")
    if optimizers is None:
        return {**training, "learning_rate": rate or training.get("learning_rate") or DEFAULT_RATE}
    if rate is None:
        return training
    changed = {}
    for name, node in optimizers.items():
        optimizer = node.get("optimizer")
        if name != "discriminator" and isinstance(optimizer, dict):
            node = {**node, "optimizer": {**optimizer, "config": {**(optimizer.get("config") or {}), "lr": rate}}}
        changed[name] = node
    return {**training, "optimizer_configs": changed}


def _check_precision(base: str | None, settings: TrainSettings) -> None:
    """Factors and activations are float32; only mixed precision lets them meet weights of another type."""
    mixed = settings.precision == "16" or settings.precision.endswith("mixed")
    automatic = settings.precision == "auto" and settings.accelerator != "cpu" and torch.cuda.is_available()
    if base not in (None, "fp32") and not (mixed or automatic):
        raise ConfigError(f"--precision {settings.precision}: a base in {base} needs mixed precision, as bf16-mixed")


def _name_of(path: str) -> str:
    """Return the name of a file, or of its folder if the file has the usual name."""
    file = Path(path)
    return file.parent.name if file.stem == "model" and file.parent.name else file.name


def _log_size(adapter: LoraAdapter, model: nn.Module) -> None:
    trained = adapter.num_parameters
    base = sum(parameter.numel() for parameter in model.parameters()) - trained
    logger.info(
        "adapter of type %s, rank %d: %s values on %d layers, %.2f %% of the base's %s",
        adapter.config.adapter_type,
        adapter.config.rank,
        f"{trained:,}",
        len(adapter.targets),
        100 * trained / base,
        f"{base:,}",
    )
