"""Codes of neural codecs: the Descript Audio Codec, and the autoencoders of this toolkit."""

from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import CheckpointError, ConfigError
from stable_audio_tools.core.packages import require
from stable_audio_tools.dedup.codecs.base import Codec, Sound
from stable_audio_tools.latents.identity import LatentEncoder, autoencoder_of, identify
from stable_audio_tools.models.bottleneck import DACRVQVAEBottleneck, DiscreteBottleneck, RVQVAEBottleneck

_WINDOW_SECONDS = 10  # length of a window; memory does not grow with the file
_WINDOWS = 8  # windows per batch
_LATENT_LEVELS = 32
_LATENT_RANGE = 3.0  # a variational bottleneck keeps the spread of latents near 1


class _Windowed(Codec):
    """Codec that encodes a file in windows of ten seconds."""

    sample_rate: int
    channels: int
    ratio: int  # samples of a frame
    device: torch.device

    def codes(self, sound: Sound) -> list[Tensor]:
        audio = sound.at(self.sample_rate, self.channels)
        window = max(1, _WINDOW_SECONDS * self.sample_rate // self.ratio) * self.ratio
        frames = -(-audio.shape[1] // self.ratio)
        padded = nn.functional.pad(audio, (0, -audio.shape[1] % window))
        windows = padded.unflatten(1, (-1, window)).transpose(0, 1)  # (windows, c, n)
        pieces = [self._encode(batch.to(self.device)).cpu() for batch in windows.split(_WINDOWS)]
        codes = torch.cat(pieces).transpose(0, 1).flatten(1)  # (q, t)
        return list(codes[:, :frames].long())

    def _encode(self, audio: Tensor) -> Tensor:
        """Encode audio (b, c, n) to codes (b, q, t)."""
        raise NotImplementedError


class DACCodec(_Windowed):
    """Descript Audio Codec with its published weights or weights from a file."""

    threshold = 0.95
    channels = 1

    def __init__(self, model_type: str, model_path: str | None, device: torch.device) -> None:
        dac = require("dac", extra="dac")
        path = Path(model_path) if model_path else _fetch(dac, model_type)
        try:
            self.model: Any = dac.DAC.load(path).eval().requires_grad_(False).to(device)
        except (OSError, RuntimeError, KeyError, EOFError, ValueError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise CheckpointError(f"{path}: cannot be read as a Descript Audio Codec ({reason})") from None
        self.device = device
        self.sample_rate, self.ratio = int(self.model.sample_rate), int(self.model.hop_length)
        self.num_codebooks, self.codebook_size = int(self.model.n_codebooks), int(self.model.codebook_size)
        self.identity = f"dac {weights_key(self.model)}"

    @torch.no_grad()
    def _encode(self, audio: Tensor) -> Tensor:
        codes: Tensor = self.model.encode(audio)[1]
        return codes


class AutoencoderCodec(_Windowed):
    """Autoencoder of this toolkit: its codes, or each latent channel quantised to 32 levels."""

    threshold = 0.95

    def __init__(self, model: nn.Module, sample_rate: int, device: torch.device) -> None:
        autoencoder = autoencoder_of(model)
        bottleneck = autoencoder.bottleneck
        if isinstance(bottleneck, RVQVAEBottleneck | DACRVQVAEBottleneck):
            raise ConfigError(
                "--codec autoencoder: this bottleneck samples before it quantises, so equal files get different codes"
            )
        self.discrete = isinstance(bottleneck, DiscreteBottleneck)
        self.encoder = LatentEncoder(model, discrete=self.discrete, deterministic=True, device=device)
        self.sample_rate, self.channels, self.device = sample_rate, autoencoder.audio_channels, device
        self.ratio = autoencoder.downsampling_ratio
        if isinstance(bottleneck, DiscreteBottleneck):
            self.num_codebooks, self.codebook_size = bottleneck.num_quantizers, bottleneck.codebook_size
        else:
            self.num_codebooks, self.codebook_size = autoencoder.latent_dim, _LATENT_LEVELS
        self.identity = f"autoencoder {identify(autoencoder).key}"

    def _encode(self, audio: Tensor) -> Tensor:
        found = self.encoder(audio)
        return found if self.discrete else quantize_latents(found)


def _fetch(dac: Any, model_type: str) -> Path:
    try:
        return Path(dac.utils.download(model_type=model_type))
    except OSError as error:
        raise ConfigError(
            f"the {model_type} weights of the Descript Audio Codec cannot be downloaded ({error}); give a file with "
            "--model-path, or use --codec spectral, which needs no weights"
        ) from None


def quantize_latents(latents: Tensor) -> Tensor:
    """Quantise latents in equal steps between -3 and 3."""
    scaled = (latents.float() / _LATENT_RANGE + 1) / 2 * _LATENT_LEVELS
    return scaled.floor().clamp(0, _LATENT_LEVELS - 1).long()


def weights_key(model: nn.Module) -> str:
    """Return a hash of all weights of a model."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:24]
