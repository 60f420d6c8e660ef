"""Windowed transformers as discriminators: over patches, complex spectra, wavelets and pitch classes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.autoencoders.same import TransformerResamplingBlock
from stable_audio_tools.models.discriminators.hil import ChromaSpectrum, MultiFilterBankDiscriminator, NoisyCritic
from stable_audio_tools.models.discriminators.losses import AdversarialName, CriticLosses, Opinion
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.models.pretransforms.patched import PatchedPretransform
from stable_audio_tools.models.pretransforms.spectral import ComplexSTFTPretransform
from stable_audio_tools.models.pretransforms.wavelet import WaveletPretransform
from stable_audio_tools.models.psychoacoustics import PsychoacousticStereoNoise

Sizes = Sequence[Annotated[int, Field(ge=1)]]
_HEAD = 64  # channels of an attention head
_HEADS = (3, 8)  # fewest and most of a discriminator
_WINNING = 0.1  # running loss below which what is judged gets noise
_SMOOTHING = 0.01


def get_transformer_dim(channels: int) -> int:
    """Return the width for an input: whole heads, about 16 times the root of its channels."""
    heads = math.floor(16 * math.sqrt(max(1, channels)) / _HEAD + 0.5)
    return min(max(heads, _HEADS[0]), _HEADS[1]) * _HEAD


class ChromaBank(Pretransform):
    """Pitch classes of each channel as channels."""

    def __init__(self, channels: int, n_chroma: int, sample_rate: int, centre: float, width: float) -> None:
        super().__init__(enable_grad=True, io_channels=channels, is_discrete=False)
        self.chroma = ChromaSpectrum(n_chroma, sample_rate, centre, width, norm=1.0)
        self.downsampling_ratio = self.chroma.hop
        self.encoded_channels = channels * n_chroma

    def encode(self, x: Tensor, **kwargs: Any) -> Tensor:
        classes: Tensor = self.chroma(x)
        return classes.flatten(1, 2)


class BankTransformer(nn.Module):
    """One transformer over the frames of a bank: a score for every `stride` of them."""

    def __init__(
        self,
        bank: Pretransform,
        stride: int,
        window: int,
        depth: int,
        checkpointing: bool = False,
        differential: bool = True,
        max_depth_feature: int = 2,
        ff_mult: float = 1.5,
        dyt: bool = False,
    ) -> None:
        super().__init__()
        width = get_transformer_dim(bank.encoded_channels)
        self.discriminator = TransformerResamplingBlock(
            bank.encoded_channels,
            width,
            stride,
            sliding_window=(window, window),
            transformer_depth=depth,
            checkpointing=checkpointing,
            differential=differential,
            ff_mult=ff_mult,
            dyt=dyt,
            dim_heads=_HEAD,
        )
        self.decision_map = nn.Conv1d(width, 1, 1, bias=False)
        self.pretransform = bank
        self.max_depth_feature = max_depth_feature

    def forward(self, audio: Tensor) -> Opinion:
        frames = self.pretransform.encode(F.pad(audio, (0, -audio.shape[-1] % self.pretransform.downsampling_ratio)))
        states, features = self.discriminator(frames, return_features=True)
        return Opinion(self.decision_map(states), features[: self.max_depth_feature])


class BankTransformers(nn.Module):
    """One transformer for each bank."""

    def __init__(
        self,
        banks: Sequence[Pretransform],
        depths: Sequence[int],
        strides: Sequence[int],
        sliding_window_widths: Sequence[int],
        **options: Any,
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            BankTransformer(bank, stride, window, depth, **options)
            for bank, stride, window, depth in zip(banks, strides, sliding_window_widths, depths)
        )

    def forward(self, audio: Tensor) -> list[Opinion]:
        return [discriminator(audio) for discriminator in self.discriminators]


class CriticOptions(TypedDict, total=False):
    """Options of the transformers of one kind of bank; lists have an entry for each."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    enabled: bool
    depths: Sizes
    strides: Sizes
    sliding_window_widths: Sizes
    checkpointing: bool
    differential: bool
    max_depth_feature: int
    ff_mult: float
    dyt: bool


class PatchOptions(CriticOptions, total=False):
    """Transformers over patches of samples."""

    patch_sizes: Sizes


class SpectrumOptions(CriticOptions, total=False):
    """Transformers over complex spectra with half overlap."""

    n_ffts: Sizes


class ChromaOptions(CriticOptions, total=False):
    """Transformers over 64 pitch classes around an octave each."""

    centres: Sequence[float]
    octwidths: Sequence[float]


class WaveletOptions(CriticOptions, total=False):
    """Transformers over wavelets; with `use_HIL` the filter banks and convolutions of `hil`, with its options."""

    levels: Sizes
    use_HIL: bool
    periods: Sizes
    taps: int
    beta: float
    cutoff_freqs: Sequence[float]
    kernel_sizes: Sizes
    channels: Sizes
    norm: Literal["weight_norm", "spectral_norm"]


_PATCHES: PatchOptions = {
    "patch_sizes": (29, 443, 953),
    "depths": (3, 3, 3),
    "strides": (2, 16, 2),
    "sliding_window_widths": (4, 8, 1),
}
_SPECTRA: SpectrumOptions = {
    "n_ffts": (4096, 1024, 128),
    "depths": (3, 3, 3),
    "strides": (2, 32, 2),
    "sliding_window_widths": (2, 4, 3),
}
_WAVELETS: WaveletOptions = {
    "levels": (4, 8, 10),
    "depths": (3, 3, 3),
    "strides": (2, 32, 2),
    "sliding_window_widths": (3, 8, 1),
}
_CHROMAS: ChromaOptions = {
    "centres": (1.0, 5.0, 9.0),
    "octwidths": (1.0, 1.5, 1.0),
    "depths": (3, 3, 3),
    "strides": (16, 8, 2),
    "sliding_window_widths": (3, 3, 3),
}
_FILTER_BANKS: WaveletOptions = {
    "periods": (1, 2, 3, 5, 7, 11),
    "taps": 256,
    "beta": 8.0,
    "cutoff_freqs": (0, 0.253881, 0.170546, 0.103881, 0.075310, 0.049338),
    "kernel_sizes": (5, 5, 5, 5, 5),
    "strides": (3, 3, 3, 3, 1),
    "channels": (32, 128, 512, 1024, 1024),
    "norm": "weight_norm",
}


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    sections: dict[str, tuple[Mapping[str, Any], str, bool]] = {
        "patched_kwargs": ({**_PATCHES, **config.patched_kwargs}, "patch_sizes", True),
        "stft_kwargs": ({**_SPECTRA, **config.stft_kwargs}, "n_ffts", False),
        "chroma_kwargs": ({**_CHROMAS, **config.chroma_kwargs}, "centres", False),
        "mfb_kwargs": ({**_WAVELETS, **config.mfb_kwargs}, "levels", False),
    }
    enabled = {key: section.get("enabled", default) for key, (section, _, default) in sections.items()}
    if not any(enabled.values()):
        yield "patched_kwargs", "no kind of discriminator is enabled; enable one"
    for key, (section, unit, _) in sections.items():
        if not enabled[key] or section.get("use_HIL"):
            continue
        for name in ("depths", "strides", "sliding_window_widths"):
            if len(section[name]) != len(section[unit]):
                yield (
                    f"{key}.{name}",
                    f"has {len(section[name])} entries for {len(section[unit])} {unit}; give one each",
                )


@register("discriminator", "transformer", check=_check)
class MultiTransformerDiscriminator(NoisyCritic):
    """Windowed transformers over patches, and over complex spectra, wavelets and pitch classes if enabled.

    While the critic wins (running loss below 0.1), noise is added to what it judges.
    """

    def __init__(
        self,
        normalize_losses: Annotated[bool, Field(description="relative feature distances")] = False,
        loss_type: Annotated[AdversarialName, Field(description="adversarial loss")] = "rpgan",
        add_noise: Annotated[
            bool, Field(description="add noise below the masking threshold to what is judged")
        ] = False,
        noise_kwargs: Annotated[
            Mapping[str, float | bool], Field(description="of that threshold (PsychoacousticStereoNoise)")
        ] = {},
        sample_rate: Runtime[int] = 44100,
        in_channels: Runtime[int] = 2,
        stft_kwargs: Annotated[SpectrumOptions, Field(description="transformers over complex spectra; off")] = {},  # noqa: B006
        patched_kwargs: Annotated[PatchOptions, Field(description="transformers over patches; on")] = {},  # noqa: B006
        mfb_kwargs: Annotated[WaveletOptions, Field(description="over wavelets or filter banks; off")] = {},  # noqa: B006
        chroma_kwargs: Annotated[ChromaOptions, Field(description="transformers over pitch classes; off")] = {},  # noqa: B006
    ) -> None:
        super().__init__(loss_type, normalize_losses, None, add_noise)
        banks: Sequence[Pretransform]
        if stft_kwargs.get("enabled", False):
            spectra: dict[str, Any] = {**_SPECTRA, **stft_kwargs}
            banks = [
                ComplexSTFTPretransform(in_channels, size, ema_flatten=False, use_compander=False)
                for size in spectra.pop("n_ffts")
            ]
            self.stft_discriminators = _transformers(banks, spectra)
        if patched_kwargs.get("enabled", True):
            patches: dict[str, Any] = {**_PATCHES, **patched_kwargs}
            banks = [PatchedPretransform(in_channels, size) for size in patches.pop("patch_sizes")]
            self.patched_discriminators = _transformers(banks, patches)
        if mfb_kwargs.get("enabled", False):
            self.fb_discriminators = _filter_banks(in_channels, mfb_kwargs)
        if chroma_kwargs.get("enabled", False):
            chroma: dict[str, Any] = {**_CHROMAS, **chroma_kwargs}
            banks = [
                ChromaBank(in_channels, 64, sample_rate, centre, width)
                for centre, width in zip(chroma.pop("centres"), chroma.pop("octwidths"))
            ]
            self.chroma_discriminators = _transformers(banks, chroma)
        self.noise_model = PsychoacousticStereoNoise(sample_rate, **noise_kwargs) if add_noise else None  # type: ignore[arg-type]
        self.register_buffer("last_disc_loss", torch.ones(()), persistent=False)

    def ask(self, audio: Tensor) -> list[Opinion]:
        if self.training:
            lead = (_WINNING - self.get_buffer("last_disc_loss")).clamp(min=0) / _WINNING
            audio = audio + torch.randn_like(audio) * audio.std() * lead
        return [opinion for kind in self.children() if isinstance(kind, _KINDS) for opinion in kind(audio)]

    def discriminator_loss(self, fake: Tensor, real: Tensor) -> Tensor:
        loss = super().discriminator_loss(fake, real)
        self.get_buffer("last_disc_loss").lerp_(loss.detach().to(torch.float32), _SMOOTHING)
        return loss

    def loss(self, reals: Tensor, fakes: Tensor) -> CriticLosses:
        losses = super().loss(reals, fakes)
        self.get_buffer("last_disc_loss").lerp_(losses.discriminator.detach().to(torch.float32), _SMOOTHING)
        return losses


_KINDS = (BankTransformers, MultiFilterBankDiscriminator)


def _transformers(banks: Sequence[Pretransform], options: Mapping[str, Any]) -> BankTransformers:
    return BankTransformers(banks, **{key: value for key, value in options.items() if key != "enabled"})


def _filter_banks(in_channels: int, options: WaveletOptions) -> BankTransformers | MultiFilterBankDiscriminator:
    if options.get("use_HIL", False):
        filters: dict[str, Any] = {key: options.get(key, default) for key, default in _FILTER_BANKS.items()}
        return MultiFilterBankDiscriminator(in_channels=in_channels, **filters)
    chosen: dict[str, Any] = {**_WAVELETS, **options}
    banks = [WaveletPretransform(in_channels, count, "bior4.4") for count in chosen.pop("levels")]
    return _transformers(banks, {key: value for key, value in chosen.items() if key not in {"use_HIL", *_ONLY_HIL}})


_ONLY_HIL = set(_FILTER_BANKS) - {"strides"}
