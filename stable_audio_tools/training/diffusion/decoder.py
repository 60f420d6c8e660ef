"""Training of diffusion autoencoders: an encoder, and a diffusion model that decodes."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from stable_audio_tools.core.config import Key, Runtime, as_record, build, register
from stable_audio_tools.core.devices import send
from stable_audio_tools.data.loader import Batch
from stable_audio_tools.models.autoencoders import DiffusionAutoencoder
from stable_audio_tools.models.diffusion.objectives import V
from stable_audio_tools.training.autoencoders.recipe import LossConfigs, SpectralDistance, bottleneck_losses
from stable_audio_tools.training.diffusion.validation import NoiseLevelLosses, encode_each
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.losses import LossModule, MSELoss, MultiLoss, ValueLoss
from stable_audio_tools.training.module import LearningRate, OptimizerConfigs, TrainingModule, same_length, unwrap_batch
from stable_audio_tools.training.optimizers import configure_optimizer, resolve_optimizer
from stable_audio_tools.training.timesteps import TimestepLaw

_RECONSTRUCTION_WEIGHT = 0.1


@register("training", "diffusion_autoencoder")
class DiffusionAutoencoderTrainingWrapper(TrainingModule):
    """Denoises audio (or what the pretransform makes of it) given its own latents."""

    timesteps: TimestepLaw

    def __init__(
        self,
        model: Runtime[DiffusionAutoencoder],
        lr: LearningRate = 1e-4,
        ema_copy: Runtime[nn.Module | None] = None,
        use_reconstruction_loss: Annotated[
            bool, Field(description="also compare spectra of the decoded audio")
        ] = False,
        optimizer_configs: OptimizerConfigs = None,
        loss_config: Annotated[
            LossConfigs | Mapping[str, Any] | None,
            Key("loss_configs", type=LossConfigs | None),
            Field(description="weights of bottleneck terms, options of spectra"),
        ] = None,
    ) -> None:
        super().__init__()
        self.diffae = model
        self.diffae_ema = WeightAverage(model, start=ema_copy)
        law: TimestepLaw = build("timestep_law", {"type": "uniform"})
        self.timesteps = law
        configs = as_record(LossConfigs, loss_config, "loss_config")
        losses: list[LossModule] = [MSELoss("output", "targets", name="mse_loss")]
        losses += bottleneck_losses(model.bottleneck, configs.bottleneck.weights)
        self.spectral: SpectralDistance | None = None
        if use_reconstruction_loss:
            channels = model.pretransform.io_channels if model.pretransform is not None else model.io_channels
            self.spectral = SpectralDistance(channels, model.sample_rate, configs.spectral.config)
            losses.append(ValueLoss("mrstft_loss", "mrstft_loss", _RECONSTRUCTION_WEIGHT))
        self.losses = MultiLoss(losses)
        self.optimizer_config = resolve_optimizer(optimizer_configs, "diffusion", lr, "Adam")
        self.validation = NoiseLevelLosses([0.5])

    @property
    def weight_average(self) -> WeightAverage | None:
        return self.diffae_ema

    @property
    def exported(self) -> nn.Module:
        return self.diffae

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizer(self.optimizer_config, self.diffae)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        audio, _ = unwrap_batch(batch)
        clean = audio
        if self.diffae.pretransform is not None:
            with torch.no_grad():
                clean = self.diffae.pretransform.encode(audio)
        latents, info = self.diffae.encode(clean, return_info=True, skip_pretransform=True)
        t = send(self.timesteps.draw(clean.shape[0]), clean.device)
        noisy, targets = V.corrupt(clean, torch.randn_like(clean), t)
        output = self.diffae.diffusion(noisy, t, input_concat_cond=self.diffae.condition_on(latents, clean.shape[2]))
        info |= {"output": output, "targets": targets}
        if self.spectral is not None:
            decoded = V.predict_data(noisy, output, t)
            if self.diffae.pretransform is not None:
                decoded = self.diffae.pretransform.decode(decoded)
            info |= self.spectral(*same_length(decoded, audio))
        loss, terms = self.losses(info)
        stds = {"std_data": clean.std(), "latent_std": latents.std()}
        self.log_terms({"loss": loss, **stds, "lr": self.learning_rate(), **terms})
        return loss

    def on_before_zero_grad(self, *_: object) -> None:
        self.diffae_ema.update()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        audio, metadata = unwrap_batch(batch)
        seeds = self.validation.seeds(metadata)
        pretransform = self.diffae.pretransform
        clean = audio if pretransform is None else encode_each(pretransform.encode, audio, seeds)
        latents = encode_each(partial(self.diffae.encode, skip_pretransform=True), clean, seeds)
        guide = self.diffae.condition_on(latents, clean.shape[2])
        self.validation.add(clean, seeds, V, lambda x, t: self.diffae.diffusion(x, t, input_concat_cond=guide))

    def on_validation_epoch_end(self) -> None:
        self.validation.report(self)
