"""The constant-Q transform: frequencies in equal ratios, each under a window of as many of its own periods.

octave 0 (lowest)  ...  octave k - 1 (highest)
the kernels of the highest octave serve all: for the next one down, audio is halved in rate, and so is the hop
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.autoencoders.layers import kaiser_sinc_filter

_HALFBAND_TAPS = 129


class ConstantQTransform(nn.Module):
    """Complex spectrum of (b, n) around samples 0, hop, 2 * hop, ...: (b, bins, ceil(n / hop)), lowest frequency first.

    Kernels have an absolute sum of 1, and each row is scaled by the square root of its window's samples at the full
    rate: a sinusoid of amplitude a has a magnitude of a / 2 * sqrt(Q * sample_rate / frequency) (Schörkhuber & Klapuri
    2010; the scale of librosa).
    """

    kernels: Tensor
    halfband: Tensor
    scale: Tensor

    def __init__(self, sample_rate: int, hop_length: int, fmin: float, num_octaves: int, bins_per_octave: int) -> None:
        super().__init__()
        top = fmin * 2 ** (num_octaves - 1 / bins_per_octave)
        if top > sample_rate / 2:
            fitting = math.floor(math.log2(sample_rate / 2 / fmin))
            raise ValueError(
                f"{num_octaves} octaves from {fmin} Hz reach {top:.0f} Hz, above half the rate of {sample_rate} Hz; "
                f"at most {fitting} octaves fit"
            )
        self.hop_length = hop_length
        self.num_octaves = num_octaves
        ratio = 2 ** (1 / bins_per_octave)
        self.quality = 1 / (ratio - 1)
        lowest = fmin * 2 ** (num_octaves - 1)
        octave = [lowest * ratio**index for index in range(bins_per_octave)]
        kernels = _octave_kernels([frequency / sample_rate for frequency in octave], self.quality)
        lengths = [
            math.ceil(self.quality * sample_rate / (fmin * ratio**index))
            for index in range(num_octaves * bins_per_octave)
        ]
        self.register_buffer("kernels", kernels, persistent=False)
        self.register_buffer("halfband", kaiser_sinc_filter(0.25, 0.03, _HALFBAND_TAPS), persistent=False)
        self.register_buffer("scale", torch.tensor(lengths, dtype=torch.float32).sqrt()[:, None], persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        x, hop = audio[:, None], self.hop_length
        octaves = []
        for _ in range(self.num_octaves):
            octaves.append(self._top_octave(x, hop))
            x = F.conv1d(x, self.halfband, stride=2, padding=_HALFBAND_TAPS // 2)
            hop //= 2
        return torch.cat(octaves[::-1], dim=1) * self.scale

    def _top_octave(self, x: Tensor, hop: int) -> Tensor:
        half = self.kernels.shape[-1] // 2
        real, imaginary = F.conv1d(F.pad(x, (half, half)), self.kernels, stride=hop).chunk(2, dim=1)
        return torch.complex(real, imaginary)


def _octave_kernels(frequencies: list[float], quality: float) -> Tensor:
    """Windowed complex exponentials, conjugated: (2 * bins, 1, odd length), real parts first, centred.

    Frequencies are in cycles per sample.
    """
    half = math.ceil(quality / min(frequencies)) // 2 + 1
    time = torch.arange(-half, half + 1, dtype=torch.float64)
    rows = []
    for frequency in frequencies:
        length = math.ceil(quality / frequency)
        window = torch.where(time.abs() < length / 2, torch.cos(math.pi * time / length).square(), 0.0)
        window = window / window.sum()
        phase = 2 * math.pi * frequency * time
        rows.append(torch.stack([window * phase.cos(), -window * phase.sin()]))
    return torch.stack(rows, dim=1).flatten(0, 1)[:, None].float()
