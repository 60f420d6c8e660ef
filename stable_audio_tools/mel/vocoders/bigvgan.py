"""BigVGAN as a vocoder: loaded when first used, and kept beside the model, not in its state dict."""

import logging
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import register
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.mel.bigvgan import BigVGAN, BigVGANConfig, load_bigvgan, read_config
from stable_audio_tools.mel.bigvgan import problem as problem_of_weights
from stable_audio_tools.mel.transforms import LogAmplitudeMel, MelTransform
from stable_audio_tools.mel.vocoders.base import Vocoder

logger = logging.getLogger(__name__)


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
        config_path: Annotated[str | None, Field(description="its config.json, where that is elsewhere")] = None,
    ) -> None:
        self.source = source
        self.config_path = config_path
        self._network: BigVGAN | None = None

    def problem(self, transform: MelTransform) -> str | None:
        """Before anything is loaded, as far as the config is at hand."""
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
        """The first access loads it."""
        if self._network is None:
            logger.info("loading BigVGAN from %s", self.source)
            with torch.device("cpu"):
                self._network = load_bigvgan(self.source, self.config_path)
        return self._network


def mismatch(transform: LogAmplitudeMel, config: BigVGANConfig, name: str) -> str | None:
    """Every number in which the bands differ from those that the vocoder was trained on, in one sentence."""
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
