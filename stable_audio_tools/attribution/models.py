"""The model to differentiate, in evaluation mode, and the preparation of its samples."""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.attribution.items import AudioShape, Form
from stable_audio_tools.attribution.keyed_random import keyed_encoding
from stable_audio_tools.attribution.task import AttributedSample, DiffusionTask, FeatureRecipe, NoiseLevelLaw, loss
from stable_audio_tools.core.config import load
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.devices import autocast, pick_device
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.loader import Item
from stable_audio_tools.models.autoencoders.weight_norm import remove_weight_norm_from_model
from stable_audio_tools.models.checkpoints import load_into
from stable_audio_tools.models.diffusion import ConditionedDiffusionModelWrapper, DiffusionModelWrapper, DiTWrapper
from stable_audio_tools.models.lora import attached_loras, load_lora
from stable_audio_tools.models.padding import padding_masks
from stable_audio_tools.models.pretrained import load_model
from stable_audio_tools.models.transformer.continuous import recomputing_modules

ADAPTERS = r"\.lora_factors\."  # matches the names of all adapter parameters


@dataclass(frozen=True)
class ModelSource:
    """Files of a model."""

    model_config: str
    pretrained_ckpt_path: str
    pretransform_ckpt_path: str | None = None
    remove_pretransform_weight_norm: str = "none"
    device: str = "auto"
    lora: tuple[str | Path, float] | None = None  # an adapter file, and its strength


class AttributedModel:
    """A diffusion model with the operations that features need."""

    def __init__(self, model: nn.Module, config: JsonObject, device: torch.device) -> None:
        if not isinstance(model, ConditionedDiffusionModelWrapper | DiffusionModelWrapper):
            raise ConfigError(
                f"model_type: attribution needs a diffusion model (diffusion_cond, diffusion_cond_inpaint, "
                f"diffusion_uncond), not {config.get('model_type')!r}"
            )
        self.model = model.to(device).eval().requires_grad_(False)
        self.config, self.device = config, device
        self.training: JsonObject = config.get("training") or {}

    @classmethod
    def load(cls, source: ModelSource) -> "AttributedModel":
        """Load the model, with averaged weights if the file has some, as in generation and `unwrap_model.py`."""
        config, device = load(source.model_config), pick_device(source.device)
        model = load_model(config, source.pretrained_ckpt_path, ema=None)
        pretransform: Any = getattr(model, "pretransform", None)
        flags = source.remove_pretransform_weight_norm != "none", source.pretransform_ckpt_path is not None
        if any(flags) and pretransform is None:
            raise ConfigError(
                "--pretransform-ckpt-path, --remove-pretransform-weight-norm: the model has no pretransform"
            )
        if source.remove_pretransform_weight_norm == "pre_load":
            remove_weight_norm_from_model(pretransform)
        if source.pretransform_ckpt_path is not None:
            load_into(getattr(pretransform, "model", pretransform), source.pretransform_ckpt_path, ema=None)
        if source.remove_pretransform_weight_norm == "post_load":
            remove_weight_norm_from_model(pretransform)
        if source.lora is not None:
            load_lora(model, *source.lora)
        return cls(model, config, device)

    @property
    def network(self) -> nn.Module:
        """The backbone, whose parameters are differentiated."""
        network: nn.Module = self.model.model
        return network

    @property
    def shape(self) -> AudioShape:
        if not self.config.get("sample_size"):
            raise ConfigError("sample_size: missing in the model config; attribution needs it")
        channels = int(self.config.get("audio_channels", 2))
        latent_channels = int(self.model.io_channels)
        return AudioShape(int(self.config["sample_size"]), int(self.config["sample_rate"]), channels, latent_channels)

    def task(self, recipe: FeatureRecipe) -> DiffusionTask:
        """Build the function to differentiate, with the objective and the shift of the model's training."""
        if recipe.cfg_dropout_prob > 0 and not isinstance(self.network, DiTWrapper):
            raise ConfigError("--cfg-dropout-prob: only a conditional diffusion transformer drops conditions; use 0")
        if recipe.measure is loss:
            recipe = replace(recipe, law=self.noise_level_law)
        shift = getattr(self.model, "dist_shift", None)
        return DiffusionTask(self.network, self.model.objective, recipe, shift)

    @cached_property
    def noise_level_law(self) -> NoiseLevelLaw | None:
        """The distribution of noise levels in the model's training; None if it is uniform."""
        return NoiseLevelLaw.of_training(self.training)

    def select_parameters(self, pattern: str | None = None) -> dict[str, nn.Parameter]:
        """Select backbone parameters whose names match the pattern; by default the adapter's, or else all."""
        if pattern is None and attached_loras(self.model):
            pattern = ADAPTERS
        try:
            expression = re.compile(pattern or "")
        except re.error as error:
            raise ConfigError(f"--param-regex: {pattern!r} is not a regular expression ({error})") from None
        named = dict(self.network.named_parameters())
        chosen = {name: value for name, value in named.items() if expression.search(name)}
        if not chosen:
            some = ", ".join(list(named)[:3])
            raise ConfigError(
                f"--param-regex: {pattern!r} matches none of {len(named)} parameter names, such as {some}"
            )
        return chosen

    def set_checkpointing(self, on: bool) -> None:
        """Set whether blocks recompute their activations."""
        blocks = recomputing_modules(self.network)
        if on and not blocks:
            raise ConfigError("--checkpointing: this backbone cannot recompute its activations; leave the flag out")
        for module in blocks:
            module.checkpointing = on  # type: ignore[assignment]

    def fingerprint(self) -> str:
        """Return sixteen digits that change with any bit of the weights."""
        digest = sha256()
        # State dicts do not contain adapters.
        for name, tensor in sorted({**self.model.state_dict(), **dict(self.model.named_parameters())}.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SampleMaker:
    """Conversion of an item to a sample: its latents and conditions, each computed once."""

    attributed: AttributedModel
    pre_encoded: bool
    seed: int
    half_pretransform: bool = False

    @torch.no_grad()
    def __call__(self, item: Item, key: str, form: Form = "data") -> AttributedSample:
        model, device = self.attributed.model, self.attributed.device
        with keyed_encoding(self.seed, key, device):
            _require_channels(item.audio, self._channels(form), key)
            clean = self._clean(item.audio[None].to(device), form)
            inputs = self._inputs(item.info, clean)
        masks_padding = self.attributed.training.get("mask_padding")
        real = padding_masks([item.info], clean.shape[-1], device) if masks_padding else None
        mask = torch.ones(1, clean.shape[-1], device=device) if real is None else real.to(clean.dtype)
        assert model.training is False
        return AttributedSample(key, clean[0], inputs, mask)

    def _channels(self, form: Form) -> int:
        """Return the expected channels of an item."""
        is_encoded = form == "latents" or (form == "data" and self.pre_encoded)
        if is_encoded or self.attributed.model.pretransform is None:
            return int(self.attributed.model.io_channels)
        return self.attributed.shape.channels

    def _clean(self, audio: Tensor, form: Form) -> Tensor:
        """Return the input of the backbone, (1, d, t)."""
        pretransform: Any = self.attributed.model.pretransform
        if pretransform is None or form == "latents":
            return audio
        if self.pre_encoded and form == "data":
            scaled: Tensor = audio / getattr(pretransform, "scale", 1.0)
            return scaled
        half = self.half_pretransform and audio.device.type == "cuda"
        with autocast(audio.device, torch.float16 if half else torch.float32):
            encoded: Tensor = pretransform.encode(audio)
        return encoded.float()

    def _inputs(self, info: JsonObject, clean: Tensor) -> dict[str, Tensor]:
        model = self.attributed.model
        if not isinstance(model, ConditionedDiffusionModelWrapper):
            return {}
        conditions: JsonObject = {}
        if model.conditioner is not None:
            try:
                conditions = model.conditioner([info], self.attributed.device)
            except ValueError as error:
                raise ConfigError(f"{info.get('path', 'an item')}: {error}") from None
        nothing = torch.zeros_like(clean)  # an inpainting model generates everything
        conditions = {**conditions, "inpaint_mask": [nothing[:, :1]], "inpaint_masked_input": [nothing]}
        given = model.get_conditioning_inputs(conditions)
        return {name: value for name, value in given.items() if value is not None}


def _require_channels(found: Tensor, channels: int, key: str) -> None:
    if found.shape[0] != channels:
        raise ConfigError(
            f"{key}: has {found.shape[0]} channels where the model takes {channels}; is it encoded, and by the model's "
            "autoencoder? (--pre-encoded, --no-pre-encoded)"
        )
