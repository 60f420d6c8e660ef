"""The adversarial training of an autoencoder: generator on even steps, discriminator on odd ones."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.autoencoders import AudioAutoencoder
from stable_audio_tools.models.pretrained import load_model
from stable_audio_tools.training.autoencoders.recipe import (
    DISTILLED_PAIRS,
    ImageDistance,
    LossConfigs,
    SpectralDistance,
    check_image_losses,
    default_loss_configs,
    generator_losses,
    image_losses,
)
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.losses import MultiLoss, ValueLoss
from stable_audio_tools.training.losses.metrics import evaluation_metrics
from stable_audio_tools.training.module import TrainingModule, same_length, trainable, unwrap_batch
from stable_audio_tools.training.optimizers import create_optimizer_from_config, create_scheduler_from_config

_BETAS = (0.8, 0.99)
LossSpace = Literal["audio", "pretransform"]


class AutoencoderTrainingWrapper(TrainingModule):
    """Reconstruction, adversarial and bottleneck losses; optionally distilled from a teacher."""

    # The original toolkit's checkpoints hold constants of its losses too, under names of their own.
    rebuilt = ("teacher_model.", "spectral.", "losses_gen.", "losses_disc.", "metrics.", "sdstft.", "lrstft.")

    def __init__(
        self,
        autoencoder: AudioAutoencoder,
        sample_rate: int = 48000,
        loss_config: LossConfigs | None = None,
        eval_loss_config: Mapping[str, Mapping[str, Any]] | None = None,
        optimizer_configs: Mapping[str, Any] | None = None,
        lr: float | None = 1e-4,
        warmup_steps: int = 0,
        warmup_mode: Literal["adv", "full"] = "adv",
        encoder_freeze_on_warmup: bool = False,
        use_ema: bool = True,
        force_input_mono: bool = False,
        latent_mask_ratio: float = 0.0,
        teacher_model: AudioAutoencoder | None = None,
        clip_grad_norm: float = 0.0,
        accum_batches: int = 1,
        loss_space: LossSpace = "audio",
        pre_encoded: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.autoencoder = autoencoder
        self.compares_images, self.pre_encoded = loss_space == "pretransform", pre_encoded
        self.warmup_steps, self.warmup_mode = warmup_steps, warmup_mode
        self.encoder_freeze_on_warmup = encoder_freeze_on_warmup
        self.force_input_mono, self.latent_mask_ratio = force_input_mono, latent_mask_ratio
        self.clip_grad_norm, self.accum_batches = clip_grad_norm, accum_batches
        self.teacher_model = teacher_model.eval().requires_grad_(False) if teacher_model is not None else None

        configs = loss_config or (LossConfigs() if self.compares_images else default_loss_configs())
        channels = autoencoder.out_channels
        if self.compares_images:
            check_image_losses(configs, autoencoder, teacher_model is not None or bool(eval_loss_config))
        elif pre_encoded:
            raise ConfigError(
                "training.pre_encoded: the losses need audio; use loss_space 'pretransform', or leave it out"
            )
        self.spectral: nn.Module = (
            ImageDistance(configs.image.config)
            if self.compares_images
            else SpectralDistance(channels, sample_rate, configs.spectral.config)
        )
        self.discriminator = (
            configs.discriminator.build(in_channels=channels, channels=channels, sample_rate=sample_rate)
            if configs.discriminator is not None
            else None
        )
        self.losses_gen = MultiLoss(
            image_losses(configs, autoencoder.bottleneck)
            if self.compares_images
            else generator_losses(
                configs, channels == 2, sample_rate, autoencoder.bottleneck, teacher_model is not None
            )
        )
        self.losses_disc = MultiLoss([ValueLoss("loss_dis", "discriminator_loss")])
        self.optimizer_configs = self._resolve_optimizers(optimizer_configs, lr)
        self.autoencoder_ema = WeightAverage(autoencoder) if use_ema else None
        self.metrics = evaluation_metrics(eval_loss_config or {}, sample_rate)
        self._accumulated = 0

    def _resolve_optimizers(self, configs: Mapping[str, Any] | None, lr: float | None) -> dict[str, Any]:
        names = ["autoencoder"] + (["discriminator"] if self.discriminator is not None else [])
        if configs is None:
            if lr is None:
                raise ConfigError("training: give learning_rate, or optimizer_configs")
            adam = {"optimizer": {"type": "AdamW", "config": {"lr": lr, "betas": list(_BETAS)}}}
            return dict.fromkeys(names, adam)
        missing = [name for name in names if name not in configs]
        if missing:
            raise ConfigError(f"training.optimizer_configs: has no entry {missing[0]!r}; found {', '.join(configs)}")
        return {name: configs[name] for name in names}

    @property
    def weight_average(self) -> WeightAverage | None:
        return self.autoencoder_ema

    @property
    def exported(self) -> nn.Module:
        return self.autoencoder

    def configure_optimizers(self) -> Any:
        networks: dict[str, Any] = {"autoencoder": self.autoencoder, "discriminator": self.discriminator}
        optimizers, schedulers = [], []
        for name, config in self.optimizer_configs.items():
            optimizer = create_optimizer_from_config(config["optimizer"], trainable(networks[name]))
            optimizers.append(optimizer)
            if "scheduler" in config:
                schedulers.append(create_scheduler_from_config(config["scheduler"], optimizer))
        return optimizers, schedulers

    @property
    def warmed_up(self) -> bool:
        return self.global_step >= self.warmup_steps

    @property
    def discriminator_turn(self) -> bool:
        """Odd steps are the discriminator's, unless it waits for the end of a `full` warm-up."""
        if self.discriminator is None or self.global_step % 2 == 0:
            return False
        return self.warmup_mode == "adv" or self.warmed_up

    def forward(self, reals: Tensor) -> Tensor:
        decoded: Tensor = self.autoencoder.decode(self.autoencoder.encode(reals))
        return decoded

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        reals, _ = unwrap_batch(batch)
        discriminating = self.discriminator_turn
        # The discriminator learns from finished audio: no graph of the autoencoder is built for it.
        with torch.no_grad() if discriminating else nullcontext():
            info = self._reconstruct(reals)
        loss, terms = self._discriminate(info) if discriminating else self._generate(info)
        self._step(loss, index=int(discriminating))
        if not discriminating:
            terms = {
                "loss": loss,
                "latent_std": info["latents"].std(),
                "data_std": info["encoder_input"].std(),
                **terms,
            }
        name = "disc_lr" if discriminating else "gen_lr"
        self.log_terms({**terms, name: self.learning_rate(int(discriminating))})
        return loss.detach()

    def _reconstruct(self, reals: Tensor) -> dict[str, Any]:
        mono = self.force_input_mono and reals.shape[1] > 1
        encoder_input = reals.mean(1, keepdim=True) if mono else reals
        if self.compares_images:
            encoder_input = reals = self._spectrograms(encoder_input)
        inside: dict[str, Any] = {"skip_pretransform": self.compares_images}
        frozen = self.encoder_freeze_on_warmup and self.warmed_up
        with torch.no_grad() if frozen else nullcontext():
            latents, info = self.autoencoder.encode(encoder_input, return_info=True, **inside)
        kept = latents
        if self.latent_mask_ratio > 0:
            kept = latents.masked_fill(torch.rand_like(latents) < self.latent_mask_ratio, 0.0)
        decoded, reals = same_length(self.autoencoder.decode(kept, **inside), reals)
        return {**info, "latents": latents, "encoder_input": encoder_input, "decoded": decoded, "reals": reals}

    @torch.no_grad()
    def _spectrograms(self, audio: Tensor) -> Tensor:
        """What the pretransform makes of a batch, unless the data set holds that."""
        assert self.autoencoder.pretransform is not None
        return audio if self.pre_encoded else self.autoencoder.pretransform.encode(audio)

    def _discriminate(self, info: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.discriminator is not None
        info["loss_dis"] = self.discriminator.discriminator_loss(info["reals"], info["decoded"])
        total, terms = self.losses_disc(info)
        return total, terms

    def _generate(self, info: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        info |= self.spectral(info["decoded"], info["reals"])
        if self.discriminator is not None:
            adversarial = matching = info["decoded"].new_zeros(())
            if self.warmed_up:
                adversarial, matching = self.discriminator.generator_loss(info["reals"], info["decoded"])
            info |= {"loss_adv": adversarial, "feature_matching_distance": matching}
        if self.teacher_model is not None:
            info |= self._distil(info)
        total, terms = self.losses_gen(info)
        return total, terms

    def _distil(self, info: dict[str, Any]) -> dict[str, Tensor]:
        """Teacher and student decode each other's latents; gradients reach the student through both."""
        assert self.teacher_model is not None
        with torch.no_grad():
            teacher_latents = self.teacher_model.encode(info["encoder_input"])
            teacher_decoded = self.teacher_model.decode(teacher_latents)
        signals = {
            "decoded": info["decoded"],
            "reals": info["reals"],
            "teacher_decoded": teacher_decoded,
            "own_latents_teacher_decoded": self.teacher_model.decode(info["latents"]),
            "teacher_latents_own_decoded": self.autoencoder.decode(teacher_latents),
        }
        terms = {
            name: self.spectral(*same_length(signals[decoded], signals[held]))["mrstft_loss"]
            for name, (decoded, held) in DISTILLED_PAIRS.items()
        }
        return {"teacher_latents": teacher_latents, **terms}

    def _step(self, loss: Tensor, index: int) -> None:
        """Backward, and after `accum_batches` of them one step of the optimiser whose turn it is."""
        optimizers, schedulers = _listed(self.optimizers()), _listed(self.lr_schedulers())
        optimizer = optimizers[index]
        if self._accumulated == 0:
            optimizer.zero_grad()
        self._accumulated += 1
        self.manual_backward(loss / self.accum_batches)
        if self._accumulated < self.accum_batches:
            return
        self._accumulated = 0
        optimizer.step()
        for scheduler in schedulers:
            if scheduler.optimizer is getattr(optimizer, "optimizer", optimizer):
                scheduler.step()
        if index == 0 and self.autoencoder_ema is not None:
            self.autoencoder_ema.update()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip here: gradients are unscaled by now."""
        if self.clip_grad_norm > 0:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        reals, _ = unwrap_batch(batch)
        info = self._reconstruct(reals)
        values = {**self.spectral(info["decoded"], info["reals"])}
        values |= {name: metric(info["decoded"], info["reals"]) for name, metric in self.metrics.items()}
        for name, value in values.items():
            self.log(f"val/{name}", value, on_epoch=True, sync_dist=True, batch_size=len(reals))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


@register("training", "autoencoder")
def autoencoder_training(
    learning_rate: Annotated[
        float | None, Field(gt=0, description="rate of both optimisers, without optimizer_configs")
    ] = None,
    warmup_steps: Annotated[int, Field(ge=0, description="steps without adversarial losses")] = 0,
    warmup_mode: Annotated[
        Literal["adv", "full"], Field(description="does the discriminator train during the warm-up (adv) or not (full)")
    ] = "adv",
    encoder_freeze_on_warmup: Annotated[bool, Field(description="freeze the encoder after the warm-up")] = False,
    clip_grad_norm: Annotated[float, Field(ge=0, description="largest gradient norm; 0: no clipping")] = 0.0,
    loss_configs: Annotated[LossConfigs | None, Field(description="the losses and their weights")] = None,
    eval_loss_configs: Annotated[
        dict[str, dict[str, Any]] | None,
        Field(description="validation metrics (pesq, stft, sisdr, mel) and their options"),
    ] = None,
    optimizer_configs: Annotated[
        dict[str, Any] | None, Field(description="optimiser and scheduler of autoencoder and discriminator")
    ] = None,
    use_ema: Annotated[bool, Field(description="keep an average of the weights, and export it")] = False,
    force_input_mono: Annotated[bool, Field(description="give the encoder the mean of the channels")] = False,
    latent_mask_ratio: Annotated[float, Field(ge=0, lt=1, description="share of latents that are set to 0")] = 0.0,
    teacher_model: Annotated[
        dict[str, Any] | None, Field(description="model config of a teacher to distil from")
    ] = None,
    teacher_model_ckpt: Annotated[str | None, Field(description="weights of the teacher")] = None,
    loss_space: Annotated[
        LossSpace,
        Field(description="compare audio, or what the pretransform makes of it, such as spectrograms (loss `image`)"),
    ] = "audio",
    pre_encoded: Annotated[
        bool, Field(description="the data set holds what the pretransform makes; for loss_space pretransform")
    ] = False,
    *,
    model: Runtime[AudioAutoencoder],
    sample_rate: Runtime[int],
    accum_batches: Runtime[int] = 1,
    gradient_clip_val: Runtime[float] = 0.0,
) -> AutoencoderTrainingWrapper:
    """Reconstruction, adversarial and bottleneck losses."""
    teacher: Any = None
    if teacher_model is not None:
        if teacher_model_ckpt is None:
            raise ConfigError("training.teacher_model_ckpt: missing; teacher_model is given and needs its weights")
        teacher = load_model(teacher_model, teacher_model_ckpt)
    return AutoencoderTrainingWrapper(
        model,
        sample_rate,
        loss_configs,
        eval_loss_configs,
        optimizer_configs,
        learning_rate,
        warmup_steps,
        warmup_mode,
        encoder_freeze_on_warmup,
        use_ema,
        force_input_mono,
        latent_mask_ratio,
        teacher,
        clip_grad_norm or gradient_clip_val,
        accum_batches,
        loss_space,
        pre_encoded,
    )
