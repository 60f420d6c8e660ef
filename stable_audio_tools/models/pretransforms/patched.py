"""Patches: neighbouring samples become channels."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.transforms import Resample

from stable_audio_tools.core.config import register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.models.autoencoders.oobleck import DILATIONS, ResidualUnit
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d
from stable_audio_tools.models.pretransforms.base import Pretransform, facts


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if config.patch_size % config.oversampling:
        above = -(-config.patch_size // config.oversampling) * config.oversampling
        yield (
            "patch_size",
            f"is {config.patch_size}, not a multiple of oversampling ({config.oversampling}): a frame must hold a "
            f"whole number of samples; use {above}",
        )


def _facts(config: SimpleNamespace) -> JsonObject:
    # Published configs that oversample count frames without it, so their ratio is not checked.
    ratio = config.patch_size if config.oversampling == 1 else None
    encoded = config.channels * config.patch_size
    return facts(io_channels=config.channels, encoded_channels=encoded, downsampling_ratio=ratio)


@register("pretransform", "patched", facts=_facts, check=_check)
class PatchedPretransform(Pretransform):
    """Every `patch_size` samples of a channel become as many channels; the end is filled up with silence."""

    def __init__(
        self,
        channels: Annotated[int, Field(ge=1, description="audio channels")],
        patch_size: Annotated[int, Field(ge=1, description="samples in a patch")],
        oversampling: Annotated[int, Field(ge=1, description="raise the sample rate by this factor first")] = 1,
        postfilter_channels: Annotated[
            int, Field(ge=0, description="width of a learned filter after unpatching; 0: none")
        ] = 0,
    ) -> None:
        super().__init__(enable_grad=False, io_channels=channels, is_discrete=False)
        self.channels = channels
        self.patch_size = patch_size
        self.oversampling = oversampling
        self.downsampling_ratio = patch_size // oversampling
        self.encoded_channels = channels * patch_size
        if oversampling > 1:
            self.input_upsampler = Resample(1, oversampling)
            self.output_downsampler = Resample(oversampling, 1)
        self.postfilter: nn.Module | None = _post_filter(channels, postfilter_channels) if postfilter_channels else None

    def encode(self, x: Tensor, **kwargs: object) -> Tensor:  # (b, c, n) -> (b, c * p, ceil(n * oversampling / p))
        if self.oversampling > 1:
            x = self.input_upsampler(x)
        x = F.pad(x, (0, -x.shape[-1] % self.patch_size))
        return x.unflatten(-1, (-1, self.patch_size)).mT.flatten(1, 2)

    def decode(self, z: Tensor, **kwargs: object) -> Tensor:  # (b, c * p, t) -> (b, c, t * p / oversampling)
        x = z.unflatten(1, (-1, self.patch_size)).mT.flatten(2)
        x = x if self.postfilter is None else self.postfilter(x)
        return self.output_downsampler(x) if self.oversampling > 1 else x


def _post_filter(channels: int, width: int) -> nn.Sequential:
    """Build a filter over the unpatched signal, (b, c, n) -> (b, c, n)."""
    return nn.Sequential(
        WNConv1d(channels, width, kernel_size=7, padding=3),
        *(ResidualUnit(width, dilation, True) for dilation in DILATIONS),
        WNConv1d(width, channels, kernel_size=7, padding=3, bias=False),
    )
