"""Training of unconditional diffusion models."""

from functools import partial

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from stable_audio_tools.core.config import Runtime, build, register
from stable_audio_tools.core.devices import send
from stable_audio_tools.data.loader import Batch
from stable_audio_tools.models.diffusion import DiffusionModelWrapper
from stable_audio_tools.training.diffusion.conditional import (
    encode,
    loss_weights,
    refuse_two_weights,
    weigh,
)
from stable_audio_tools.training.diffusion.validation import VALIDATION_LEVELS, NoiseLevelLosses, encode_each
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.losses import MSELoss, MultiLoss
from stable_audio_tools.training.masked_losses import counted_frames
from stable_audio_tools.training.module import (
    LawName,
    LawOptions,
    LearningRate,
    MinSNRGamma,
    OptimizerConfigs,
    PreEncoded,
    TrainingModule,
    UseEMA,
    ValidationLevels,
    unwrap_batch,
)
from stable_audio_tools.training.optimizers import configure_optimizer, resolve_optimizer
from stable_audio_tools.training.timesteps import TimestepLaw


@register("training", "diffusion_uncond")
class DiffusionUncondTrainingWrapper(TrainingModule):
    """Denoises audio, or its latents, at random noise levels."""

    def __init__(
        self,
        model: Runtime[DiffusionModelWrapper],
        lr: LearningRate = 1e-4,
        pre_encoded: PreEncoded = False,
        use_ema: UseEMA = True,
        optimizer_configs: OptimizerConfigs = None,
        timestep_sampler: LawName = "uniform",
        timestep_sampler_options: LawOptions = None,
        validation_timesteps: ValidationLevels = VALIDATION_LEVELS,
        min_snr_gamma: MinSNRGamma = None,
    ) -> None:
        super().__init__()
        self.diffusion = model
        self.diffusion_ema = WeightAverage(model.model) if use_ema else None
        self.pre_encoded = pre_encoded
        self.objective, self.min_snr_gamma = model.objective, min_snr_gamma
        refuse_two_weights(self.objective, min_snr_gamma)
        law = {"type": timestep_sampler, "config": dict(timestep_sampler_options or {})}
        self.timesteps: TimestepLaw = build("timestep_law", law, "training.timestep_sampler")
        self.losses = MultiLoss([MSELoss("output", "targets", mask_key="padding_mask", name="mse_loss")])
        self.optimizer_config = resolve_optimizer(optimizer_configs, "diffusion", lr, "Adam")
        self.validation = NoiseLevelLosses(validation_timesteps or VALIDATION_LEVELS)

    @property
    def weight_average(self) -> WeightAverage | None:
        return self.diffusion_ema

    @property
    def exported(self) -> nn.Module:
        return self.diffusion

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizer(self.optimizer_config, self.diffusion)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        audio, metadata = unwrap_batch(batch)
        clean = encode(self.diffusion, audio, self.pre_encoded)
        t = self.objective.training_times(send(self.timesteps.draw(clean.shape[0]), clean.device))
        noise = torch.randn_like(clean)
        noisy, targets = self.objective.corrupt(clean, noise, t)
        output = self.diffusion(noisy, t)
        weights = loss_weights(self.objective, t, self.min_snr_gamma, metadata)
        output, targets = weigh(output, targets, weights)
        counted = counted_frames(metadata, clean.shape[2], t.device)
        loss, terms = self.losses({"output": output, "targets": targets, "padding_mask": counted})
        self.log_terms({"loss": loss, "std_data": clean.std(), "lr": self.learning_rate(), **terms})
        return loss

    def on_before_zero_grad(self, *_: object) -> None:
        if self.diffusion_ema is not None:
            self.diffusion_ema.update()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        audio, metadata = unwrap_batch(batch)
        seeds = self.validation.seeds(metadata)
        clean = encode_each(partial(encode, self.diffusion, pre_encoded=self.pre_encoded), audio, seeds)
        self.validation.add(clean, seeds, self.objective, self.diffusion)

    def on_validation_epoch_end(self) -> None:
        self.validation.report(self)
