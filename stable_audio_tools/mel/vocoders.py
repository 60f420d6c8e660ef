"""Vocoders: mel spectrograms to audio, under `{"vocoder": {"type": ...}}`.

Griffin-Lim first inverts the mel bands to the bins of a spectrum. Many spectra have the same bands; both methods choose
a non-negative one.

pinv  the smallest solution with its negative values set to zero, then two steps of Richardson (1972) and Lucy (1974),
      which bring its bands back near the given ones
nnls  the non-negative solution of least squares, by projected gradients with momentum (Beck & Teboulle 2009)

Audio from both sounds about the same; `nnls` keeps the bands more exactly and takes some fifty times as long.
"""

import logging
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import register
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.mel.bigvgan import BigVGAN, BigVGANConfig, load_bigvgan, read_config
from stable_audio_tools.mel.bigvgan import problem as problem_of_weights
from stable_audio_tools.mel.filterbank import MelBands, check_filterbank, mel_filterbank
from stable_audio_tools.mel.spectra import Framing
from stable_audio_tools.mel.transforms import LogAmplitudeMel, MelTransform

Inversion = Literal["pinv", "nnls"]

_CORRECTIONS = 2
_MOST_STEPS = 500
_STEPS_BETWEEN_LOOKS = 20
_LEAST_GAIN = 1e-3  # of the residual, between two looks


@lru_cache(maxsize=16)
def _inverse(bands: MelBands) -> NDArray[np.float64]:
    inverse: NDArray[np.float64] = np.linalg.pinv(mel_filterbank(bands).astype(np.float64))
    return inverse


def invert_mel(mel: Tensor, bands: MelBands, method: Inversion = "pinv") -> Tensor:
    """Invert bands (b, mels, t) of a magnitude, or of its square, to (b, bins, t) of the same power."""
    bank = torch.tensor(mel_filterbank(bands), dtype=mel.dtype, device=mel.device)
    inverse = torch.tensor(_inverse(bands), dtype=mel.dtype, device=mel.device)
    solution = (inverse @ mel).clamp_min_(0)
    return _correct(bank, mel, solution) if method == "pinv" else _least_squares(bank, mel, solution)


def _correct(bank: Tensor, mel: Tensor, x: Tensor) -> Tensor:
    """Each bin is multiplied by how much its bands fall short, averaged by their weights."""
    tiny = torch.finfo(mel.dtype).tiny
    weight = bank.sum(0)[:, None].clamp_min(tiny)
    x = torch.maximum(x, torch.finfo(mel.dtype).eps * x.amax(1, keepdim=True))  # zero would stay zero
    for _ in range(_CORRECTIONS):
        x = x * ((bank.T @ (mel / (bank @ x).clamp_min(tiny))) / weight)
    return x


def _least_squares(bank: Tensor, mel: Tensor, start: Tensor) -> Tensor:
    """min |bank @ x - mel|^2 over x >= 0, each frame scaled to its loudest band so that all count the same."""
    scale = mel.amax(1, keepdim=True).clamp_min(torch.finfo(mel.dtype).tiny)
    mel, x = mel / scale, start / scale
    step = 1 / float(torch.linalg.matrix_norm(bank, 2)) ** 2
    looked, ahead, momentum = float("inf"), x, 1.0
    for number in range(_MOST_STEPS):
        residual = bank @ ahead - mel
        if number % _STEPS_BETWEEN_LOOKS == 0:
            size = float(residual.norm())
            if size > looked * (1 - _LEAST_GAIN):
                break
            looked = size
        following = (ahead - step * (bank.T @ residual)).clamp_min_(0)
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = following + (momentum - 1) / grown * (following - x)
        x, momentum = following, grown
    return x * scale


class Vocoder(ABC):
    """Base of the vocoders; their weights are not in the state dict of the model."""

    def problem(self, transform: MelTransform) -> str | None:
        """Return a sentence if the vocoder cannot decode the bands of this transform."""
        return None

    @abstractmethod
    def decode(self, mel: Tensor, transform: MelTransform) -> Tensor:
        """Decode bands in [-1, 1] (b, mels, t), float32, to audio (b, t * hop)."""


logger = logging.getLogger(__name__)


def find_phases(magnitude: Tensor, framing: Framing, n_iter: int = 32, momentum: float = 0.99, seed: int = 0) -> Tensor:
    """Magnitudes (b, bins, t) -> audio (b, t * hop). Every item starts from the same random phases."""
    noise = torch.rand(magnitude.shape[1:], generator=torch.Generator().manual_seed(seed))
    angle = noise.to(magnitude) * (2 * torch.pi)
    spectra = torch.polar(magnitude, angle.expand_as(magnitude))
    envelope = framing.envelope(magnitude.shape[2], magnitude)
    previous: Tensor | None = None
    for _ in range(n_iter):
        rebuilt = framing.analyse(framing.synthesise(spectra, envelope))
        moved = rebuilt if previous is None else torch.add(rebuilt, previous, alpha=-momentum / (1 + momentum))
        spectra, previous = magnitude * moved.sgn(), rebuilt
    return framing.synthesise(spectra, envelope)


@register("vocoder", "griffin_lim")
class GriffinLimVocoder(Vocoder):
    """Phases found by iteration, without training, for any mel transform."""

    def __init__(
        self,
        n_iter: Annotated[int, Field(ge=0, description="iterations; 0 keeps random phases")] = 32,
        momentum: Annotated[float, Field(ge=0, lt=1, description="0: the algorithm of 1984; 0.99 finds more")] = 0.99,
        inversion: Annotated[
            Inversion, Field(description="how bands become bins: pseudo-inverse, or least squares (slower)")
        ] = "pinv",
        seed: Annotated[int, Field(ge=0, description="of the first phases; the same bands give the same audio")] = 0,
    ) -> None:
        self.n_iter = n_iter
        self.momentum = momentum
        self.inversion: Inversion = inversion
        self.seed = seed

    def problem(self, transform: MelTransform) -> str | None:
        """Log what bands of low rank lose; they are not a mistake."""
        loss = check_filterbank(transform.bands).problem(transform.bands)
        if loss is not None:
            logger.warning("%s", loss)
        return None

    def decode(self, mel: Tensor, transform: MelTransform) -> Tensor:
        spectrum = invert_mel(transform.to_physical(mel), transform.bands, self.inversion)
        magnitude = spectrum.sqrt() if transform.power == 2 else spectrum
        return find_phases(magnitude, transform.framing, self.n_iter, self.momentum, self.seed)


@register("vocoder", "bigvgan")
class BigVGANVocoder(Vocoder):
    """NVIDIA's vocoder, version 1 or 2, for the mel transform that it was trained on."""

    def __init__(
        self,
        source: Annotated[
            str,
            Field(
                min_length=1,
                description="a weight file, a folder with config.json, a published name such as "
                "bigvgan_v2_44khz_128band_512x, or a repository on huggingface.co",
            ),
        ],
        config_path: Annotated[str | None, Field(description="its config.json, if it is elsewhere")] = None,
    ) -> None:
        self.source = source
        self.config_path = config_path
        self._network: BigVGAN | None = None

    def problem(self, transform: MelTransform) -> str | None:
        """Return a sentence if the bands differ, from the config alone and before anything is loaded."""
        if not isinstance(transform, LogAmplitudeMel):
            return "BigVGAN reads log amplitudes; set the variant to 'bigvgan'"
        missing = problem_of_weights(self.source)
        if missing is not None:
            return missing
        config = read_config(self.source, self.config_path)
        return None if config is None else mismatch(transform, config, self.source)

    def decode(self, mel: Tensor, transform: MelTransform) -> Tensor:
        assert isinstance(transform, LogAmplitudeMel)
        return self.decode_log_mel(transform.to_log(mel), transform)

    def decode_log_mel(self, log_mel: Tensor, transform: LogAmplitudeMel | None = None) -> Tensor:
        """Bands in natural units (b, mels, t) to audio (b, t * hop)."""
        network = self.network.to(log_mel.device)
        wrong = None if transform is None else mismatch(transform, network.config, self.source)
        if wrong is not None:
            raise ConfigError(wrong)
        audio: Tensor = network(log_mel)[:, 0]
        return audio

    @property
    def network(self) -> BigVGAN:
        """Return the network; load it on first use."""
        if self._network is None:
            logger.info("loading BigVGAN from %s", self.source)
            with torch.device("cpu"):
                self._network = load_bigvgan(self.source, self.config_path)
        return self._network


def mismatch(transform: LogAmplitudeMel, config: BigVGANConfig, name: str) -> str | None:
    """Return a sentence with every setting in which the bands differ from the vocoder's; None if they agree."""
    bands, framing = transform.bands, transform.framing
    pairs = {
        "sample_rate": (bands.sample_rate, config.sampling_rate),
        "n_mels": (bands.n_mels, config.num_mels),
        "n_fft": (bands.n_fft, config.n_fft),
        "hop_length": (framing.hop_length, config.hop_size),
        "win_length": (framing.win_length, config.win_size),
        "fmin": (bands.fmin, config.fmin),
        "fmax": (bands.top, config.top),
    }
    wrong = [f"{key} is {ours:g}, not {theirs:g}" for key, (ours, theirs) in pairs.items() if ours != theirs]
    return f"{name} was trained on other bands: {', '.join(wrong)}" if wrong else None
