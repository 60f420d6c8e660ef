"""Tasks that shape the latents of an autoencoder while it trains, each with a small network.

| section | the network ... |
|---|---|
| `contrastive` | separates latents of the same audio from those of another |
| `jepa` | predicts masked stretches |
| `generative` | denoises latents, a diffusion transformer |
| `semantic_regressors` | reads pitch classes and level differences off single frames |

Until `warmup` steps are over, the networks learn from detached latents, so that the autoencoder does not follow
networks that know nothing yet.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.autoencoders import AudioAutoencoder
from stable_audio_tools.models.diffusion.distribution_shift import truncated_logistic_normal_rescaled
from stable_audio_tools.models.discriminators import LatentAudioCritic, LatentJEPA
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.pretransforms import WaveletPretransform
from stable_audio_tools.models.transforms import (
    ILDTransform,
    MeanChannelLog1pTransform,
    TightSpectrogram,
    chroma_bands,
)
from stable_audio_tools.training.losses import L1Loss, LossModule, MSELoss, ValueLoss

Weight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(gt=0, le=1, description="factor on the weight after every step")]
Warmup = Annotated[int, Field(ge=0, description="steps on detached latents")]
Count = Annotated[int, Field(ge=1)]

_CHROMA = ((1.0, 1.0, 0.035), (5.0, 1.5, 0.05), (9.0, 1.0, 0.2))  # centre and width in octaves, share of the weight
_CHROMA_BANDS, _LEVEL_BANDS, _LEVEL_SHARE = 128, 32, 0.1
_FOLLOWED = 0.01  # of the deviation of the latents


@dataclasses.dataclass(frozen=True)
class ContrastiveOptions:
    """The critic of latents and audio."""

    transformer_dim: Count
    depth: Count
    dyt: bool = True
    levels: Annotated[int, Field(ge=1, description="wavelet levels through which the critic sees audio")] = 8
    requires_grad: Annotated[bool, Field(description="train the critic")] = True


@dataclasses.dataclass(frozen=True)
class JEPAOptions:
    """The network that fills in."""

    transformer_dim: Count
    depth: Count
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = 0.4
    mask_block_size: Annotated[int, Field(ge=1, description="frames of a masked stretch")] = 8
    dyt: bool = True
    requires_grad: Annotated[bool, Field(description="train the network")] = True


@dataclasses.dataclass(frozen=True)
class GenerativeOptions:
    """The diffusion transformer."""

    embed_dim: Count
    depth: Count
    num_heads: Count = 8


@dataclasses.dataclass(frozen=True)
class SemanticOptions:
    """The spectra that are read off."""

    n_fft: Annotated[int, Field(ge=64, description="window, in samples")] = 8192


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Weight `contrastive`."""

    config: ContrastiveOptions
    weights: dict[str, Weight] = dataclasses.field(default_factory=lambda: {"contrastive": 1.0})
    warmup: Warmup = 10_000
    decay_contrastive: Decay = 1.0


@dataclasses.dataclass(frozen=True)
class JEPA:
    """Weight `jepa`."""

    config: JEPAOptions
    weights: dict[str, Weight] = dataclasses.field(default_factory=lambda: {"jepa": 1.0})
    warmup: Warmup = 10_000
    decay: Decay = 1.0


@dataclasses.dataclass(frozen=True)
class Generative:
    """Weight `diffusion`."""

    config: GenerativeOptions
    weights: dict[str, Weight] = dataclasses.field(default_factory=lambda: {"diffusion": 1.0})
    type: Literal["diffusion"] = "diffusion"
    warmup: Warmup = 10_000
    decay: Decay = 1.0


@dataclasses.dataclass(frozen=True)
class Semantic:
    """Weight `semantic_regressors_l1`."""

    weights: dict[str, Weight] = dataclasses.field(default_factory=lambda: {"semantic_regressors_l1": 1.0})
    config: SemanticOptions = SemanticOptions()
    warmup: Warmup = 10_000
    decay: Decay = 1.0


class _ContrastiveTask(nn.Module):
    def __init__(self, section: Contrastive, autoencoder: AudioAutoencoder) -> None:
        super().__init__()
        options = section.config
        self.bank = WaveletPretransform(autoencoder.in_channels, options.levels, "bior4.4")
        self.critic = LatentAudioCritic(
            self.bank.encoded_channels,
            autoencoder.latent_dim,
            transformer_dim=options.transformer_dim,
            depth=options.depth,
            dyt=options.dyt,
        ).requires_grad_(options.requires_grad)
        self.terms: list[LossModule] = [
            ValueLoss(
                "contrastive_loss",
                "contrastive_loss",
                section.weights.get("contrastive", 1.0),
                section.decay_contrastive,
            )
        ]

    def forward(self, audio: Tensor, latents: Tensor) -> dict[str, Tensor]:
        audio = F.pad(audio, (0, -audio.shape[-1] % self.bank.downsampling_ratio))
        return {"contrastive_loss": self.critic.loss(self.bank.encode(audio), latents)}


class _JEPATask(nn.Module):
    def __init__(self, section: JEPA, autoencoder: AudioAutoencoder) -> None:
        super().__init__()
        options = section.config
        self.jepa = LatentJEPA(
            autoencoder.latent_dim,
            options.transformer_dim,
            options.depth,
            options.mask_rate,
            options.mask_block_size,
            options.dyt,
        ).requires_grad_(options.requires_grad)
        self.terms: list[LossModule] = [
            ValueLoss("jepa_loss", "jepa_loss", section.weights.get("jepa", 1.0), section.decay)
        ]

    def forward(self, audio: Tensor, latents: Tensor) -> dict[str, Tensor]:
        return {"jepa_loss": self.jepa.loss(latents)}


class _GenerativeTask(nn.Module):
    def __init__(self, section: Generative, autoencoder: AudioAutoencoder) -> None:
        super().__init__()
        options = section.config
        self.generative_model = DiffusionTransformer(
            io_channels=autoencoder.latent_dim,
            embed_dim=options.embed_dim,
            depth=options.depth,
            num_heads=options.num_heads,
            timestep_features_dim=512,
        )
        self.register_buffer("latent_std", torch.ones(()))
        weight = section.weights.get("diffusion", 1.0)
        self.terms: list[LossModule] = [
            MSELoss("diffusion_output", "diffusion_target", weight, name="diffusion_loss", decay=section.decay)
        ]

    def forward(self, audio: Tensor, latents: Tensor) -> dict[str, Tensor]:
        deviation = self.get_buffer("latent_std")
        deviation.lerp_(latents.detach().std().float(), _FOLLOWED)
        t = 1 - truncated_logistic_normal_rescaled(len(latents)).to(latents)
        noise = torch.randn_like(latents) * deviation
        share = t[:, None, None]
        predicted = self.generative_model((1 - share) * latents + share * noise, t)
        return {"diffusion_target": noise - latents, "diffusion_output": predicted}


class _SemanticTask(nn.Module):
    def __init__(self, section: Semantic, autoencoder: AudioAutoencoder, sample_rate: int) -> None:
        super().__init__()
        size, weight = section.config.n_fft, section.weights.get("semantic_regressors_l1", 1.0)
        self.spectrogram = TightSpectrogram(n_fft=size, power=1.0)
        self.mean = MeanChannelLog1pTransform()
        self.targets: dict[str, Callable[[Tensor], Tensor]] = {}
        self.terms: list[LossModule] = []
        regressors: dict[str, nn.Module] = {}
        for centre, width, share in _CHROMA:
            name = f"chroma_{centre:g}"
            bands = chroma_bands(sample_rate, size, _CHROMA_BANDS, centre, width, norm=1.0)
            self.register_buffer(f"{name}_bands", bands, persistent=False)
            self.targets[name] = lambda spectra, name=name: self.get_buffer(f"{name}_bands") @ self.mean(spectra)  # type: ignore[misc]
            regressors[name] = nn.Conv1d(autoencoder.latent_dim, _CHROMA_BANDS, 1)
            self.terms.append(_regression(name, weight * share, section.decay))
        if autoencoder.in_channels == 2:
            self.levels = ILDTransform(sample_rate, size, _LEVEL_BANDS)
            self.targets["ild"] = self.levels
            regressors["ild"] = nn.Conv1d(autoencoder.latent_dim, _LEVEL_BANDS, 1)
            self.terms.append(_regression("ild", weight * _LEVEL_SHARE, section.decay))
        self.semantic_regressors = nn.ModuleDict(regressors)

    def forward(self, audio: Tensor, latents: Tensor) -> dict[str, Tensor]:
        missing = self.spectrogram.n_fft - audio.shape[-1]
        spectra = self.spectrogram(F.pad(audio, (0, max(0, missing))).float())
        out: dict[str, Tensor] = {}
        for name, regressor in self.semantic_regressors.items():
            target = F.interpolate(self.targets[name](spectra), size=latents.shape[-1], mode="linear")
            out |= {f"{name}_output": regressor(latents), f"{name}_target": target}
        return out


def _regression(name: str, weight: float, decay: float) -> LossModule:
    return L1Loss(f"{name}_output", f"{name}_target", weight, name=f"{name}_regressor", decay=decay)


class LatentTasks(nn.Module):
    """The tasks of a run."""

    def __init__(
        self,
        autoencoder: AudioAutoencoder,
        sample_rate: int,
        contrastive: Contrastive | None,
        jepa: JEPA | None,
        generative: Generative | None,
        semantic: Semantic | None,
    ) -> None:
        super().__init__()
        tasks: dict[str, nn.Module] = {}
        self.warmups: dict[str, int] = {}
        sections = {"contrastive": contrastive, "jepa": jepa, "generative": generative, "semantic": semantic}
        for name, section in sections.items():
            if section is None:
                continue
            self.warmups[name] = section.warmup
            if isinstance(section, Contrastive):
                tasks[name] = _ContrastiveTask(section, autoencoder)
            elif isinstance(section, JEPA):
                tasks[name] = _JEPATask(section, autoencoder)
            elif isinstance(section, Generative):
                tasks[name] = _GenerativeTask(section, autoencoder)
            else:
                tasks[name] = _SemanticTask(section, autoencoder, sample_rate)
        self.tasks = nn.ModuleDict(tasks)

    def losses(self) -> Iterator[LossModule]:
        """Yield the terms of all tasks."""
        for task in self.tasks.values():
            terms: list[LossModule] = task.terms  # type: ignore[assignment]
            yield from terms

    def forward(self, audio: Tensor, latents: Tensor, step: int) -> dict[str, Tensor]:
        """audio (b, c, n), latents (b, d, t) -> the values that the losses read"""
        values: dict[str, Tensor] = {}
        for name, task in self.tasks.items():
            values |= task(audio, latents.detach() if step < self.warmups[name] else latents)
        return values
