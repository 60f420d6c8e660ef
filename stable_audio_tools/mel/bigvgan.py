"""BigVGAN (Lee et al. 2023), versions 1 and 2, for inference: its configs, its network, its weight files."""

import math
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from stable_audio_tools.core.config import load
from stable_audio_tools.core.config.parts import as_error
from stable_audio_tools.core.config.sentences import sentences
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.activations import snake
from stable_audio_tools.models.autoencoders.layers import Conv1d, ConvTranspose1d
from stable_audio_tools.models.checkpoints import load_into, parameters_on_meta
from stable_audio_tools.models.pretrained import fetch_from_hub

Sizes = tuple[PositiveInt, ...]


class BigVGANConfig(BaseModel):
    """The config of a BigVGAN; keys of training are ignored, and `fmax` null is half the sample rate."""

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
            raise ValueError("upsample_kernel_sizes must have as many entries as upsample_rates")
        if any(kernel < rate for kernel, rate in zip(self.upsample_kernel_sizes, self.upsample_rates)):
            raise ValueError(
                "an entry of upsample_kernel_sizes is below that of upsample_rates; samples would be left out"
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError("resblock_dilation_sizes must have as many entries as resblock_kernel_sizes")
        return self

    @property
    def top(self) -> float:
        """Upper edge of the last band, Hz."""
        return self.sampling_rate / 2 if self.fmax is None else self.fmax

    @classmethod
    def parse(cls, content: Mapping[str, object], name: str) -> Self:
        """Parse JSON content; messages begin with `name`."""
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


_TAPS = 12
_CUTOFF = 0.25  # of the doubled rate: the old band's edge
_HALF_WIDTH = 0.3


def lowpass() -> Tensor:
    """Kaiser-windowed sinc of 12 taps, sum 1, for a change of rate by two; (1, 1, taps)"""
    attenuation = 2.285 * (_TAPS // 2 - 1) * math.pi * 4 * _HALF_WIDTH + 7.95  # dB, by Kaiser's formula
    time = torch.arange(_TAPS) - (_TAPS - 1) / 2
    window = torch.kaiser_window(_TAPS, beta=0.1102 * (attenuation - 8.7), periodic=False)
    taps = window * torch.sinc(2 * _CUTOFF * time)
    return (taps / taps.sum())[None, None]


class Filter(nn.Module):
    """The taps, kept in state dicts though nothing changes them."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", lowpass())


class Upsample(Filter):
    def forward(self, x: Tensor) -> Tensor:  # (b, c, n) -> (b, c, 2n)
        padded = F.pad(x, (5, 5), "replicate")
        taps = 2 * self.filter.expand(x.shape[1], -1, -1)
        return F.conv_transpose1d(padded, taps, stride=2, padding=15, groups=x.shape[1])


class Downsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lowpass = Filter()

    def forward(self, x: Tensor) -> Tensor:  # (b, c, 2n) -> (b, c, n)
        padded = F.pad(x, (5, 6), "replicate")
        return F.conv1d(padded, self.lowpass.filter.expand(x.shape[1], -1, -1), stride=2, groups=x.shape[1])


class Snake(nn.Module):
    """x + sin^2(alpha x) / beta; the plain kind has beta = alpha."""

    def __init__(self, channels: int, config: BigVGANConfig) -> None:
        super().__init__()
        self.is_log = config.snake_logscale
        start = 0.0 if self.is_log else 1.0
        self.alpha = nn.Parameter(torch.full((channels,), start))
        if config.activation == "snakebeta":
            self.beta = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.alpha[:, None], getattr(self, "beta", self.alpha)[:, None]
        return snake(x, alpha.exp(), beta.exp()) if self.is_log else snake(x, alpha, beta)


class Activation(nn.Module):
    """A periodic activation at twice the rate, so that its harmonics do not fold back."""

    def __init__(self, channels: int, config: BigVGANConfig) -> None:
        super().__init__()
        self.act = Snake(channels, config)
        self.upsample = Upsample()
        self.downsample = Downsample()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.downsample(self.act(self.upsample(x)))
        return made


def _same(channels: int, kernel: int, dilation: int = 1) -> nn.Module:
    return Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)


class PairBlock(nn.Module):
    """Block "1": for each dilation, an activation and a dilated convolution, then an activation and a dense one."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], config: BigVGANConfig) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same(channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_same(channels, kernel) for _ in dilations)
        self.activations = nn.ModuleList(Activation(channels, config) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        activations = iter(self.activations)
        for dilated, dense in zip(self.convs1, self.convs2):
            inner = dilated(next(activations)(x))
            x = x + dense(next(activations)(inner))
        return x


class SingleBlock(nn.Module):
    """Block "2": for each dilation, an activation and a dilated convolution."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], config: BigVGANConfig) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_same(channels, kernel, dilation) for dilation in dilations)
        self.activations = nn.ModuleList(Activation(channels, config) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv, activation in zip(self.convs, self.activations):
            x = x + conv(activation(x))
        return x


class BigVGAN(nn.Module):
    """Log mel bands (b, mels, t) to audio (b, 1, t * hop)."""

    def __init__(self, config: BigVGANConfig) -> None:
        super().__init__()
        self.config = config
        width = config.upsample_initial_channel
        block = PairBlock if config.resblock == "1" else SingleBlock
        shapes = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes))
        self.conv_pre = Conv1d(config.num_mels, width, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
            up = ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            width //= 2
            self.ups.append(nn.ModuleList([up]))
            self.resblocks.extend(block(width, size, dilations, config) for size, dilations in shapes)
        self.activation_post = Activation(width, config)
        self.conv_post = Conv1d(width, 1, 7, padding=3, bias=config.use_bias_at_final)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        parallel = len(self.resblocks) // len(self.ups)
        for number, up in enumerate(self.ups):
            assert isinstance(up, nn.ModuleList)
            x = up[0](x)
            first, *others = self.resblocks[number * parallel : (number + 1) * parallel]
            total: Tensor = first(x)
            for block in others:
                total = total + block(x)
            x = total / parallel
        x = self.conv_post(self.activation_post(x))
        return x.tanh() if self.config.use_tanh_at_final else x.clamp(-1, 1)


CONFIG = "config.json"
WEIGHTS = "bigvgan_generator.pt"


def read_config(source: str | Path, config_path: str | Path | None = None) -> BigVGANConfig | None:
    """Read the config without network access; None for repositories outside the published list."""
    path = Path(source).expanduser() if config_path is None else Path(config_path)
    if config_path is None and path.is_dir():
        path = path / CONFIG
    elif config_path is None and path.exists():
        path = path.with_name(CONFIG)
    elif config_path is None:
        return PUBLISHED.get(_name(source))
    return BigVGANConfig.parse(load(path), str(path))


def problem(source: str | Path) -> str | None:
    """Return a sentence if weights are missing on this disk; nothing is downloaded."""
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            _weights_in(path)
        elif not path.exists():
            _require_name(path)
    except CheckpointError as error:
        return str(error)
    return None


def load_bigvgan(source: str | Path, config_path: str | Path | None = None) -> BigVGAN:
    """Load a weight file, a folder, a published name or `owner/repository`; weight norm is folded."""
    path = Path(source).expanduser()
    config = read_config(source, config_path)
    if path.is_dir():
        path = _weights_in(path)
    elif not path.exists():
        _require_name(path)
        repository = f"nvidia/{_name(source)}" if _name(source) in PUBLISHED else str(source)
        path = fetch_from_hub(repository, WEIGHTS)
        if config is None:
            fetched = fetch_from_hub(repository, CONFIG)
            config = BigVGANConfig.parse(load(fetched), f"{repository}/{CONFIG}")
    assert config is not None
    with parameters_on_meta():
        network = BigVGAN(config)
    report = load_into(network, path, partial=True, device=torch.device("cpu"))
    if not report.complete:
        raise CheckpointError(
            f"{path}: does not fit its config\n{report.summary()}\n"
            f"give the {CONFIG} that was published with these weights"
        )
    return network.eval().requires_grad_(False)


def _name(source: str | Path) -> str:
    return str(source).removeprefix("nvidia/")


def _require_name(path: Path) -> None:
    """Refuse a source that is not on this disk and is not `name` or `owner/repository`."""
    if path.suffix or path.is_absolute() or len(path.parts) > 2:
        raise CheckpointError(f"{path}: no such file or folder")


def _weights_in(folder: Path) -> Path:
    if (folder / WEIGHTS).exists():
        return folder / WEIGHTS
    found = sorted(path for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".safetensors"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "none"
    raise CheckpointError(f"{folder}: expected {WEIGHTS}, or one other weight file; found {names}")
