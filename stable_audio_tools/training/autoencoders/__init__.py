"""Training of autoencoders against spectral, time-domain and adversarial losses."""

from torch import Tensor, nn

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.training.autoencoders.recipe import bottleneck_losses
from stable_audio_tools.training.autoencoders.wrapper import AutoencoderDemoCallback, AutoencoderTrainingWrapper
from stable_audio_tools.training.losses import LossModule

__all__ = [
    "AutoencoderDemoCallback",
    "AutoencoderTrainingWrapper",
    "create_loss_modules_from_bottleneck",
    "trim_to_shortest",
]


def create_loss_modules_from_bottleneck(bottleneck: nn.Module | None, loss_config: JsonObject) -> list[LossModule]:
    """Return the loss terms of a kind of bottleneck, with the weights of a plain loss config."""
    return list(bottleneck_losses(bottleneck, loss_config.get("bottleneck", {}).get("weights", {})))


def trim_to_shortest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Cut both signals (b, c, n) to the length of the shorter one."""
    length = min(a.shape[-1], b.shape[-1])
    return a[..., :length], b[..., :length]
