"""The `config.json` of a BigVGAN: the keys that inference needs, by their published names."""

from collections.abc import Mapping
from math import prod
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from typing_extensions import Self

from stable_audio_tools.core.config.parts import as_error
from stable_audio_tools.core.config.sentences import sentences

Sizes = tuple[PositiveInt, ...]


class BigVGANConfig(BaseModel):
    """Keys of training alone are passed over; `fmax` null is half the sample rate."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    sampling_rate: PositiveInt
    num_mels: PositiveInt
    n_fft: PositiveInt
    hop_size: PositiveInt
    win_size: PositiveInt
    fmin: NonNegativeFloat = 0.0
    fmax: PositiveFloat | None = None
    upsample_rates: Sizes
    upsample_kernel_sizes: Sizes
    upsample_initial_channel: PositiveInt
    resblock: Literal["1", "2"] = "1"
    resblock_kernel_sizes: Sizes = (3, 7, 11)
    resblock_dilation_sizes: tuple[Sizes, ...] = ((1, 3, 5),) * 3
    activation: Literal["snake", "snakebeta"] = "snakebeta"
    snake_logscale: bool = True
    use_tanh_at_final: bool = True
    use_bias_at_final: bool = True

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.upsample_rates or not self.resblock_kernel_sizes:
            raise ValueError("upsample_rates and resblock_kernel_sizes need at least one entry each")
        if prod(self.upsample_rates) != self.hop_size:
            raise ValueError(f"upsample_rates multiply to {prod(self.upsample_rates)}, hop_size is {self.hop_size}")
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ValueError("upsample_kernel_sizes has not one entry for each of upsample_rates")
        if any(kernel < rate for kernel, rate in zip(self.upsample_kernel_sizes, self.upsample_rates)):
            raise ValueError(
                "an entry of upsample_kernel_sizes is below that of upsample_rates; samples would be left out"
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError("resblock_dilation_sizes has not one entry for each of resblock_kernel_sizes")
        return self

    @property
    def top(self) -> float:
        """Upper edge of the last band, Hz."""
        return self.sampling_rate / 2 if self.fmax is None else self.fmax

    @classmethod
    def parse(cls, content: Mapping[str, Any], name: str) -> Self:
        """From JSON; `name` stands before each message."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise as_error(sentences(error, name, cls)) from None


def _published(
    rate: int, mels: int, fmax: float | None, rates: tuple[int, ...], channels: int = 1536, version: int = 2
) -> BigVGANConfig:
    hop = prod(rates)
    return BigVGANConfig(
        sampling_rate=rate,
        num_mels=mels,
        n_fft=4 * hop,
        hop_size=hop,
        win_size=4 * hop,
        fmax=fmax,
        upsample_rates=rates,
        upsample_kernel_sizes=tuple(2 * factor for factor in rates),
        upsample_initial_channel=channels,
        use_tanh_at_final=version == 1,
        use_bias_at_final=version == 1,
    )


_BY_256, _BASE = (4, 4, 2, 2, 2, 2), (8, 8, 2, 2)

PUBLISHED = {  # `nvidia/<name>` on huggingface.co
    "bigvgan_v2_44khz_128band_512x": _published(44100, 128, None, (8, 4, 2, 2, 2, 2)),
    "bigvgan_v2_44khz_128band_256x": _published(44100, 128, None, _BY_256),
    "bigvgan_v2_24khz_100band_256x": _published(24000, 100, None, _BY_256),
    "bigvgan_v2_22khz_80band_256x": _published(22050, 80, None, _BY_256),
    "bigvgan_v2_22khz_80band_fmax8k_256x": _published(22050, 80, 8000, _BY_256),
    "bigvgan_24khz_100band": _published(24000, 100, 12000, _BY_256, version=1),
    "bigvgan_22khz_80band": _published(22050, 80, 8000, _BY_256, version=1),
    "bigvgan_base_24khz_100band": _published(24000, 100, 12000, _BASE, 512, version=1),
    "bigvgan_base_22khz_80band": _published(22050, 80, 8000, _BASE, 512, version=1),
}
