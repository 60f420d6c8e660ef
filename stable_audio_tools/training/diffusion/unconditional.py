"""Training of unconditional diffusion models."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Runtime, build, register
from stable_audio_tools.models.diffusion import DiffusionModelWrapper
from stable_audio_tools.training.diffusion.conditional import encode, weigh
from stable_audio_tools.training.diffusion.validation import VALIDATION_LEVELS, NoiseLevelLosses, encode_each
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.losses import MSELoss, MultiLoss
from stable_audio_tools.training.module import TrainingModule, unwrap_batch
from stable_audio_tools.training.optimizers import configure_optimizer, resolve_optimizer
from stable_audio_tools.training.timesteps import TimestepLaw


class DiffusionUncondTrainingWrapper(TrainingModule):
    """Denoises audio, or its latents, at random noise levels."""

    def __init__(
        self,
        model: DiffusionModelWrapper,
        lr: float | None = 1e-4,
        pre_encoded: bool = False,
        use_ema: bool = True,
        optimizer_configs: Mapping[str, Any] | None = None,
        timestep_sampler: str = "uniform",
        timestep_sampler_options: Mapping[str, Any] | None = None,
        validation_timesteps: Sequence[float] = VALIDATION_LEVELS,
    ) -> None:
        super().__init__()
        self.diffusion = model
        self.diffusion_ema = WeightAverage(model.model) if use_ema else None
        self.pre_encoded = pre_encoded
        self.objective = model.objective
        law = {"type": timestep_sampler, "config": dict(timestep_sampler_options or {})}
        self.timesteps: TimestepLaw = build("timestep_law", law, "training.timestep_sampler")
        self.losses = MultiLoss([MSELoss("output", "targets", name="mse_loss")])
        self.optimizer_config = resolve_optimizer(optimizer_configs, "diffusion", lr, "Adam")
        self.validation = NoiseLevelLosses(validation_timesteps)

    @property
    def weight_average(self) -> WeightAverage | None:
        return self.diffusion_ema

    @property
    def exported(self) -> nn.Module:
        return self.diffusion

    def configure_optimizers(self) -> Any:
        return configure_optimizer(self.optimizer_config, self.diffusion)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        audio, _ = unwrap_batch(batch)
        clean = encode(self.diffusion, audio, self.pre_encoded)
        t = self.objective.training_times(self.timesteps.draw(clean.shape[0]).to(clean.device))
        noise = torch.randn_like(clean)
        noisy, targets = self.objective.corrupt(clean, noise, t)
        output = self.diffusion(noisy, t)
        output, targets = weigh(output, targets, t, self.objective)
        loss, terms = self.losses({"output": output, "targets": targets})
        self.log_terms({"loss": loss, "std_data": clean.std(), "lr": self.learning_rate(), **terms})
        return loss

    def on_before_zero_grad(self, *_: Any) -> None:
        if self.diffusion_ema is not None:
            self.diffusion_ema.update()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        audio, metadata = unwrap_batch(batch)
        seeds = self.validation.seeds(metadata)
        clean = encode_each(partial(encode, self.diffusion, pre_encoded=self.pre_encoded), audio, seeds)
        self.validation.add(clean, seeds, self.objective, self.diffusion)

    def on_validation_epoch_end(self) -> None:
        self.validation.report(self)


@register("training", "diffusion_uncond")
def unconditional_training(
    learning_rate: Annotated[
        float | None, Field(gt=0, description="rate of the optimiser, without optimizer_configs")
    ] = None,
    optimizer_configs: Annotated[dict[str, Any] | None, Field(description="optimiser and scheduler")] = None,
    use_ema: Annotated[bool, Field(description="keep an average of the weights, and export it")] = True,
    pre_encoded: Annotated[bool, Field(description="the data set holds latents")] = False,
    timestep_sampler: Annotated[
        Literal["uniform", "logit_normal", "trunc_logit_normal", "log_snr"],
        Field(description="law of the noise levels"),
    ] = "uniform",
    timestep_sampler_options: Annotated[dict[str, Any] | None, Field(description="options of that law")] = None,
    validation_timesteps: Annotated[list[float] | None, Field(description="noise levels of validation")] = None,
    *,
    model: Runtime[DiffusionModelWrapper],
) -> DiffusionUncondTrainingWrapper:
    """Denoising without conditions."""
    return DiffusionUncondTrainingWrapper(
        model,
        learning_rate,
        pre_encoded,
        use_ema,
        optimizer_configs,
        timestep_sampler,
        timestep_sampler_options,
        validation_timesteps or VALIDATION_LEVELS,
    )
