"""What every vocoder is: a way from the bands of a mel transform to audio."""

from abc import ABC, abstractmethod

from torch import Tensor

from stable_audio_tools.mel.transforms import MelTransform


class Vocoder(ABC):
    """Holds no weights in the state dict of the model that it serves."""

    def problem(self, transform: MelTransform) -> str | None:
        """One sentence where the bands of this transform are not those that the vocoder takes."""
        return None

    @abstractmethod
    def decode(self, mel: Tensor, transform: MelTransform) -> Tensor:
        """Bands in [-1, 1] (b, mels, t), float32, to audio (b, t * hop)."""
