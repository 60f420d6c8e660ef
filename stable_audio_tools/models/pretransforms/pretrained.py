"""Published codecs as pretransforms. Their own packages fetch the weights on first use.

The weights are public and frozen: checkpoints of models do not hold them, and copies in old checkpoints are ignored.
"""

import logging
from abc import abstractmethod
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.packages import require
from stable_audio_tools.models.pretransforms.base import Pretransform, facts

logger = logging.getLogger(__name__)

_Scale = Annotated[float, Field(gt=0, description="latents are divided by this on encode, multiplied on decode")]


class CodecFacts(NamedTuple):
    """Facts about a published codec, known without its weights."""

    sample_rate: int
    io_channels: int
    downsampling_ratio: int
    latent_dim: int
    num_codebooks: int
    codebook_size: int


class PretrainedCodec(Pretransform):
    """A codec of another package, loaded when first used and then kept on the device of its input."""

    def __init__(self, codec: CodecFacts) -> None:
        super().__init__(enable_grad=False, io_channels=codec.io_channels, is_discrete=True)
        self.sample_rate = codec.sample_rate
        self.downsampling_ratio = codec.downsampling_ratio
        self.encoded_channels = codec.latent_dim
        self.num_quantizers = codec.num_codebooks
        self.codebook_size = codec.codebook_size
        self._loaded: list[nn.Module] = []  # in a list, where torch does not see it

    @property
    def model(self) -> Any:
        """The codec, loaded on first access."""
        if not self._loaded:
            self._loaded.append(self._load().eval().requires_grad_(False))
        return self._loaded[0]

    @abstractmethod
    def _load(self) -> nn.Module:
        """Fetch the codec and its weights."""

    def requires_grad_(self, requires_grad: bool = True) -> "PretrainedCodec":
        if requires_grad:
            raise ConfigError(["pretransform.enable_grad: a pretrained codec stays frozen; set it to false"])
        return super().requires_grad_(False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith(f"{prefix}model.")]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)


DAC_CODECS = {
    ("44khz", "8kbps"): CodecFacts(44100, 1, 512, 1024, 9, 1024),
    ("44khz", "16kbps"): CodecFacts(44100, 1, 512, 128, 18, 1024),
    ("24khz", "8kbps"): CodecFacts(24000, 1, 320, 1024, 32, 1024),
    ("16khz", "8kbps"): CodecFacts(16000, 1, 320, 1024, 12, 1024),
}


def _check_dac(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if (config.model_type, config.model_bitrate) not in DAC_CODECS:
        yield "model_bitrate", f"is {config.model_bitrate}, and model_type {config.model_type}; only 44khz has 16kbps"


def _codec_facts(codec: CodecFacts) -> JsonObject:
    return facts(
        io_channels=codec.io_channels,
        encoded_channels=codec.latent_dim,
        downsampling_ratio=codec.downsampling_ratio,
        codes=(codec.num_codebooks, codec.codebook_size),
    )


@register(
    "pretransform",
    "dac_pretrained",
    facts=lambda config: _codec_facts(DAC_CODECS[config.model_type, config.model_bitrate]),
    check=_check_dac,
    ignored=("chunked",),
)
class PretrainedDACPretransform(PretrainedCodec):
    """Descript Audio Codec with its published weights (needs descript-audio-codec)."""

    is_scaled = True

    def __init__(
        self,
        model_type: Annotated[Literal["44khz", "24khz", "16khz"], Field(description="sample rate")] = "44khz",
        model_bitrate: Annotated[Literal["8kbps", "16kbps"], Field(description="16kbps for 44khz only")] = "8kbps",
        scale: _Scale = 1.0,
        quantize_on_decode: Annotated[
            bool, Field(description="leave the latents continuous and quantise them before the decoder")
        ] = True,
    ) -> None:
        super().__init__(DAC_CODECS[model_type, model_bitrate])
        self.model_type = model_type
        self.model_bitrate = model_bitrate
        self._scale = scale
        self.quantize_on_decode = quantize_on_decode

    @property
    def scale(self) -> float:
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self._scale = scale

    def _load(self) -> nn.Module:
        dac = require("dac", extra="dac")
        logger.info("loading the %s %s weights of descript-audio-codec", self.model_type, self.model_bitrate)
        path = dac.utils.download(model_type=self.model_type, model_bitrate=self.model_bitrate)
        model: nn.Module = dac.DAC.load(path)
        return model

    def encode(self, x: Tensor, **kwargs: object) -> Tensor:
        model = self.model.to(x.device)
        latents = model.encoder(x)
        if not self.quantize_on_decode:
            latents = model.quantizer(latents)[0]
        return latents / self.scale

    def decode(self, z: Tensor, **kwargs: object) -> Tensor:
        model = self.model.to(z.device)
        latents = z * self.scale
        if self.quantize_on_decode:
            latents = model.quantizer(latents)[0]
        audio: Tensor = model.decode(latents)
        return audio

    def tokenize(self, x: Tensor, **kwargs: object) -> Tensor:
        codes: Tensor = self.model.to(x.device).encode(x, **kwargs)[1]
        return codes

    def decode_tokens(self, tokens: Tensor, **kwargs: object) -> Tensor:
        model = self.model.to(tokens.device)
        audio: Tensor = model.decode(model.quantizer.from_codes(tokens)[0])
        return audio


AUDIOCRAFT_CODECS = {
    "facebook/encodec_32khz": CodecFacts(32000, 1, 640, 128, 4, 2048),
    "facebook/encodec_24khz": CodecFacts(24000, 1, 320, 128, 32, 1024),
    "dac_44khz": CodecFacts(44100, 1, 512, 1024, 9, 1024),
    "dac_24khz": CodecFacts(24000, 1, 320, 1024, 32, 1024),
}


@register(
    "pretransform",
    "audiocraft_pretrained",
    facts=lambda config: _codec_facts(AUDIOCRAFT_CODECS[config.model_type]),
    ignored=("scale", "quantize_on_decode"),
)
class AudiocraftCompressionPretransform(PretrainedCodec):
    """A codec of Meta's audiocraft (needs audiocraft), for tokens only."""

    def __init__(
        self,
        model_type: Annotated[
            Literal["facebook/encodec_32khz", "facebook/encodec_24khz", "dac_44khz", "dac_24khz"],
            Field(description="name under which audiocraft knows the codec"),
        ] = "facebook/encodec_32khz",
    ) -> None:
        super().__init__(AUDIOCRAFT_CODECS[model_type])
        self.model_type = model_type

    def _load(self) -> nn.Module:
        models = require("audiocraft.models")
        logger.info("loading %s of audiocraft", self.model_type)
        model: Any = models.CompressionModel.get_pretrained(self.model_type)
        model.set_num_codebooks(self.num_quantizers)
        return model

    def encode(self, x: Tensor, **kwargs: object) -> Tensor:
        raise ValueError("audiocraft's codecs output tokens only; use tokenize, or a pretransform with latents")

    def decode(self, z: Tensor, **kwargs: object) -> Tensor:
        raise ValueError("audiocraft's codecs decode tokens only; use decode_tokens, or a pretransform with latents")

    def tokenize(self, x: Tensor, **kwargs: object) -> Tensor:
        model, dtype = self._on(x.device)
        with torch.autocast(x.device.type, enabled=False):
            codes: Tensor = model.encode(x.to(dtype))[0]
        return codes

    def decode_tokens(self, tokens: Tensor, **kwargs: object) -> Tensor:
        model, _ = self._on(tokens.device)
        with torch.autocast(tokens.device.type, enabled=False):
            audio: Tensor = model.decode(tokens)
        return audio

    def _on(self, device: torch.device) -> tuple[Any, torch.dtype]:
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        return self.model.to(device=device, dtype=dtype), dtype
