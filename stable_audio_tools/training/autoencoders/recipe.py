"""The `loss_configs` section of an autoencoder, and the losses that it asks for."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Kind, Part, validate
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError, explained
from stable_audio_tools.models.autoencoders import AudioAutoencoder
from stable_audio_tools.models.bottleneck import (
    DACRVQBottleneck,
    DACRVQVAEBottleneck,
    RunningSoftNormBottleneck,
    RVQBottleneck,
    RVQVAEBottleneck,
    SoftNormBottleneck,
    VAEBottleneck,
    WassersteinBottleneck,
)
from stable_audio_tools.training.autoencoders.latent_tasks import JEPA, Contrastive, Generative, Semantic
from stable_audio_tools.training.losses import L1Loss, LossModule, LossWithTarget, MSELoss, TimeDomainMMDLoss, ValueLoss
from stable_audio_tools.training.losses.auraloss import MultiResolutionSTFTLoss, stereo_terms
from stable_audio_tools.training.losses.features import HubertLoss
from stable_audio_tools.training.losses.images import MultiResolutionImageLoss
from stable_audio_tools.training.losses.mel import MelSpectrogramLoss

_SCALES = (2048, 1024, 512, 256, 128, 64, 32)
_HOPS = tuple(size // 4 for size in _SCALES)
Weight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(gt=0, le=1, description="factor on the weight after every step")]


@dataclasses.dataclass(frozen=True)
class Image:
    """Distance of spectrograms as images, for `loss_space` pretransform; `config` holds the options of the loss."""

    weights: dict[str, Weight] = dataclasses.field(default_factory=lambda: {"image": 1.0})
    config: JsonObject = dataclasses.field(default_factory=dict)
    type: Literal["multi_resolution"] = "multi_resolution"
    decay: Decay = 1.0


@dataclasses.dataclass(frozen=True)
class Spectral:
    """Multi-resolution STFT distance; `config` is that of `MultiResolutionSTFTLoss`."""

    weights: dict[str, Weight] = dataclasses.field(default_factory=lambda: {"mrstft": 1.0})
    config: JsonObject = dataclasses.field(
        default_factory=lambda: {
            "fft_sizes": list(_SCALES),
            "hop_sizes": list(_HOPS),
            "win_lengths": list(_SCALES),
            "perceptual_weighting": True,
        }
    )
    type: Literal["mrstft"] = "mrstft"
    decay: Decay = 1.0


@dataclasses.dataclass(frozen=True)
class Time:
    """Mean absolute (`l1`) and squared (`l2`) difference of samples, and their mean discrepancy (`mmd`)."""

    weights: dict[str, Weight] = dataclasses.field(default_factory=dict)
    config: JsonObject = dataclasses.field(default_factory=dict)
    type: Literal["l1", "l2"] = "l1"
    decay: Decay = 1.0


@dataclasses.dataclass(frozen=True)
class Extra:
    """A loss that is off unless its weight is above 0."""

    weights: dict[str, Weight] = dataclasses.field(default_factory=dict)
    config: JsonObject = dataclasses.field(default_factory=dict)
    type: str = ""
    decay: Decay = 1.0


@dataclasses.dataclass(frozen=True)
class LossConfigs:
    """The losses of a run; without `discriminator` training is not adversarial."""

    spectral: Spectral = Spectral()
    time: Time = Time()
    discriminator: Annotated[Part | None, Kind("discriminator")] = None
    mrmel: Extra = Extra()
    hubert: Extra = Extra()
    image: Image = Image()
    bottleneck: Extra = Extra()
    latent_distillation: Annotated[
        Extra, Field(description="distance of the latents from a teacher's: weights `l1` and `l2`")
    ] = Extra()
    contrastive: Contrastive | None = None
    jepa: JEPA | None = None
    generative: Generative | None = None
    semantic_regressors: Semantic | None = None


def default_loss_configs() -> LossConfigs:
    """The published default: an EnCodec discriminator and spectra at the same seven scales."""
    config = {"filters": 32, "n_ffts": list(_SCALES), "hop_lengths": list(_HOPS), "win_lengths": list(_SCALES)}
    weights = {"adversarial": 0.1, "feature_matching": 5.0}
    node = {"type": "encodec", "config": config, "weights": weights}
    return LossConfigs(discriminator=validate("discriminator", node, "training.loss_configs.discriminator"))


class SpectralDistance(nn.Module):
    """Spectral distances of a reconstruction: of stereo's sum and difference, and of each side, from one transform.

    The reconstruction stands where the loss expects its reference: published models were trained so.
    """

    def __init__(self, channels: int, sample_rate: int, config: JsonObject) -> None:
        super().__init__()
        options = dict(config)
        self.w_sum, self.w_diff = options.pop("w_sum", 1.0), options.pop("w_diff", 1.0)
        self.stereo = channels == 2
        with explained("training.loss_configs.spectral.config"):
            self.mrstft = MultiResolutionSTFTLoss(sample_rate=sample_rate, **options)

    def forward(self, decoded: Tensor, reals: Tensor) -> dict[str, Tensor]:
        if not self.stereo:
            return {"mrstft_loss": self.mrstft(reals, decoded)}
        views = stereo_terms(self.mrstft, reals, decoded)
        middle = (self.w_sum * views.sum + self.w_diff * views.difference) / 2
        return {"mrstft_loss": middle, "stft_loss_left": views.left, "stft_loss_right": views.right}


class ImageDistance(nn.Module):
    """In place of `SpectralDistance` where spectrograms are compared."""

    def __init__(self, config: JsonObject) -> None:
        super().__init__()
        with explained("training.loss_configs.image.config"):
            self.image = MultiResolutionImageLoss(**config)

    def forward(self, decoded: Tensor, reals: Tensor) -> dict[str, Tensor]:
        return {"image_loss": self.image(decoded, reals)}


def image_losses(configs: LossConfigs, bottleneck: nn.Module | None) -> list[LossModule]:
    """The terms of an autoencoder of spectrograms."""
    weight = configs.image.weights.get("image", 1.0)
    return [
        *_adversarial(configs),
        ValueLoss("image_loss", "image_loss", weight, configs.image.decay),
        *_time(configs.time),
        *bottleneck_losses(bottleneck, configs.bottleneck.weights),
    ]


def check_image_losses(configs: LossConfigs, autoencoder: AudioAutoencoder, others: bool) -> None:
    """Refuse what needs audio where spectrograms are compared."""
    where = "training.loss_space: is 'pretransform', "
    if autoencoder.pretransform is None:
        raise ConfigError(f"{where}but the model has none; use 'audio'")
    extras = {"mrmel": configs.mrmel, "hubert": configs.hubert}
    named = [name for name, extra in extras.items() if any(extra.weights.values())]
    if named or others:
        what = f"loss_configs.{named[0]}" if named else "teacher_model or eval_loss_configs"
        raise ConfigError(f"{where}and {what} needs audio; leave it out, or use 'audio'")


def generator_losses(
    configs: LossConfigs, stereo: bool, sample_rate: int, bottleneck: nn.Module | None, teacher: bool
) -> list[LossModule]:
    """The terms that the autoencoder minimises, in the order of published checkpoints."""
    return [
        *_adversarial(configs),
        *(_distillation(configs.spectral) if teacher else _reconstruction(configs.spectral, stereo)),
        *(_latent_distillation(configs.latent_distillation) if teacher else ()),
        *_perceptual(configs, sample_rate),
        *_time(configs.time),
        *bottleneck_losses(bottleneck, configs.bottleneck.weights),
    ]


def _adversarial(configs: LossConfigs) -> Iterator[LossModule]:
    if configs.discriminator is not None:
        weights = configs.discriminator.siblings.weights
        yield ValueLoss("loss_adv", "loss_adv", weights.get("adversarial", 1.0))
        yield ValueLoss("feature_matching_distance", "feature_matching_loss", weights.get("feature_matching", 1.0))


def _reconstruction(spectral: Spectral, stereo: bool) -> Iterator[LossModule]:
    weight, decay = spectral.weights.get("mrstft", 1.0), spectral.decay
    yield ValueLoss("mrstft_loss", "mrstft_loss", weight, decay)
    if stereo:
        yield ValueLoss("stft_loss_left", "stft_loss_left", weight / 2, decay)
        yield ValueLoss("stft_loss_right", "stft_loss_right", weight / 2, decay)


def _distillation(spectral: Spectral) -> Iterator[LossModule]:
    """Latents like the teacher's, and each side's latents decoded by the other."""
    weight, decay = spectral.weights.get("mrstft", 1.0) / 4, spectral.decay
    yield MSELoss("teacher_latents", "latents", weight, name="latent_distill_loss", decay=decay)
    for name in ("mrstft_loss", *DISTILLED_PAIRS):
        yield ValueLoss(name, name, weight, decay)


def _latent_distillation(section: Extra) -> Iterator[LossModule]:
    keys, weights = ("latents", "teacher_latents"), section.weights
    if (weight := weights.get("l1", 0.0)) > 0:
        yield L1Loss(*keys, weight, name="latent_distill_l1", decay=section.decay)
    if (weight := weights.get("l2", 0.0)) > 0:
        yield MSELoss(*keys, weight, name="latent_distill_l2", decay=section.decay)


# name of the term -> (what was decoded, what it is held against)
DISTILLED_PAIRS: dict[str, tuple[str, str]] = {
    "mrstft_loss_distill": ("decoded", "teacher_decoded"),
    "mrstft_loss_own_latents_teacher": ("own_latents_teacher_decoded", "reals"),
    "mrstft_loss_teacher_latents_own": ("teacher_latents_own_decoded", "reals"),
}


def _perceptual(configs: LossConfigs, sample_rate: int) -> Iterator[LossModule]:
    if (weight := configs.mrmel.weights.get("mrmel", 0.0)) > 0:
        mel = MelSpectrogramLoss(sample_rate, **configs.mrmel.config)
        yield LossWithTarget(mel, "reals", "decoded", name="mrmel_loss", weight=weight, decay=configs.mrmel.decay)
    if (weight := configs.hubert.weights.get("hubert", 0.0)) > 0:
        features = HubertLoss(sample_rate=sample_rate, **configs.hubert.config)
        yield LossWithTarget(
            features, "decoded", "reals", name="hubert_loss", weight=weight, decay=configs.hubert.decay
        )


def _time(time: Time) -> Iterator[LossModule]:
    if (weight := time.weights.get("l1", 0.0)) > 0:
        yield L1Loss("reals", "decoded", weight, name="l1_time_loss", decay=time.decay)
    if (weight := time.weights.get("l2", 0.0)) > 0:
        yield MSELoss("reals", "decoded", weight, name="l2_time_loss", decay=time.decay)
    if (weight := time.weights.get("mmd", 0.0)) > 0:
        yield TimeDomainMMDLoss("reals", "decoded", weight, name="mmd_time_loss", decay=time.decay)


def bottleneck_losses(bottleneck: nn.Module | None, weights: Mapping[str, float]) -> Sequence[LossModule]:
    """The terms that a kind of bottleneck adds."""
    losses: list[LossModule] = []
    if isinstance(bottleneck, VAEBottleneck | RVQVAEBottleneck | DACRVQVAEBottleneck):
        losses.append(ValueLoss("kl", "kl_loss", weights.get("kl", 1e-6)))
    if isinstance(bottleneck, RVQBottleneck | RVQVAEBottleneck):
        losses.append(ValueLoss("quantizer_loss", "quantizer_loss"))
    if isinstance(bottleneck, DACRVQBottleneck | DACRVQVAEBottleneck):
        losses.append(ValueLoss("vq/codebook_loss", "codebook_loss"))
        losses.append(ValueLoss("vq/commitment_loss", "commitment_loss", 0.25))
    if isinstance(bottleneck, WassersteinBottleneck):
        losses.append(ValueLoss("mmd", "mmd_loss", weights.get("mmd", 100.0)))
    if isinstance(bottleneck, SoftNormBottleneck | RunningSoftNormBottleneck):
        losses.append(ValueLoss("softnorm_loss", "softnorm_loss", weights.get("softnorm", 1e-5)))
    return losses
