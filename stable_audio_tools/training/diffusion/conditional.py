"""Training of conditional diffusion models, inpainting included."""

import dataclasses
import logging
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import Field
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from stable_audio_tools.core.config import Key, Runtime, as_record, build, register
from stable_audio_tools.core.devices import send
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.loader import Batch, ItemInfo
from stable_audio_tools.data.transforms import compute_effective_seq_len_from_conditioning
from stable_audio_tools.models.conditioners.base import ConditionTensors
from stable_audio_tools.models.diffusion import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.diffusion.objectives import Objective
from stable_audio_tools.models.diffusion.wrapper import DiffusionWrapper
from stable_audio_tools.models.inpainting import random_inpaint_mask
from stable_audio_tools.models.padding import padding_masks
from stable_audio_tools.models.pretransforms import AutoencoderPretransform
from stable_audio_tools.training.diffusion.validation import VALIDATION_LEVELS, NoiseLevelLosses, encode_each
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.losses import MSELoss, MultiLoss
from stable_audio_tools.training.masked_losses import (
    LossNormalization,
    compute_masked_loss,
    compute_normalized_mse,
    counted_frames,
    couple_noise,
    create_augmented_padding_mask,
    masked_mean,
    resize_padding_mask,
)
from stable_audio_tools.training.module import (
    ConditionDropout,
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

logger = logging.getLogger(__name__)

NOISE_LEVEL_BUCKETS = 10
HOST = torch.device("cpu")  # masks stay here, because reading them from the device means waiting for it


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    max_mask_segments: Annotated[int, Field(ge=1, description="most segments of a segmented mask")] = 10
    mask_type_probabilities: Annotated[
        tuple[float, ...],
        Field(
            min_length=3,
            max_length=4,
            description="how often a mask is segmented, full, everything after a point, or (fourth) of spans",
        ),
    ] = (0.1, 0.8, 0.1)
    max_spans: Annotated[int, Field(ge=1, description="most spans of a mask of spans")] = 4
    mask_ratio_range: Annotated[
        tuple[float, float], Field(description="least and largest share of an item that spans cover together")
    ] = (0.2, 1.0)
    span_count_weights: Annotated[
        tuple[float, ...] | None, Field(min_length=1, description="how often there are one, two, ... spans")
    ] = None


@dataclasses.dataclass(frozen=True)
class Inpainting:
    """The masks of a model that learns inpainting."""

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
        mask_loss_weight: Annotated[
            Annotated[float, Field(ge=0)] | None,
            Field(
                description="weight of padding and of given frames in the loss; null counts them as any other, unless "
                "mask_padding_attention or loss_normalization is set"
            ),
        ] = None,
        mask_padding_attention: Annotated[
            bool, Field(description="as the key of model.diffusion, where it belongs")
        ] = False,
        use_effective_length_for_schedule: Annotated[
            bool, Field(description="as the key of model.diffusion, where it belongs")
        ] = False,
        silence_extension_scale_seconds: Annotated[
            float,
            Field(ge=0, description="mean of the silence after an item that counts as part of it, drawn each step"),
        ] = 0.0,
        loss_normalization: Annotated[
            LossNormalization,
            Field(description="divide errors by the variance of the target, per frame, item or channel"),
        ] = "none",
        loss_norm_eps: Annotated[float, Field(gt=0, description="added to that variance")] = 1e-6,
        min_snr_gamma: MinSNRGamma = None,
        ot_coupling: Annotated[
            bool, Field(description="pair noise with data within the batch by optimal transport: straighter paths")
        ] = False,
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
        model.mask_padding_attention |= mask_padding_attention
        model.use_effective_length_for_schedule |= use_effective_length_for_schedule
        self.silence_extension_scale_seconds = silence_extension_scale_seconds
        self.loss_normalization, self.loss_norm_eps = loss_normalization, loss_norm_eps
        self.ot_coupling = ot_coupling
        self.counts_real_frames = (
            mask_loss_weight is not None or loss_normalization != "none" or model.mask_padding_attention
        )
        self.mask_loss_weight = mask_loss_weight or 0.0
        if self.counts_real_frames and inpainting_config is None and "inpaint_mask" not in _routed(model):
            self.inpainting = None  # a model that sees no mask has nothing given
        if self.counts_real_frames and mask_padding:
            raise ConfigError(
                "training.mask_padding: mask_loss_weight, mask_padding_attention and loss_normalization leave padding "
                "out of the loss themselves; remove mask_padding"
            )
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
        conditions = self._conditions(metadata)
        clean = encode(self.diffusion, audio, self.pre_encoded)  # (b, d, t)
        if self.counts_real_frames:
            return self._step_on_real_frames(clean, conditions, metadata)
        masks = padding_masks(metadata, clean.shape[2], HOST)
        t = self.draw_timesteps(clean, self._lengths(metadata, masks))
        noise = self._draw_noise(clean)
        if self.inpainting is not None:
            conditions = self._hide(conditions, clean, masks)

        noisy, targets = self.objective.corrupt(clean, noise, t)
        output = self.diffusion(noisy, t, cond=conditions, cfg_dropout_prob=self.cfg_dropout_prob)
        weights = loss_weights(self.objective, t, self.min_snr_gamma, metadata)
        weighed, weighed_targets = weigh(output, targets, weights)
        mask, counted = self._loss_mask(masks), counted_frames(metadata, clean.shape[2], t.device)
        if counted is not None:
            mask = counted if mask is None else mask & counted
        loss, terms = self.losses({"output": weighed, "targets": weighed_targets, "padding_mask": mask})

        self.log_terms({"loss": loss, "std_data": clean.std(), "lr": self.learning_rate(), **terms})
        if self.log_loss_info and self.logs_now:
            self._log_by_noise_level(output, targets, t)
        return loss

    def _step_on_real_frames(self, clean: Tensor, conditions: ConditionTensors, metadata: Sequence[ItemInfo]) -> Tensor:
        """Return the loss over generated frames, without padding and frames that are given."""
        real = _real_frames(metadata, clean)
        t = self.draw_timesteps(clean, self._lengths(metadata, real))
        noise = self._draw_noise(clean)
        masks_attention = self.diffusion.mask_padding_attention
        if masks_attention:
            real = create_augmented_padding_mask(
                real, self.silence_extension_scale_seconds, self.diffusion.sample_rate, self._ratio()
            )
        wanted, given = real, torch.zeros_like(real)
        if self.inpainting is not None:
            conditions = self._hide(conditions, clean, real, mask_padding=masks_attention)
            given = conditions["inpaint_mask"][0][:, 0].bool()
            wanted = real & ~given
        noisy, targets = self.objective.corrupt(clean, noise, t)
        masked = {"padding_mask": real} if masks_attention else {}
        output = self.diffusion(noisy, t, cond=conditions, cfg_dropout_prob=self.cfg_dropout_prob, **masked)
        errors = compute_normalized_mse(output, targets, wanted, self.loss_normalization, self.loss_norm_eps)
        weights = loss_weights(self.objective, t, self.min_snr_gamma, metadata)
        errors = errors if weights is None else errors * weights[:, None, None].to(errors)
        counted = counted_frames(metadata, clean.shape[2], t.device)
        if counted is not None:
            wanted, errors = wanted & counted, errors * counted[:, None]
        loss, signal, padding = compute_masked_loss(errors, wanted, masks_attention, self.mask_loss_weight)
        if masks_attention and self.mask_loss_weight > 0:
            loss = loss + self.mask_loss_weight * masked_mean(errors, given & real)
        terms = {"mse_signal": signal, "mse_masked_loss": padding}
        self.log_terms({"loss": loss, "std_data": clean.std(), "lr": self.learning_rate(), **terms})
        return loss

    def _draw_noise(self, clean: Tensor) -> Tensor:
        noise = torch.randn_like(clean)
        return couple_noise(clean, noise) if self.ot_coupling and len(clean) > 1 else noise

    def _ratio(self) -> int:
        codec = self.diffusion.pretransform
        return 1 if codec is None else codec.downsampling_ratio

    def _lengths(self, metadata: Sequence[ItemInfo], real: Tensor | None) -> Tensor | None:
        """Return the frames of each item if the noise levels shift by them."""
        if not self.diffusion.use_effective_length_for_schedule:
            return None
        lengths = compute_effective_seq_len_from_conditioning(
            metadata, self.diffusion.sample_rate, self._ratio(), self.device
        )
        return lengths if lengths is not None or real is None else send(real.sum(dim=-1), self.device)

    def _conditions(self, metadata: Sequence[ItemInfo]) -> dict[str, Any]:
        conditioner = self.diffusion.conditioner
        return conditioner(metadata, self.device) if conditioner is not None else {}

    def draw_timesteps(self, clean: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Draw noise levels, shifted for the length of the batch or of each item; some of them are pure noise."""
        t = send(self.timesteps.draw(clean.shape[0]), clean.device)
        if self.diffusion.dist_shift is not None:
            t = self.diffusion.dist_shift.shift(t, clean.shape[2] if lengths is None else lengths)
        if self.p_one_shot > 0:
            t = torch.where(torch.rand_like(t) < self.p_one_shot, torch.ones_like(t), t)
        return self.objective.training_times(t)

    def _loss_mask(self, masks: Tensor | None) -> Tensor | None:
        """Return the mask that leaves padding out of the loss; None now and then, so that silence is learnt too."""
        if not self.mask_padding or masks is None or random.random() <= self.mask_padding_dropout:
            return None
        return send(masks, self.device)

    def _hide(
        self, conditions: ConditionTensors, clean: Tensor, masks: Tensor | None, mask_padding: bool = False
    ) -> dict[str, Any]:
        assert self.inpainting is not None
        real = masks if masks is not None else torch.ones(len(clean), clean.shape[2], dtype=torch.bool)
        options = dataclasses.asdict(self.inpainting.mask_kwargs)
        kept, mask = random_inpaint_mask(clean, padding_masks=real, mask_padding=mask_padding, **options)
        return {**conditions, "inpaint_mask": [mask], "inpaint_masked_input": [kept]}

    def _log_by_noise_level(self, output: Tensor, targets: Tensor, t: Tensor) -> None:
        losses = (output - targets).detach().float().square().mean((1, 2))
        bucket = (t * NOISE_LEVEL_BUCKETS).long().clamp(max=NOISE_LEVEL_BUCKETS - 1)
        for index in bucket.unique().tolist():
            self.log(f"model/loss_all_{index / NOISE_LEVEL_BUCKETS:.1f}", losses[bucket == index].mean())

    def on_before_zero_grad(self, *_: object) -> None:
        if self.diffusion_ema is not None:
            self.diffusion_ema.update()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
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


def _routed(model: ConditionedDiffusionModelWrapper) -> list[str]:
    return [*model.input_concat_ids, *model.local_add_cond_ids, *model.cross_attn_cond_ids, *model.global_cond_ids]


def _real_frames(metadata: Sequence[ItemInfo], clean: Tensor) -> Tensor:
    """Return a mask (b, t) of the latent frames that hold sound; all if the loader provides no mask."""
    if any("padding_mask" not in entry for entry in metadata):
        return torch.ones_like(clean[:, 0], dtype=torch.bool)
    masks = [entry["padding_mask"] for entry in metadata]
    rows = [torch.as_tensor(mask[0] if isinstance(mask, list | tuple) else mask).flatten() for mask in masks]
    return torch.stack([resize_padding_mask(row.to(clean.device), clean.shape[2]) for row in rows])


def refuse_two_weights(objective: Objective, gamma: float | None) -> None:
    """Refuse min-SNR weights beside the weights of the objective itself."""
    if gamma is not None and objective.loss_weight(torch.full((1,), 0.5)) is not None:
        raise ConfigError("training.min_snr_gamma: the objective has min_snr already; remove one of them")


def loss_weights(objective: Objective, t: Tensor, gamma: float | None, metadata: Sequence[ItemInfo]) -> Tensor | None:
    """Return the weights (b,) of items, by noise level and by their `loss_weight`; None: all alike."""
    by_noise = objective.loss_weight(t) if gamma is None else objective.min_snr_weight(t, gamma)
    if not any("loss_weight" in entry for entry in metadata):
        return by_noise
    values = [entry.get("loss_weight", 1.0) for entry in metadata]
    numbers = [value[0] if isinstance(value, list | tuple) else value for value in values]
    by_item = send(torch.tensor([float(number) for number in numbers]), t.device)
    return by_item if by_noise is None else by_noise * by_item


def weigh(output: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Multiply both by the root of the weights (b,), so that their squared error is weighted."""
    if weights is None:
        return output, targets
    root = weights.sqrt()[:, None, None].to(output)
    return output * root, targets * root


def encode(model: DiffusionWrapper, audio: Tensor, pre_encoded: bool) -> Tensor:
    """Return the input of the diffusion model: latents `(b, d, t)`, or the audio itself without a pretransform."""
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


@torch.no_grad()
def measure_scale(pretransform: nn.Module, batch: Tensor, pre_encoded: bool) -> None:
    """Set a scale that is `auto` to the deviation of the latents of this batch, over all processes.

    The batch is audio (b, c, n), or with `pre_encoded` latents (b, d, t) as the autoencoder encoded them.
    """
    waiting = [
        part for part in pretransform.modules() if isinstance(part, AutoencoderPretransform) and part.needs_scale
    ]
    if not waiting:
        return
    for part in waiting:
        part.set_scale(1.0)
    latents = batch if pre_encoded else pretransform.eval().encode(batch)  # type: ignore[operator]
    variance = latents.float().var()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(variance)
        variance /= dist.get_world_size()
    scale = float(variance.sqrt())
    if not scale > 0:
        raise ValueError("the latents of the first batch do not vary, so they have no scale; check the data")
    waiting[-1].set_scale(scale)
    logger.info("scale of the latents: %.5g, measured on the first batch", scale)


class DiffusionCondInpaintTrainingWrapper(DiffusionCondTrainingWrapper):
    """Training of a model that fills gaps, with masks of up to `max_mask_segments` segments by default."""

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
