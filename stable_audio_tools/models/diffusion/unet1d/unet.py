"""The 1-D attention U-Net of audio-diffusion-pytorch 0.0.94 (Schneider et al. 2023, "Moûsai").

    x (b, c, n) -> patches -> down, down, ... -> middle -> ..., up, up -> unpatched (b, c', n)

Every residual block is modulated by a mapping of the noise level and of global features; transformers may attend to a
sequence of embeddings; context channels may be concatenated at any level. `t` is 0 at clean data and 1 at noise.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.diffusion.unet1d.attention import Transformer1d, TransformerOptions
from stable_audio_tools.models.diffusion.unet1d.blocks import (
    BlockOptions,
    Patcher,
    ResnetBlock,
    Unpatcher,
    downsampling,
    upsampling,
)
from stable_audio_tools.models.diffusion.unet1d.embeddings import time_embedding


class SpectralChannels(nn.Module):
    """Short-time Fourier transform with every frequency a channel: (b, c, n) <-> (b, 2 * c * f, frames).

    With an odd `num_fft` there are exactly n / hop_length frames; f is num_fft // 2 + 1.
    """

    window: Tensor

    def __init__(self, num_fft: int, hop_length: int, window_length: int | None, use_complex: bool) -> None:
        super().__init__()
        self.num_fft = num_fft
        self.hop_length = hop_length
        self.use_complex = use_complex
        self.register_buffer("window", torch.hann_window(window_length or num_fft))

    @property
    def num_bins(self) -> int:
        return self.num_fft // 2 + 1

    def encode(self, waves: Tensor) -> Tensor:
        """Magnitudes then phases, or real parts then imaginary ones."""
        spectra = torch.stft(
            rearrange(waves, "b c n -> (b c) n"),
            self.num_fft,
            self.hop_length,
            window=self.window,
            win_length=len(self.window),
            normalized=True,
            return_complex=True,
        )
        pair = (spectra.real, spectra.imag) if self.use_complex else (spectra.abs(), spectra.angle())
        return torch.cat([rearrange(part, "(b c) f t -> b (c f) t", b=len(waves)) for part in pair], dim=1)

    def decode(self, channels: Tensor, length: int) -> Tensor:
        """Back to `length` samples."""
        first, second = rearrange(channels, "b (pair c f) t -> pair (b c) f t", pair=2, f=self.num_bins)
        spectra = torch.complex(first, second) if self.use_complex else torch.polar(first, second)
        waves = torch.istft(
            spectra,
            self.num_fft,
            self.hop_length,
            window=self.window,
            win_length=len(self.window),
            normalized=True,
            length=length,
        )
        return rearrange(waves, "(b c) n -> b c n", b=len(channels))


class Signals(NamedTuple):
    """The inputs of every level: the mapping of time and features, and the tokens to attend to."""

    mapping: Tensor | None  # (b, m)
    embedding: Tensor | None  # (b, s, f)
    embedding_mask: Tensor | None  # (b, s)


class DownLevel(nn.Module):
    """Downsample, concatenate context channels, residual blocks, transformer. Returns x and the skips it leaves."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block: BlockOptions,
        transformer: TransformerOptions,
        *,
        num_blocks: int,
        num_layers: int,
        factor: int,
        kernel_multiplier: int,
        context_channels: int,
    ) -> None:
        super().__init__()
        self.downsample = downsampling(in_channels, out_channels, factor, kernel_multiplier)
        self.blocks = nn.ModuleList(
            ResnetBlock(out_channels + (context_channels if index == 0 else 0), out_channels, block)
            for index in range(num_blocks)
        )
        self.transformer = Transformer1d(num_layers, out_channels, transformer) if num_layers else None

    def forward(self, x: Tensor, signals: Signals, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        x = self.downsample(x)
        if context is not None:
            x = torch.cat([x, context], dim=1)
        skips = []
        for block in self.blocks:
            x = block(x, signals.mapping)
            skips.append(x)
        if self.transformer is not None:
            x = self.transformer(x, signals.embedding, signals.embedding_mask)
            skips.append(x)
        return x, skips


class UpLevel(nn.Module):
    """Residual blocks, each fed one skip of the level across, then a transformer, then upsampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block: BlockOptions,
        transformer: TransformerOptions,
        *,
        num_blocks: int,
        num_layers: int,
        factor: int,
        use_nearest: bool,
        skip_scale: float,
    ) -> None:
        super().__init__()
        self.skip_scale = skip_scale
        self.blocks = nn.ModuleList(ResnetBlock(2 * in_channels, in_channels, block) for _ in range(num_blocks))
        self.transformer = Transformer1d(num_layers, in_channels, transformer) if num_layers else None
        self.upsample = upsampling(in_channels, out_channels, factor, use_nearest)

    def forward(self, x: Tensor, signals: Signals, skips: list[Tensor]) -> Tensor:
        for block, skip in zip(self.blocks, reversed(skips)):
            x = block(torch.cat([x, skip * self.skip_scale], dim=1), signals.mapping)
        if self.transformer is not None:
            x = self.transformer(x, signals.embedding, signals.embedding_mask)
        out: Tensor = self.upsample(x)
        return out


class MiddleLevel(nn.Module):
    """Two residual blocks around a transformer, at the lowest resolution."""

    def __init__(
        self,
        channels: int,
        *,
        block: BlockOptions,
        num_layers: int,
        transformer: TransformerOptions,
    ) -> None:
        super().__init__()
        self.pre_block, self.post_block = (ResnetBlock(channels, channels, block) for _ in range(2))
        self.transformer = Transformer1d(num_layers, channels, transformer) if num_layers else None

    def forward(self, x: Tensor, signals: Signals) -> Tensor:
        x = self.pre_block(x, signals.mapping)
        if self.transformer is not None:
            x = self.transformer(x, signals.embedding, signals.embedding_mask)
        out: Tensor = self.post_block(x, signals.mapping)
        return out


Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positives = Sequence[Positive]
Counts = Sequence[Count]


class UNet1d(nn.Module):
    """The net itself; its parameters are the keys of `adp_1d`, `adp_cfg_1d` and `adp_uncond_1d` configs."""

    def __init__(  # long because it is the list of config keys
        self,
        in_channels: Annotated[int, Field(ge=1, description="channels of the audio or latents")],
        channels: Annotated[int, Field(ge=1, description="channels at multiplier 1")],
        multipliers: Annotated[Positives, Field(min_length=1, description="width of each resolution, in `channels`")],
        factors: Annotated[Positives, Field(description="downsampling between neighbouring resolutions")],
        num_blocks: Annotated[Counts, Field(description="residual blocks of each level")],
        attentions: Annotated[
            Counts, Field(min_length=1, description="transformer layers of each level; the last entry is the middle")
        ],
        *,
        out_channels: Annotated[Positive | None, Field(description="null: as many as come in")] = None,
        patch_size: Annotated[int, Field(ge=1, description="neighbouring frames folded into channels")] = 1,
        resnet_groups: Annotated[int, Field(ge=1, description="groups of the group norms")] = 8,
        kernel_multiplier_downsample: Annotated[
            int, Field(ge=2, multiple_of=2, description="strides under a downsampling kernel")
        ] = 2,
        use_nearest_upsample: Annotated[bool, Field(description="repeat and convolve instead of transposing")] = False,
        use_skip_scale: Annotated[bool, Field(description="scale skips by 2^-0.5")] = True,
        use_snake: Annotated[bool, Field(description="snake activations instead of SiLU")] = False,
        use_context_time: Annotated[bool, Field(description="modulate by the noise level")] = True,
        context_features: Annotated[Positive | None, Field(description="width of the global condition")] = None,
        context_features_multiplier: Annotated[int, Field(ge=1, description="width of the mapping, in `channels`")] = 4,
        context_channels: Annotated[
            Counts | None, Field(description="channels concatenated at the input and after each downsampling")
        ] = None,
        context_embedding_features: Annotated[
            Positive | None, Field(description="width of the tokens that transformers attend to")
        ] = None,
        exclude_masked_tokens: Annotated[
            bool, Field(description="leave masked tokens out of the softmax; published weights keep them in")
        ] = False,
        attention_heads: Annotated[Positive | None, Field(description="null: channels // attention_features")] = None,
        attention_features: Annotated[
            Positive | None, Field(description="width of a head; null: channels // attention_heads")
        ] = None,
        attention_multiplier: Annotated[Positive | None, Field(description="width of the feed-forwards")] = None,
        use_stft: Annotated[bool, Field(description="work on spectrogram channels of the waveform")] = False,
        use_stft_context: Annotated[bool, Field(description="transform the context at the input too")] = False,
        stft_num_fft: Annotated[Positive | None, Field(description="odd: as many frames as hops")] = None,
        stft_hop_length: Annotated[Positive | None, Field(description="null: 256")] = None,
        stft_window_length: Annotated[Positive | None, Field(description="null: stft_num_fft")] = None,
        stft_length: Annotated[Positive | None, Field(description="samples out; null: as many as come in")] = None,
        stft_use_complex: Annotated[bool, Field(description="real and imaginary, not magnitude and phase")] = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        context_channels = [*(context_channels or ()), *[0] * len(multipliers)][: len(multipliers)]
        self.context_features = context_features
        self.context_channels = tuple(context_channels)
        self.use_stft_context = use_stft_context
        self.stft_length = stft_length
        self.patch_size = patch_size
        self.factors = tuple(factors)
        self.stft: SpectralChannels | None = None
        spectral = 1
        if use_stft:
            assert stft_num_fft is not None, "checked where the config is read"
            self.stft = SpectralChannels(stft_num_fft, stft_hop_length or 256, stft_window_length, stft_use_complex)
            spectral = 2 * self.stft.num_bins

        width = channels * context_features_multiplier
        modulated = use_context_time or bool(context_features)
        self.to_time = time_embedding(channels, width) if use_context_time else None
        self.to_features = nn.Sequential(nn.Linear(context_features, width), nn.GELU()) if context_features else None
        self.to_mapping = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU()) if modulated else None
        )

        block = BlockOptions(resnet_groups, width if modulated else None, use_snake)
        widths = [channels * multiplier for multiplier in multipliers]
        given = context_channels[0] * (spectral if use_stft_context else 1)
        self.to_in = Patcher(in_channels * spectral + given, widths[0], patch_size, block)
        transformer = TransformerOptions(
            attention_heads,
            attention_features,
            attention_multiplier or 1,
            context_embedding_features,
            exclude_masked_tokens,
        )
        self.downsamples = nn.ModuleList(
            DownLevel(
                widths[level],
                widths[level + 1],
                factor=factors[level],
                kernel_multiplier=kernel_multiplier_downsample,
                context_channels=context_channels[level + 1],
                num_blocks=num_blocks[level],
                block=block,
                num_layers=attentions[level],
                transformer=transformer,
            )
            for level in range(len(factors))
        )
        self.bottleneck = MiddleLevel(
            widths[-1],
            block=block,
            num_layers=attentions[-1],
            transformer=transformer,
        )
        self.upsamples = nn.ModuleList(
            UpLevel(
                widths[level + 1],
                widths[level],
                factor=factors[level],
                use_nearest=use_nearest_upsample,
                skip_scale=2**-0.5 if use_skip_scale else 1.0,
                # one block for every skip of the level across, and its transformer leaves one too
                num_blocks=num_blocks[level] + (attentions[level] > 0),
                block=block,
                num_layers=attentions[level],
                transformer=transformer,
            )
            for level in reversed(range(len(factors)))
        )
        self.to_out = Unpatcher(widths[0], out_channels * spectral, patch_size, block)

    @property
    def length_multiple(self) -> int:
        """Frames per frame of the middle level: input lengths must be a multiple of it."""
        return self.patch_size * math.prod(self.factors)

    def forward(
        self,
        x: Tensor,
        time: Tensor | None = None,
        *,
        features: Tensor | None = None,
        channels_list: Sequence[Tensor] | None = None,
        embedding: Tensor | None = None,
        embedding_mask: Tensor | None = None,
    ) -> Tensor:
        """x (b, c, n), time (b,), features (b, g), contexts [(b, c, any length)], embedding (b, s, f) -> (b, c', n)"""
        samples = x.shape[-1]
        if self.stft is not None:
            x = self.stft.encode(x)
        self._check_length(x.shape[-1], samples)
        contexts = self._contexts(channels_list or (), x.shape[-1], samples)
        if contexts[0] is not None:
            x = torch.cat([x, contexts[0]], dim=1)
        signals = Signals(self._mapping(time, features), embedding, embedding_mask)
        first = x = self.to_in(x, signals.mapping)
        skips = []
        for down, context in zip(self.downsamples, contexts[1:]):
            x, left = down(x, signals, context)
            skips.append(left)
        x = self.bottleneck(x, signals)
        for up in self.upsamples:
            x = up(x, signals, skips.pop())
        x = self.to_out(x + first, signals.mapping)
        return x if self.stft is None else self.stft.decode(x, self.stft_length or samples)

    def _check_length(self, frames: int, samples: int) -> None:
        step = self.length_multiple
        if frames % step or frames == 0:
            of = f"{samples} frames" if self.stft is None else f"{samples} samples, {frames} spectrogram frames"
            raise ValueError(
                f"input of {of}: the length must be a multiple of patch_size x factors = {step}; "
                f"pad to {max(1, math.ceil(frames / step)) * step}"
            )

    def _mapping(self, time: Tensor | None, features: Tensor | None) -> Tensor | None:
        """Return the modulation of the residual blocks, (b, m)."""
        if self.to_mapping is None:
            return None
        parts = []
        if self.to_time is not None:
            if time is None:
                raise ValueError("the model is conditioned on the noise level (use_context_time): pass time, (b,)")
            parts.append(self.to_time(time))
        if self.to_features is not None:
            if features is None:
                raise ValueError(
                    f"the model has context_features = {self.context_features}, and no global condition was given; "
                    "name conditioners in global_cond_ids"
                )
            parts.append(self.to_features(features))
        mapping: Tensor = self.to_mapping(sum(parts))
        return mapping

    def _contexts(self, given: Sequence[Tensor], frames: int, samples: int) -> list[Tensor | None]:
        """The context channels of each level, stretched to its length; None where a level has none."""
        wanted = sum(width > 0 for width in self.context_channels)
        if len(given) < wanted:
            raise ValueError(f"context_channels names {wanted} levels with context, {len(given)} tensors were given")
        remaining = iter(given)
        contexts: list[Tensor | None] = []
        length = frames
        for level, width in enumerate(self.context_channels):
            if level > 0:
                length = length // (self.patch_size if level == 1 else 1) // self.factors[level - 1]
            if width == 0:
                contexts.append(None)
                continue
            context = next(remaining)
            if context.shape[1] != width:
                raise ValueError(f"context of level {level} has {context.shape[1]} channels, context_channels {width}")
            if level == 0 and self.stft is not None and self.use_stft_context:
                contexts.append(self.stft.encode(_stretch(context, samples)))
            else:
                contexts.append(_stretch(context, length))
        return contexts


def _stretch(x: Tensor, length: int) -> Tensor:
    return x if x.shape[-1] == length else F.interpolate(x, length, mode="nearest")
