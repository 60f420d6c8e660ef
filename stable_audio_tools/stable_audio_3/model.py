"""`StableAudioModel` and `AutoencoderModel`: the two classes that stable-audio-3's programs use."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.core.config import load
from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.devices import pick_device
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.inference.generation.by_length import generate_by_length, read_request
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.lora import load_and_apply_loras, set_lora_strength
from stable_audio_tools.stable_audio_3.loading_utils import load_autoencoder, load_diffusion_cond
from stable_audio_tools.stable_audio_3.model_configs import ModelConfig, ae_models, all_models

logger = logging.getLogger(__name__)

Each = str | float | Sequence[Any]  # one value for all items, or one per item


class StableAudioModel:
    """A Stable Audio 3 model with the interface of the stable_audio_3 package."""

    def __init__(
        self,
        model: ConditionedDiffusionModelWrapper,
        model_config: Mapping[str, Any],
        device: str | torch.device,
        model_half: bool,
    ) -> None:
        self.model = model
        self.model_config = model_config
        self.device = device
        self.model_half = model_half
        self.same = model.pretransform
        self.dit = model.model

    @staticmethod
    def from_pretrained(model_name: str, device: str | None = None, model_half: bool = True) -> "StableAudioModel":
        """Load a published model by its short name; in half precision on a CUDA device."""
        place = pick_device(device)
        half = model_half and place.type == "cuda"
        config_path, weights = _named(model_name, all_models).resolve()
        config = load(config_path)
        return StableAudioModel(load_diffusion_cond(config, weights, str(place), half), config, str(place), half)

    def load_lora(self, lora_ckpt_paths: Sequence[str | Path]) -> list[str]:
        """Add the adapters of files, one on top of the other; return their names."""
        bases = self.model_config.get("svd_bases_path")
        return load_and_apply_loras(self.model, lora_ckpt_paths, self.model_config["model_type"], bases)

    def set_lora_strength(self, strength: float, lora_index: int | None = None) -> None:
        """Set the strength of all adapters, or of those of one file."""
        set_lora_strength(self.model, strength, lora_index)

    @torch.inference_mode()
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        duration: float | Sequence[float] = 120,
        steps: int = 8,
        cfg_scale: float = 1.0,
        batch_size: int = 1,
        sample_size: int = 5292032,
        truncate_output_to_duration: bool = True,
        conditioning: Sequence[Mapping[str, Any]] | None = None,
        conditioning_tensors: Mapping[str, Any] | None = None,
        negative_conditioning: Sequence[Mapping[str, Any]] | None = None,
        negative_conditioning_tensors: Mapping[str, Any] | None = None,
        seed: int = -1,
        return_latents: bool = False,
        chunked_decode: bool | None = None,
        **options: Any,
    ) -> Tensor:
        """Audio (b, c, n) in [-1, 1], or latents (b, d, t).

        `prompt`, `negative_prompt` and `duration` are one for all items, or one per item; `conditioning` is metadata in
        place of them. Padding is masked and schedules shift by the length of each item. The audio is cut to the
        duration if all items have the same. `options` are those of `generate_diffusion_cond_inpaint`.
        """
        if conditioning is None and conditioning_tensors is None:
            if prompt is None:
                raise ValueError("give a prompt, conditioning or conditioning_tensors")
            conditioning = _metadata(prompt, duration, batch_size, "prompt")
            if negative_prompt is not None:
                negative_conditioning = _metadata(negative_prompt, duration, batch_size, "negative_prompt")
        request, rest = read_request(
            {
                **options,
                "steps": steps,
                "cfg_scale": cfg_scale,
                "conditioning": conditioning,
                "conditioning_tensors": conditioning_tensors,
                "negative_conditioning": negative_conditioning,
                "negative_conditioning_tensors": negative_conditioning_tensors,
                "batch_size": batch_size,
                "sample_size": sample_size,
                "seed": seed,
                "device": self.device,
                "return_latents": return_latents,
                "inpaint": True,
                "mask_padding_attention": True,
                "use_effective_length_for_schedule": True,
                "frames_per_chunk": self._frames_per_chunk(),
            }
        )
        codec = self.model.pretransform
        kept = getattr(codec, "chunked", None)
        if chunked_decode is not None and kept is not None:
            codec.chunked = chunked_decode  # type: ignore[union-attr]
        try:
            made = generate_by_length(self.model, "stable-audio-3", request, rest)
        finally:
            if kept is not None:
                codec.chunked = kept  # type: ignore[union-attr]
        if return_latents:
            return made
        made = made.float().clamp(-1, 1)
        durations = set(duration) if isinstance(duration, Sequence) else {duration}
        if not truncate_output_to_duration:
            return made
        if len(durations) > 1:
            logger.warning("items of different durations are not cut to them; padding after each is silent")
            return made
        return made[:, :, : int(durations.pop() * self.model.sample_rate)]

    def _frames_per_chunk(self) -> int:
        """Latents that lengths are rounded up to: as of an encoder in chunks of 32 frames, where none is said."""
        pretransform = self.model_config["model"].get("pretransform")
        if pretransform is None:
            return 1
        encoder = pretransform["config"]["encoder"]["config"]
        return max(1, encoder.get("chunk_size", 32) // encoder["strides"][0])


class AutoencoderModel:
    """A SAME autoencoder with the interface of the stable_audio_3 package."""

    def __init__(self, autoencoder: AudioAutoencoder, sample_rate: int, device: str | torch.device) -> None:
        self.autoencoder = autoencoder
        self.sample_rate = sample_rate
        self.device = device

    @staticmethod
    def from_pretrained(model_name: str, device: str | None = None) -> "AutoencoderModel":
        """Load `same-s` or `same-l`, out of a whole model if one that holds it was downloaded before."""
        place = pick_device(device)
        config_path, weights = _named(model_name, ae_models).resolve()
        autoencoder = load_autoencoder(config_path, weights, str(place))
        autoencoder.eval().requires_grad_(False)
        return AutoencoderModel(autoencoder, load(config_path)["sample_rate"], str(place))

    @torch.inference_mode()
    def encode(
        self,
        audio: Tensor | Sequence[Tensor],
        sr: int | Sequence[int],
        chunked: bool = False,
        chunk_size: int = 128,
        overlap: int = 32,
    ) -> Tensor:
        """One clip (c, n), a list of them or a batch (b, c, n), at any rate, to latents (b, d, t)."""
        clips = [audio] if isinstance(audio, Tensor) and audio.ndim < 3 else list(audio)
        rates = [sr] * len(clips) if isinstance(sr, int) else list(sr)
        batch = self.autoencoder.preprocess_audio_list_for_encoder(clips, rates)
        latents: Tensor = self.autoencoder.encode_audio(
            batch.to(self.device), chunked=chunked, chunk_size=chunk_size, overlap=overlap
        )
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor, chunked: bool = False, chunk_size: int = 128, overlap: int = 32) -> Tensor:
        """Latents (b, d, t) to audio (b, c, n)."""
        return self.autoencoder.decode_audio(latents, chunked=chunked, chunk_size=chunk_size, overlap=overlap)


def _metadata(prompt: Each, duration: Each, batch_size: int, name: str) -> list[dict[str, Any]]:
    """One dict per item."""
    prompts, durations = _spread(prompt, batch_size, name), _spread(duration, batch_size, "duration")
    return [{"prompt": text, "seconds_total": seconds} for text, seconds in zip(prompts, durations)]


def _spread(value: Each, batch_size: int, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        return [value] * batch_size
    if len(value) != batch_size:
        raise ValueError(f"{name} has {len(value)} entries for batch_size {batch_size}; give one, or one per item")
    return list(value)


def _named(name: str, known: Mapping[str, ModelConfig]) -> ModelConfig:
    if name not in known:
        raise UserError(f"no model named {name!r}; {nearest(name, known)}")
    return known[name]
