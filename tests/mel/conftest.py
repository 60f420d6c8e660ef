import pytest
import torch
from torch import Tensor

from stable_audio_tools.data.example_clips import example_clips


@pytest.fixture(scope="session")
def clips() -> dict[str, Tensor]:
    """One clip of each sort, mono (n,) float64 at 22050 Hz."""
    return {clip.name.split("_")[0]: torch.from_numpy(clip.wave.mean(1)) for clip in example_clips(1)}
