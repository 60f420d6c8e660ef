"""An autoencoder whose decoder is a diffusion model: the latents, spread over time, steer the denoising of audio.

audio -> pretransform -> encoder -> bottleneck -> latents
latents -> bottleneck -> optional decoder -> repeated to the rate of the audio -> diffusion -> pretransform
"""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import Kind, Part, Runtime, build, register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.diffusion.backbones import halve_parameters
from stable_audio_tools.models.diffusion.objectives import V

DECODE_STEPS = 100


class DiffusionAutoencoder(AudioAutoencoder):
    """`decode` takes `steps`; a frame of latents steers `frame_size` frames of what is denoised."""

    def __init__(
        self,
        diffusion: nn.Module,
        diffusion_downsampling_ratio: int,
        *args: Any,
        frame_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.diffusion = diffusion
        self.min_length = self.downsampling_ratio * diffusion_downsampling_ratio
        self.frame_size = self.downsampling_ratio if frame_size is None else frame_size
        if self.encoder is not None:
            halve_parameters(self.encoder)  # latents far from where a bottleneck saturates

    def condition_on(self, latents: Tensor, length: int | None = None) -> Tensor:
        """Expand latents (b, d, t), after the bottleneck, to the condition of the diffusion, (b, d', length)."""
        length = latents.shape[-1] * self.frame_size if length is None else length
        if self.decoder is not None:
            latents = self.decoder(latents)
        return latents if latents.shape[-1] == length else F.interpolate(latents, size=length, mode="nearest")

    def _synthesise(
        self,
        latents: Tensor,
        iterate_batch: bool | int = False,
        skip_pretransform: bool = False,
        steps: int = DECODE_STEPS,
        **kwargs: Any,
    ) -> Tensor:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        condition = self.condition_on(latents)
        channels = getattr(self.diffusion, "io_channels", self.io_channels)
        noise = torch.randn(len(condition), channels, condition.shape[-1], device=condition.device)
        items = int(iterate_batch) if iterate_batch else len(condition)
        parts = zip(noise.to(condition.dtype).split(items), condition.split(items))
        audio = torch.cat([self._denoise(start, given, steps, **kwargs) for start, given in parts])
        return audio if self.pretransform is None or skip_pretransform else self.pretransform.decode(audio)

    def _denoise(self, x: Tensor, condition: Tensor, steps: int, **kwargs: Any) -> Tensor:
        """Sample by deterministic DDIM for the v objective (Salimans & Ho 2022, appendix D), from pure noise."""
        times = torch.linspace(1, 0, steps + 1)[:-1]
        alphas, sigmas = (values.tolist() for values in V.mix(times))
        data = x
        for step, time in enumerate(times.tolist()):
            t = x.new_full((len(x),), time)
            v = self.diffusion(x, t, input_concat_cond=condition, **kwargs)
            data = alphas[step] * x - sigmas[step] * v
            if step + 1 < steps:
                noise = sigmas[step] * x + alphas[step] * v
                x = alphas[step + 1] * data + sigmas[step + 1] * noise
        return data


def _ratios(config: SimpleNamespace) -> tuple[int | None, int | None]:
    """Return the downsampling ratios of encoder and pretransform; None where the config does not specify one."""
    inner = None if config.encoder is None else config.encoder.facts.get("ratio")
    outer = 1 if config.pretransform is None else config.pretransform.facts.get("downsampling_ratio")
    return inner, outer


def _samples_per_frame(config: SimpleNamespace) -> int:
    """Return samples of audio per frame; published configs count them after the pretransform."""
    inner, outer = _ratios(config)
    ratio: int = config.downsampling_ratio if inner is None or outer is None else inner * outer
    return ratio


def _facts(config: SimpleNamespace) -> JsonObject:
    ratio = _samples_per_frame(config)
    return {
        "latent_dim": config.latent_dim,
        "downsampling_ratio": ratio,
        "io_channels": config.io_channels,
        "min_input_length": ratio * config.diffusion.facts.get("length_multiple", 1),
        "use": "codec",
        "has_steps": True,
    }


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    yield from _check_ratio(config)
    yield from _check_latents(config)
    yield from _check_condition(config)
    channels = config.diffusion.facts.get("io_channels")
    if channels is not None and channels != config.io_channels:
        yield "io_channels", f"is {config.io_channels}, but the diffusion model denoises {channels}: use {channels}"


def _check_ratio(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    inner, outer = _ratios(config)
    if inner is None or outer is None or config.downsampling_ratio in (inner, inner * outer):
        return
    times = f" times {outer} of the pretransform" if outer > 1 else ""
    yield (
        "downsampling_ratio",
        f"is {config.downsampling_ratio}, but encoder.config.{config.encoder.facts['ratio_key']} multiply to "
        f"{inner}{times}; set it to {inner * outer}",
    )


def _check_latents(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    known = {} if config.bottleneck is None else config.bottleneck.facts
    if known.get("dim", config.latent_dim) != config.latent_dim:
        yield "latent_dim", f"is {config.latent_dim}, but bottleneck.config outputs {known['dim']} channels; use that"
    wanted = {
        "encoder": config.latent_dim * known.get("encoder_multiple", 1),
        "decoder": _steering_channels(config, known),
    }
    for name, channels in wanted.items():
        part: Part | None = getattr(config, name)
        found = None if part is None else part.facts.get("latent_dim")
        if part is not None and found is not None and found != channels:
            key = f"{name}.config.{part.facts.get('latent_key', 'latent_dim')}"
            yield key, f"is {found}, but latent_dim is {config.latent_dim}; set {key} to {channels}"


def _check_condition(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Compare the condition of the diffusion model with the channels of the decoder, or else of the latents."""
    taken = config.diffusion.facts.get("input_concat_dim")
    known = {} if config.bottleneck is None else config.bottleneck.facts
    given = _steering_channels(config, known) if config.decoder is None else config.decoder.facts.get("out_channels")
    if taken is None or given is None or taken == given:
        return
    key = "cond_dim" if hasattr(config.diffusion.config, "cond_dim") else "input_concat_dim"
    source = "the latents have" if config.decoder is None else "the decoder gives"
    yield f"diffusion.config.{key}", f"is {taken}, but {source} {given} channels: use {given}"


def _steering_channels(config: SimpleNamespace, bottleneck_facts: Mapping[str, Any]) -> int:
    channels: int = config.latent_dim + bottleneck_facts.get("extra_channels", 0)
    return channels


@register("model", "diffusion_autoencoder", facts=_facts, check=_check)
def build_diffusion_autoencoder(
    diffusion: Annotated[Part, Kind("diffusion_decoder")],
    latent_dim: Annotated[int, Field(ge=1, description="channels of the latents, after the bottleneck")],
    downsampling_ratio: Annotated[int, Field(ge=1, description="samples of audio per frame of latents")],
    io_channels: Annotated[int, Field(ge=1, description="channels that the diffusion model denoises")],
    *,
    encoder: Annotated[Part | None, Kind("encoder")] = None,
    decoder: Annotated[Part | None, Kind("decoder")] = None,
    bottleneck: Annotated[Part | None, Kind("bottleneck")] = None,
    pretransform: Annotated[Part | None, Kind("pretransform")] = None,
    sample_rate: Runtime[int],
) -> DiffusionAutoencoder:
    """Audio to latents, and back by diffusion."""
    config = SimpleNamespace(encoder=encoder, pretransform=pretransform, downsampling_ratio=downsampling_ratio)
    analysis = None if encoder is None else encoder.build()
    synthesis = None if decoder is None else decoder.build()
    return DiffusionAutoencoder(
        diffusion.build(diffusion_objective=V),
        diffusion.facts.get("length_multiple", 1),
        encoder=analysis,
        decoder=synthesis,
        latent_dim=latent_dim,
        downsampling_ratio=_samples_per_frame(config),
        frame_size=_ratios(config)[0] or downsampling_ratio,
        sample_rate=sample_rate,
        io_channels=io_channels,
        bottleneck=None if bottleneck is None else bottleneck.build(),
        pretransform=None if pretransform is None else pretransform.build(sample_rate=sample_rate),
    )


def create_diffAE_from_config(config: Mapping[str, Any]) -> DiffusionAutoencoder:
    """Build the diffusion autoencoder of a whole config, `{"sample_rate": ..., "model": {...}}`."""
    missing = [
        f"{key}: missing; a diffusion autoencoder needs it" for key in ("sample_rate", "model") if key not in config
    ]
    if missing:
        raise ConfigError(missing)
    model: DiffusionAutoencoder = build(
        "model", config["model"], path="model", tag="diffusion_autoencoder", sample_rate=config["sample_rate"]
    )
    return model
