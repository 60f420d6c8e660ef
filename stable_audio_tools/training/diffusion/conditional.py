"""Training of conditional diffusion models, inpainting included."""

import dataclasses
import random
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Key, Runtime, as_record, build, register
from stable_audio_tools.core.devices import send
from stable_audio_tools.models.diffusion import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.diffusion.objectives import Objective
from stable_audio_tools.models.diffusion.wrapper import DiffusionWrapper
from stable_audio_tools.models.inpainting import random_inpaint_mask
from stable_audio_tools.models.padding import padding_masks
from stable_audio_tools.training.diffusion.latent_scale import measure_scale
from stable_audio_tools.training.diffusion.validation import VALIDATION_LEVELS, NoiseLevelLosses, encode_each
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.losses import MSELoss, MultiLoss
from stable_audio_tools.training.module import (
    ConditionDropout,
    LawName,
    LawOptions,
    LearningRate,
    OptimizerConfigs,
    PreEncoded,
    TrainingModule,
    UseEMA,
    ValidationLevels,
    unwrap_batch,
)
from stable_audio_tools.training.optimizers import configure_optimizer, resolve_optimizer
from stable_audio_tools.training.timesteps import TimestepLaw

NOISE_LEVEL_BUCKETS = 10
HOST = torch.device("cpu")  # where masks are looked at, because looking at the device means waiting for it


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    max_mask_segments: Annotated[int, Field(ge=1, description="most segments of a segmented mask")] = 10
    mask_type_probabilities: Annotated[
        tuple[float, float, float],
        Field(description="how often a mask is segmented, full, or everything after a point"),
    ] = (0.1, 0.8, 0.1)


@dataclasses.dataclass(frozen=True)
class Inpainting:
    """What is hidden from a model that learns to fill in."""

    mask_kwargs: MaskOptions = MaskOptions()


@register("training", "diffusion_cond", ignored=("loss_configs",))
@register("training", "diffusion_cond_inpaint", ignored=("loss_configs",))
class DiffusionCondTrainingWrapper(TrainingModule):
    """Denoises latents at random noise levels, given conditions that are dropped at random for guidance."""

    def __init__(
        self,
        model: Runtime[ConditionedDiffusionModelWrapper],
        lr: LearningRate = None,
        mask_padding: Annotated[bool, Field(description="leave padding out of the loss")] = False,
        mask_padding_dropout: Annotated[
            float, Field(ge=0, le=1, description="how often padding is counted all the same")
        ] = 0.0,
        use_ema: UseEMA = True,
        log_loss_info: Annotated[bool, Field(description="log the loss of ten bands of noise levels")] = False,
        optimizer_configs: OptimizerConfigs = None,
        pre_encoded: PreEncoded = False,
        cfg_dropout_prob: ConditionDropout = 0.1,
        timestep_sampler: LawName = "uniform",
        timestep_sampler_options: LawOptions = None,
        validation_timesteps: ValidationLevels = VALIDATION_LEVELS,
        p_one_shot: Annotated[float, Field(ge=0, le=1, description="how often the input is pure noise")] = 0.0,
        inpainting_config: Annotated[
            Inpainting | Mapping[str, Any] | None,
            Key("inpainting", type=Inpainting | None),
            Field(description="what is hidden, for models that fill in"),
        ] = None,
        model_type: Runtime[str] = "diffusion_cond",
    ) -> None:
        super().__init__()
        self.diffusion = model
        self.diffusion_ema = WeightAverage(model.model) if use_ema else None
        self.mask_padding, self.mask_padding_dropout = mask_padding, mask_padding_dropout
        self.cfg_dropout_prob, self.p_one_shot = cfg_dropout_prob, p_one_shot
        self.pre_encoded, self.log_loss_info = pre_encoded, log_loss_info
        fills_in = inpainting_config is not None or model_type == "diffusion_cond_inpaint"
        self.inpainting = as_record(Inpainting, inpainting_config, "inpainting_config") if fills_in else None
        self.objective = model.objective
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

    def configure_optimizers(self) -> Any:
        return configure_optimizer(self.optimizer_config, self.diffusion)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        audio, metadata = unwrap_batch(batch)
        conditions = self._conditions(metadata)
        clean = encode(self.diffusion, audio, self.pre_encoded)  # (b, d, t)
        masks = padding_masks(metadata, clean.shape[2], HOST)
        t = self.draw_timesteps(clean)
        noise = torch.randn_like(clean)
        if self.inpainting is not None:
            conditions = self._hide(conditions, clean, masks)

        noisy, targets = self.objective.corrupt(clean, noise, t)
        output = self.diffusion(noisy, t, cond=conditions, cfg_dropout_prob=self.cfg_dropout_prob)
        weighed, wanted = weigh(output, targets, t, self.objective)
        loss, terms = self.losses({"output": weighed, "targets": wanted, "padding_mask": self._loss_mask(masks)})

        self.log_terms({"loss": loss, "std_data": clean.std(), "lr": self.learning_rate(), **terms})
        if self.log_loss_info and self.logs_now:
            self._log_by_noise_level(output, targets, t)
        return loss

    def _conditions(self, metadata: list[dict[str, Any]]) -> dict[str, Any]:
        conditioner = self.diffusion.conditioner
        return conditioner(metadata, self.device) if conditioner is not None else {}

    def draw_timesteps(self, clean: Tensor) -> Tensor:
        """Noise levels by the law, shifted for the length, some of them pure noise."""
        t = send(self.timesteps.draw(clean.shape[0]), clean.device)
        if self.diffusion.dist_shift is not None:
            t = self.diffusion.dist_shift.shift(t, clean.shape[2])
        if self.p_one_shot > 0:
            t = torch.where(torch.rand_like(t) < self.p_one_shot, torch.ones_like(t), t)
        return self.objective.training_times(t)

    def _loss_mask(self, masks: Tensor | None) -> Tensor | None:
        """Padding is left out of the loss, except now and then, so that silence is learnt too."""
        if not self.mask_padding or masks is None or random.random() <= self.mask_padding_dropout:
            return None
        return send(masks, self.device)

    def _hide(self, conditions: dict[str, Any], clean: Tensor, masks: Tensor | None) -> dict[str, Any]:
        assert self.inpainting is not None
        real = masks if masks is not None else torch.ones(len(clean), clean.shape[2], dtype=torch.bool)
        options = dataclasses.asdict(self.inpainting.mask_kwargs)
        kept, mask = random_inpaint_mask(clean, padding_masks=real, **options)
        return {**conditions, "inpaint_mask": [mask], "inpaint_masked_input": [kept]}

    def _log_by_noise_level(self, output: Tensor, targets: Tensor, t: Tensor) -> None:
        losses = (output - targets).detach().float().square().mean((1, 2))
        bucket = (t * NOISE_LEVEL_BUCKETS).long().clamp(max=NOISE_LEVEL_BUCKETS - 1)
        for index in bucket.unique().tolist():
            self.log(f"model/loss_all_{index / NOISE_LEVEL_BUCKETS:.1f}", losses[bucket == index].mean())

    def on_before_zero_grad(self, *_: Any) -> None:
        if self.diffusion_ema is not None:
            self.diffusion_ema.update()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        audio, metadata = unwrap_batch(batch)
        conditions = self._conditions(metadata)
        seeds = self.validation.seeds(metadata)
        clean = encode_each(partial(encode, self.diffusion, pre_encoded=self.pre_encoded), audio, seeds)
        if self.inpainting is not None:
            nothing = torch.zeros_like(clean)
            conditions = {**conditions, "inpaint_mask": [nothing[:, :1]], "inpaint_masked_input": [nothing]}
        self.validation.add(clean, seeds, self.objective, lambda x, t: self.diffusion(x, t, cond=conditions))

    def on_validation_epoch_end(self) -> None:
        self.validation.report(self)


def weigh(output: Tensor, targets: Tensor, t: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Both times the root of the objective's weight at t, so that their squared error is weighted."""
    weight = objective.loss_weight(t)
    if weight is None:
        return output, targets
    root = weight.sqrt()[:, None, None].to(output)
    return output * root, targets * root


def encode(model: DiffusionWrapper, audio: Tensor, pre_encoded: bool) -> Tensor:
    """What the diffusion model works on: latents `(b, d, t)`, or the audio itself where there is no pretransform."""
    pretransform = model.pretransform
    if pretransform is None:
        return audio
    measure_scale(pretransform, audio, pre_encoded)
    if pre_encoded:
        return audio / pretransform.scale
    with torch.set_grad_enabled(pretransform.enable_grad):
        pretransform.train(pretransform.enable_grad)
        encoded: Tensor = pretransform.encode(audio)
    return encoded


class DiffusionCondInpaintTrainingWrapper(DiffusionCondTrainingWrapper):
    """Trains a model that fills gaps, with masks of up to `max_mask_segments` segments unless a config says more."""

    def __init__(
        self,
        model: ConditionedDiffusionModelWrapper,
        lr: float | None = 1e-4,
        max_mask_segments: int = 10,
        inpainting_config: Inpainting | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        hidden = inpainting_config or Inpainting(MaskOptions(max_mask_segments))
        super().__init__(model, lr, inpainting_config=hidden, **options)
