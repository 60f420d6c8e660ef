"""From config nodes to autoencoders, and the checks that only several of their keys together allow."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from stable_audio_tools.core.config import Kind, Part, Runtime, build, register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder

_Channels = Annotated[int | None, Field(ge=1)]


def autoencoder_facts(config: SimpleNamespace) -> JsonObject:
    """Return the facts that a model containing this autoencoder reads."""
    return {
        "latent_dim": config.latent_dim,
        "downsampling_ratio": config.downsampling_ratio,
        "io_channels": config.io_channels,
        "min_input_length": config.downsampling_ratio,
        "use": "codec",
    }


def check_autoencoder(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Check that encoder, decoder and the numbers beside them describe the same latents."""
    yield from check_ratio(config, "encoder")
    yield from check_ratio(config, "decoder")
    yield from _check_latents(config)
    yield from _check_channels(config, "encoder", "in_channels")
    yield from _check_channels(config, "decoder", "out_channels")


def check_ratio(config: SimpleNamespace, part_name: str) -> Iterator[tuple[str, str]]:
    """Check that the strides, times the ratio of the pretransform, multiply to the model's downsampling ratio."""
    part: Part | None = getattr(config, part_name, None)
    strides = part.facts.get("ratio") if part is not None else None
    outer = _facts_of(config.pretransform).get("downsampling_ratio", 1 if config.pretransform is None else None)
    if part is None or strides is None or outer is None or strides * outer == config.downsampling_ratio:
        return
    key = part.facts["ratio_key"]
    times = f" times {outer} of the pretransform" if config.pretransform is not None else ""
    yield (
        "downsampling_ratio",
        f"is {config.downsampling_ratio}, but {part_name}.config.{key} multiply to {strides}{times}; "
        f"set it to {strides * outer}, or change the {key}",
    )


def _check_latents(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    known = _facts_of(config.bottleneck)
    if known.get("dim", config.latent_dim) != config.latent_dim:
        yield (
            "latent_dim",
            f"is {config.latent_dim}, but bottleneck.config outputs {known['dim']} channels; use that",
        )
    wanted = {
        "encoder": (config.latent_dim * known.get("encoder_multiple", 1), "the bottleneck splits into mean and scale"),
        "decoder": (config.latent_dim + known.get("extra_channels", 0), "with the noise channels of the bottleneck"),
    }
    for name, (channels, why) in wanted.items():
        part: Part = getattr(config, name)
        found = part.facts.get("latent_dim")
        if found is None or found == channels:
            continue
        key = f"{name}.config.{part.facts.get('latent_key', 'latent_dim')}"
        reason = "" if channels == config.latent_dim else f" ({why})"
        yield key, f"is {found}, but latent_dim is {config.latent_dim}; set {key} to {channels}{reason}"


def _check_channels(config: SimpleNamespace, part_name: str, key: str) -> Iterator[tuple[str, str]]:
    part: Part = getattr(config, part_name)
    found, beside = part.facts.get(key), getattr(config, key)
    wanted, wanted_key = (config.io_channels, "io_channels") if beside is None else (beside, key)
    if config.pretransform is not None and beside is None:
        # io_channels counts the channels of the audio, or the outputs of the pretransform.
        wanted, wanted_key = _facts_of(config.pretransform).get("encoded_channels"), "the output of the pretransform"
    if found is None or wanted is None or found == wanted:
        return
    inner = f"{part_name}.config.{part.facts.get('channels_key', key)}"
    yield inner, f"is {found}, but {wanted_key} is {wanted}: set {inner} to {wanted}, or {key} beside it to {found}"


def _facts_of(part: Part | None) -> JsonObject:
    return {} if part is None else part.facts


@register("model", "autoencoder", facts=autoencoder_facts, check=check_autoencoder)
def build_autoencoder(
    encoder: Annotated[Part, Kind("encoder")],
    decoder: Annotated[Part, Kind("decoder")],
    latent_dim: Annotated[int, Field(ge=1, description="channels of the latents, after the bottleneck")],
    downsampling_ratio: Annotated[int, Field(ge=1, description="samples of audio per frame of latents")],
    io_channels: Annotated[int, Field(ge=1, description="audio channels in and out")],
    *,
    bottleneck: Annotated[Part | None, Kind("bottleneck")] = None,
    pretransform: Annotated[Part | None, Kind("pretransform")] = None,
    in_channels: Annotated[_Channels, Field(description="channels into the encoder, if not io_channels")] = None,
    out_channels: Annotated[_Channels, Field(description="channels out of the decoder, if not io_channels")] = None,
    sample_rate: Runtime[int],
) -> AudioAutoencoder:
    """Audio to latents and back."""
    return AudioAutoencoder(
        encoder.build(),
        decoder.build(),
        latent_dim=latent_dim,
        downsampling_ratio=downsampling_ratio,
        sample_rate=sample_rate,
        io_channels=io_channels,
        bottleneck=None if bottleneck is None else bottleneck.build(),
        pretransform=None if pretransform is None else pretransform.build(sample_rate=sample_rate),
        in_channels=in_channels,
        out_channels=out_channels,
        soft_clip=decoder.siblings.soft_clip,
    )


def create_encoder_from_config(encoder_config: Mapping[str, Any]) -> nn.Module:
    """Build one `encoder` node."""
    encoder: nn.Module = build("encoder", encoder_config)
    return encoder


def create_decoder_from_config(decoder_config: Mapping[str, Any]) -> nn.Module:
    """Build one `decoder` node."""
    decoder: nn.Module = build("decoder", decoder_config)
    return decoder


def create_autoencoder_from_config(config: Mapping[str, Any]) -> AudioAutoencoder:
    """Build the autoencoder of a whole config, `{"sample_rate": ..., "model": {...}}`; its model type is not read."""
    missing = [f"{key}: missing; an autoencoder needs it" for key in ("sample_rate", "model") if key not in config]
    if missing:
        raise ConfigError(missing)
    autoencoder: AudioAutoencoder = build(
        "model", config["model"], path="model", tag="autoencoder", sample_rate=config["sample_rate"]
    )
    return autoencoder
