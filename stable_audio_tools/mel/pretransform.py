"""The pretransform `mel`: mel bands are channels, so masks, crops, latents and inpainting work as on any other.

    {"type": "mel", "config": {"variant": "bigvgan", "n_fft": 1024, "hop_length": 256, "n_mels": 128,
                               "vocoder": {"type": "bigvgan", "config": {"source": "bigvgan_v2_44khz_128band_256x"}}}}

n samples give n // hop_length frames, and t frames give t * hop_length samples. The sample rate is the model's.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import Kind, Part, Runtime, load, register, validate
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.mel.filterbank import MelBands
from stable_audio_tools.mel.transforms import BIGVGAN_RANGE, DecibelMel, LogAmplitudeMel, MelTransform, Reference
from stable_audio_tools.mel.vocoders import GriffinLimVocoder, Vocoder
from stable_audio_tools.models.pretransforms.base import Pretransform, facts

Node = dict[str, Any]  # of a model config, as JSON has it


class MelPretransform(Pretransform):
    """A mel transform and a vocoder for decoding; it has no parameters."""

    def __init__(self, transform: MelTransform, vocoder: Vocoder, channels: int = 1) -> None:
        super().__init__(enable_grad=False, io_channels=channels, is_discrete=False)
        problem = vocoder.problem(transform)
        if problem is not None:
            raise ConfigError(f"pretransform.vocoder: {problem}")
        self.transform = transform
        self.vocoder = vocoder
        self.sample_rate = transform.bands.sample_rate
        self.downsampling_ratio = transform.framing.hop_length
        self.encoded_channels = channels * transform.bands.n_mels

    def encode(self, x: Tensor, **kwargs: object) -> Tensor:
        """Audio (b, c, n) to bands in [-1, 1], (b, c * mels, n // hop)."""
        with torch.autocast(x.device.type, enabled=False):
            audio = x if x.dtype == torch.float64 else x.float()
            bands = self.transform.encode(audio.flatten(0, 1))
        return bands.unflatten(0, x.shape[:2]).flatten(1, 2).to(x.dtype)

    def decode(self, z: Tensor, **kwargs: object) -> Tensor:
        """Bands (b, c * mels, t) to audio (b, c, t * hop)."""
        bands = z.unflatten(1, (self.io_channels, -1)).flatten(0, 1)
        with torch.autocast(z.device.type, enabled=False):
            audio = self.vocoder.decode(bands.float(), self.transform)
        return audio.unflatten(0, (len(z), self.io_channels)).to(z.dtype)

    def unlike(self, node: Mapping[str, Any], sample_rate: int) -> str | None:
        if node.get("type") != "mel":
            return f"they come from {node.get('type')!r}"
        other: MelPretransform = validate("pretransform", node).build(sample_rate=sample_rate)
        ours, theirs = ({**one.transform.settings, "channels": one.io_channels} for one in (self, other))
        wrong = [f"{key} is {theirs.get(key)}, not {ours.get(key)}" for key in ours if ours[key] != theirs.get(key)]
        return ", ".join(wrong) or None


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if config.n_fft < config.hop_length:
        yield "hop_length", f"is {config.hop_length}, longer than n_fft ({config.n_fft}): samples would be left out"
    if config.win_length is not None and config.win_length > config.n_fft:
        yield "win_length", f"is {config.win_length}, longer than n_fft ({config.n_fft})"
    if config.fmax is not None and config.fmax <= config.fmin:
        yield "fmax", f"is {config.fmax:g}, not above fmin ({config.fmin:g})"
    if config.range is not None and config.range[0] >= config.range[1]:
        yield "range", f"is {config.range}; the first number is the lower one"
    if isinstance(config.ref, float) and config.ref <= 0:
        yield "ref", f"is {config.ref:g}; a power is above 0"
    others = ("top_db", "ref") if config.variant == "bigvgan" else ("range",)
    for key in others:
        if getattr(config, key) is not None:
            yield key, f"has no meaning for the variant {config.variant!r}; leave it out"


def _facts(config: SimpleNamespace) -> dict[str, object]:
    return facts(
        io_channels=config.channels,
        encoded_channels=config.channels * config.n_mels,
        downsampling_ratio=config.hop_length,
    )


@register("pretransform", "mel", facts=_facts, check=_check)
def build_mel_pretransform(
    variant: Annotated[
        Literal["db_image", "bigvgan"], Field(description="power in dB, or the log amplitude that BigVGAN takes")
    ] = "bigvgan",
    n_fft: Annotated[int, Field(ge=2, description="samples of a spectrum")] = 1024,
    hop_length: Annotated[int, Field(ge=1, description="samples between frames")] = 256,
    win_length: Annotated[int | None, Field(ge=2, description="samples of the window; null: n_fft")] = None,
    n_mels: Annotated[int, Field(ge=1, description="bands")] = 128,
    fmin: Annotated[float, Field(ge=0, description="lower edge of the first band, Hz")] = 0.0,
    fmax: Annotated[
        float | None, Field(gt=0, description="upper edge of the last band, Hz; null: half the rate")
    ] = None,
    channels: Annotated[int, Field(ge=1, description="audio channels, each with its own bands")] = 1,
    top_db: Annotated[float | None, Field(gt=0, description="db_image: depth below the reference (80)")] = None,
    ref: Annotated[
        Literal["slice_max", "full_scale"] | float | None,
        Field(
            description="db_image: what 0 dB is: the loudest band of each item (its level is lost), "
            "a sine of amplitude 1 (full_scale, the default), or a power"
        ),
    ] = None,
    range: Annotated[
        list[float] | None,
        Field(min_length=2, max_length=2, description="bigvgan: log amplitudes that become -1 and 1 ([-11.5129, 2.1])"),
    ] = None,
    quantize: Annotated[
        int | None, Field(ge=1, le=16, description="round values to this many bits, as an image of 8 bits does")
    ] = None,
    vocoder: Annotated[
        Part | None, Kind("vocoder"), Field(description="vocoder for decoding; null: griffin_lim with its defaults")
    ] = None,
    *,
    sample_rate: Runtime[int],
) -> MelPretransform:
    """Mel bands as channels, decoded by Griffin-Lim or BigVGAN."""
    if fmax is not None and fmax > sample_rate / 2:
        raise ValueError(f"fmax is {fmax:g}, above half the sample rate ({sample_rate / 2:g})")
    if fmin >= sample_rate / 2:
        raise ValueError(f"fmin is {fmin:g}, not below half the sample rate ({sample_rate / 2:g})")
    bands = MelBands(sample_rate, n_fft, n_mels, fmin, fmax)
    lengths = (n_fft, hop_length, win_length or n_fft)
    transform: MelTransform
    if variant == "db_image":
        reference: Reference = "full_scale" if ref is None else ref
        transform = DecibelMel(bands, *lengths, 80.0 if top_db is None else top_db, reference, quantize)
    else:
        transform = LogAmplitudeMel(bands, *lengths, BIGVGAN_RANGE if range is None else (range[0], range[1]), quantize)
    return MelPretransform(transform, GriffinLimVocoder() if vocoder is None else vocoder.build(), channels)


def mel_node_of(path: str | Path) -> tuple[Node, int]:
    """Return the mel transform of a model config, alone or first in a chain, and its sample rate."""
    content = load(path)
    model = content.get("model")
    node = model.get("pretransform") if isinstance(model, dict) else None
    if isinstance(node, dict) and node.get("type") == "chain":
        stages = node["config"].get("stages") if isinstance(node.get("config"), dict) else None
        node = stages[0] if isinstance(stages, list) and stages else None
    if not isinstance(node, dict) or node.get("type") != "mel":
        raise ConfigError(f"{path}: model.pretransform is neither a mel transform nor a chain that begins with one")
    if not isinstance(content.get("sample_rate"), int):
        raise ConfigError(f"{path}: sample_rate: missing, or not a whole number")
    return node, content["sample_rate"]
