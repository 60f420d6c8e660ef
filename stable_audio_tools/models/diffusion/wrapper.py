"""A diffusion model as training, generation, evaluation and attribution see it."""

from typing import ClassVar

from torch import nn

from stable_audio_tools.core.packages import LateMethod
from stable_audio_tools.models.conditioners.multi import MultiConditioner
from stable_audio_tools.models.diffusion.distribution_shift import Shift
from stable_audio_tools.models.diffusion.objectives import HasObjective
from stable_audio_tools.models.pretransforms import Pretransform


class DiffusionWrapper(HasObjective, nn.Module):
    """A denoising network with its pretransform, its conditioners and its objective; base of the published wrappers."""

    takes_conditions: ClassVar[bool]
    generate: ClassVar[LateMethod]

    model: nn.Module  # the network
    conditioner: MultiConditioner | None
    pretransform: Pretransform | None
    dist_shift: Shift | None
    io_channels: int  # of what the network denoises
    sample_rate: int
    min_input_length: int  # samples of audio; the network takes multiples
