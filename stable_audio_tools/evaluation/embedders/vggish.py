"""VGGish (Hershey et al. 2017), the embedder of the first Fréchet audio distances, with torchvggish's tensor names."""

import re
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.evaluation.embedders.base import Embedder, Windows, fill_up
from stable_audio_tools.evaluation.embedders.published import weight_file
from stable_audio_tools.models.checkpoints import open_weights

RATE = 16000
_FFT, _WINDOW, _HOP = 512, 400, 160  # samples: 25 ms every 10 ms
_FRAMES, _BANDS = 96, 64
_SAMPLES = (_FRAMES - 1) * _HOP + _WINDOW  # of one example


class VggishNetwork(nn.Module):
    """Network from log-mel (b, 1, 96, 64) to vectors, with the widths of its checkpoint; no last ReLU, as in fadtk."""

    def __init__(self, widths: list[int], hidden: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for index, width in enumerate(widths):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            if index in (0, 1, 3, 5):
                layers.append(nn.MaxPool2d(2))
            before = width
        self.features = nn.Sequential(*layers)
        before = widths[-1] * (_FRAMES // 16) * (_BANDS // 16)
        dense: list[nn.Module] = []
        for width in hidden:
            dense += [nn.Linear(before, width), nn.ReLU()]
            before = width
        self.embeddings = nn.Sequential(*dense[:-1])

    def forward(self, mel: Tensor) -> Tensor:
        maps = self.features(mel).permute(0, 2, 3, 1)  # channels last, as in TensorFlow
        out: Tensor = self.embeddings(maps.flatten(1))
        return out


def read_vggish(path: str) -> VggishNetwork:
    """Build the network of a checkpoint."""
    state = open_weights(path).tensors
    convolutions = _weights_of(state, "features")
    hidden = _weights_of(state, "embeddings")
    if len(convolutions) != 6 or not hidden:
        raise CheckpointError(
            f"{path}: not a checkpoint of VGGish (expected the names of torchvggish: features.*, embeddings.*)"
        )
    network = VggishNetwork([w.shape[0] for w in convolutions], [w.shape[0] for w in hidden])
    names = list(network.state_dict())
    missing = [name for name in names if name not in state]
    if missing:
        raise CheckpointError(f"{path}: lacks {len(missing)} tensors of VGGish, such as {missing[0]}")
    try:
        network.load_state_dict({name: state[name] for name in names})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its tensors do not fit VGGish: {error}") from error
    return network


def _weights_of(state: Mapping[str, Tensor], part: str) -> list[Tensor]:
    found = {int(m[1]): value for name, value in state.items() if (m := re.fullmatch(rf"{part}\.(\d+)\.weight", name))}
    return [found[index] for index in sorted(found)]


def log_mel(audio: Tensor) -> Tensor:
    """Convert (b, 15600) at 16 kHz to (b, 96, 64): log of mel magnitudes plus 0.01."""
    window = torch.hann_window(_WINDOW, device=audio.device)
    frames = audio.unfold(-1, _WINDOW, _HOP) * window
    return (torch.fft.rfft(frames, _FFT).abs() @ mel_bank().to(audio.device) + 0.01).log()


def mel_bank() -> Tensor:
    """Return filters (257, 64): triangles on the scale 1127 ln(1 + f / 700) from 125 to 7500 Hz, without DC."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    bins = mel(torch.linspace(0, RATE / 2, _FFT // 2 + 1, dtype=torch.float64))[:, None]
    low, high = mel(torch.tensor([125.0, 7500.0], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, _BANDS + 2, dtype=torch.float64)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bank = torch.minimum(rising, falling).clamp(min=0)
    bank[0] = 0
    return bank.float()


@register("embedder", "vggish")
class VggishEmbedder(Embedder):
    """VGGish of torchvggish without PCA: a vector of 128 numbers per 0.96 s."""

    def __init__(
        self,
        checkpoint: Annotated[
            str, Field(description="weights of torchvggish: a file, or the name of the published one")
        ] = "vggish-10086976.pth",
    ) -> None:
        super().__init__(RATE, Windows(_SAMPLES / RATE, _FRAMES * _HOP / RATE), {}, checkpoint)
        self.checkpoint = checkpoint

    def load(self) -> nn.Module:
        return read_vggish(weight_file(self.checkpoint, "vggish.checkpoint"))

    def embed(self, audio: Tensor) -> Tensor:
        found: Tensor = self.network(log_mel(fill_up(audio, _SAMPLES))[:, None])
        return found[:, None]
