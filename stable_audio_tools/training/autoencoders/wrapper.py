"""The adversarial training of an autoencoder: generator on even steps, discriminator on odd ones."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import pytorch_lightning as pl
import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Key, Runtime, as_record, register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.loader import Batch
from stable_audio_tools.models.autoencoders import AudioAutoencoder
from stable_audio_tools.models.autoencoders.same import SAMEEncoder
from stable_audio_tools.models.calls import used
from stable_audio_tools.models.pretrained import load_model
from stable_audio_tools.training.adversarial import AdversarialTraining, ClipNorm, without_gradients
from stable_audio_tools.training.autoencoders.augmentation import append_chirps, silence_tails
from stable_audio_tools.training.autoencoders.latent_tasks import LatentTasks
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
from stable_audio_tools.training.callbacks.demos import Demo, DemoCallback
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.losses import MultiLoss, ValueLoss
from stable_audio_tools.training.losses.metrics import evaluation_metrics
from stable_audio_tools.training.module import UseEMA, same_length, unwrap_batch

_BETAS = (0.8, 0.99)
_CURRICULUM_STEPS = 2000  # for which a factor of the stride curriculum holds
LossSpace = Literal["audio", "pretransform"]


@register("training", "autoencoder")
class AutoencoderTrainingWrapper(AdversarialTraining):
    """Reconstruction, adversarial and bottleneck losses; optionally distilled from a teacher."""

    # The original toolkit's checkpoints hold constants of its losses too, under other names.
    rebuilt = ("teacher_model.", "spectral.", "losses_gen.", "losses_disc.", "metrics.", "sdstft.", "lrstft.")

    def __init__(
        self,
        autoencoder: Annotated[Runtime[AudioAutoencoder], Key("model")],
        sample_rate: Runtime[int] = 48000,
        loss_config: Annotated[
            LossConfigs | JsonObject | None,
            Key("loss_configs", type=LossConfigs | None),
            Field(description="the losses and their weights"),
        ] = None,
        eval_loss_config: Annotated[
            dict[str, JsonObject] | None,
            Key("eval_loss_configs"),
            Field(description="validation metrics (pesq, stft, sisdr, mel) and their options"),
        ] = None,
        optimizer_configs: Annotated[
            JsonObject | None, Field(description="optimiser and scheduler of autoencoder and discriminator")
        ] = None,
        lr: Annotated[
            float | None,
            Key("learning_rate", default=None),
            Field(gt=0, description="rate of both optimisers, without optimizer_configs"),
        ] = 1e-4,
        warmup_steps: Annotated[int, Field(ge=0, description="steps without adversarial losses")] = 0,
        warmup_mode: Annotated[
            Literal["adv", "full"],
            Field(description="does the discriminator train during the warm-up (adv) or not (full)"),
        ] = "adv",
        encoder_freeze_on_warmup: Annotated[bool, Field(description="freeze the encoder after the warm-up")] = False,
        use_ema: Annotated[UseEMA, Key(default=False)] = True,
        ema_copy: Runtime[nn.Module | None] = None,
        force_input_mono: Annotated[bool, Field(description="give the encoder the mean of the channels")] = False,
        latent_mask_ratio: Annotated[float, Field(ge=0, lt=1, description="share of latents that are set to 0")] = 0.0,
        teacher_model: Annotated[
            AudioAutoencoder | JsonObject | None,
            Key(type=JsonObject | None),
            Field(description="model config of a teacher to distil from"),
        ] = None,
        clip_grad_norm: ClipNorm = 0.0,
        accum_batches: Runtime[int] = 1,
        loss_space: Annotated[
            LossSpace,
            Field(description="compare audio, or the output of the pretransform, such as spectrograms (loss `image`)"),
        ] = "audio",
        pre_encoded: Annotated[
            bool, Field(description="the data set holds the output of the pretransform; for loss_space pretransform")
        ] = False,
        teacher_model_ckpt: Annotated[str | None, Field(description="weights of the teacher")] = None,
        gradient_clip_val: Runtime[float] = 0.0,
        decoder_finetune: Annotated[bool, Field(description="train the decoder (and pretransform) alone")] = False,
        stride_curriculum: Annotated[
            Annotated[Sequence[Annotated[float, Field(gt=0)]], Field(min_length=1)] | None,
            Field(description="factors on the strides of a model of variable strides, for one step in nine"),
        ] = None,
        num_synthetic_chirps: Annotated[int, Field(ge=0, description="synthetic chirps appended to each batch")] = 0,
        tail_masking_max_patches: Annotated[
            int, Field(ge=0, description="silence up to so many patches at the end of one item in twenty")
        ] = 0,
    ) -> None:
        """`loss_config` may be the plain dictionary of a config; `teacher_model` a model or its config."""
        image = loss_space == "pretransform"
        default = LossConfigs() if image else default_loss_configs()
        configs = default if loss_config is None else as_record(LossConfigs, loss_config, "loss_config")
        names = ["autoencoder"] + (["discriminator"] if configs.discriminator is not None else [])
        super().__init__(
            _with_default(optimizer_configs, lr, names), names, accum_batches, clip_grad_norm or gradient_clip_val
        )
        self.autoencoder = autoencoder
        self.compares_images, self.pre_encoded = image, pre_encoded
        self.warmup_steps, self.warmup_mode = warmup_steps, warmup_mode
        self.encoder_freeze_on_warmup = encoder_freeze_on_warmup
        self.force_input_mono, self.latent_mask_ratio = force_input_mono, latent_mask_ratio
        teacher = teacher_model
        if isinstance(teacher, Mapping):
            if teacher_model_ckpt is None:
                raise ConfigError("training.teacher_model_ckpt: missing; teacher_model is given and needs its weights")
            loaded = load_model(teacher, teacher_model_ckpt)
            if not isinstance(loaded, AudioAutoencoder):
                raise ConfigError(f"training.teacher_model: expected an autoencoder, got {type(loaded).__name__}")
            teacher = loaded
        self.teacher_model = None if teacher is None else teacher.eval().requires_grad_(False)

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
        self.sample_rate, self.decoder_finetune = sample_rate, decoder_finetune
        self.stride_curriculum = stride_curriculum
        if stride_curriculum is not None and not isinstance(autoencoder.encoder, SAMEEncoder):
            raise ConfigError("training.stride_curriculum: the encoder has no strides that a call can change")
        self.num_synthetic_chirps, self.tail_masking_max_patches = num_synthetic_chirps, tail_masking_max_patches
        sections = (configs.contrastive, configs.jepa, configs.generative, configs.semantic_regressors)
        self.latent_tasks: LatentTasks | None = None
        if any(section is not None for section in sections):
            if self.compares_images or decoder_finetune:
                raise ConfigError(
                    "training.loss_configs: contrastive, jepa, generative and semantic_regressors need an encoder that "
                    "trains on audio; leave them out"
                )
            self.latent_tasks = LatentTasks(autoencoder, sample_rate, *sections)
        terms = (
            image_losses(configs, autoencoder.bottleneck)
            if self.compares_images
            else generator_losses(
                configs, channels == 2, sample_rate, autoencoder.bottleneck, teacher_model is not None
            )
        )
        self.losses_gen = MultiLoss([*terms, *(() if self.latent_tasks is None else self.latent_tasks.losses())])
        self.losses_disc = MultiLoss([ValueLoss("loss_dis", "discriminator_loss")])
        self.autoencoder_ema = WeightAverage(autoencoder, start=ema_copy) if use_ema else None
        self.metrics = evaluation_metrics(eval_loss_config or {}, sample_rate)

    @property
    def weight_average(self) -> WeightAverage | None:
        return self.autoencoder_ema

    @property
    def exported(self) -> nn.Module:
        return self.autoencoder

    def players(self) -> list[nn.Module]:
        return [self._generator()] + ([] if self.discriminator is None else [self.discriminator])

    def _generator(self) -> nn.Module:
        """The networks that the autoencoder's optimiser trains."""
        if self.decoder_finetune:
            parts = (self.autoencoder.decoder, self.autoencoder.pretransform)
            return nn.ModuleList([part for part in parts if part is not None])
        if self.latent_tasks is None:
            return self.autoencoder
        return nn.ModuleList([self.autoencoder, self.latent_tasks])

    @property
    def warmed_up(self) -> bool:
        return self.global_step >= self.warmup_steps

    @property
    def discriminator_turn(self) -> bool:
        """True on odd steps, in which the discriminator trains, unless it waits for the end of a `full` warm-up."""
        if self.discriminator is None or self.global_step % 2 == 0:
            return False
        return self.warmup_mode == "adv" or self.warmed_up

    def forward(self, reals: Tensor) -> Tensor:
        decoded: Tensor = self.autoencoder.decode(self.autoencoder.encode(reals))
        return decoded

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        reals, _ = unwrap_batch(batch)
        reals = append_chirps(reals, self.sample_rate, self.num_synthetic_chirps)
        if self.tail_masking_max_patches and self.autoencoder.pretransform is not None:
            patch = self.autoencoder.pretransform.downsampling_ratio
            reals = silence_tails(reals, patch, self.tail_masking_max_patches)
        discriminating = self.discriminator_turn
        # The discriminator learns from finished audio: no graph of the autoencoder is built for it.
        with torch.no_grad() if discriminating else nullcontext():
            info = self._reconstruct(reals, self._strides())
        with nullcontext() if discriminating else without_gradients(*self.players()[1:]):
            loss, terms = self._discriminate(info) if discriminating else self._generate(info)
            self.take_turn(loss, index=int(discriminating))
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

    def _strides(self) -> list[int] | None:
        """Return the strides of this step, None for the model's: the factors of the curriculum take turns."""
        if self.stride_curriculum is None or self.decoder_finetune or random.randint(0, 8) != 0:
            return None
        factor = self.stride_curriculum[self.global_step // _CURRICULUM_STEPS % len(self.stride_curriculum)]
        assert isinstance(self.autoencoder.encoder, SAMEEncoder)
        strides = self.autoencoder.encoder.strides
        return [max(1, int(stride * factor)) for stride in strides]

    def _reconstruct(self, reals: Tensor, strides: list[int] | None = None) -> dict[str, Tensor]:
        mono = self.force_input_mono and reals.shape[1] > 1
        encoder_input = reals.mean(1, keepdim=True) if mono else reals
        if self.compares_images:
            encoder_input = reals = self._spectrograms(encoder_input)
        frozen = self.decoder_finetune or (self.encoder_freeze_on_warmup and self.warmed_up)
        with torch.no_grad() if frozen else nullcontext():
            latents, info = self.autoencoder.encode(
                encoder_input,
                return_info=True,
                skip_pretransform=self.compares_images,
                **used(override_stride=strides),
            )
        kept = latents
        if self.latent_mask_ratio > 0:
            kept = latents.masked_fill(torch.rand_like(latents) < self.latent_mask_ratio, 0.0)
        decoded, reals = same_length(self._decode(kept, strides), reals)
        return {**info, "latents": latents, "encoder_input": encoder_input, "decoded": decoded, "reals": reals}

    def _decode(self, latents: Tensor, strides: list[int] | None) -> Tensor:
        # A decoder counts its stages from latents to audio.
        options = used(override_stride=None if strides is None else strides[::-1])
        decoded: Tensor = self.autoencoder.decode(latents, skip_pretransform=self.compares_images, **options)
        return decoded

    @torch.no_grad()
    def _spectrograms(self, audio: Tensor) -> Tensor:
        """Encode a batch by the pretransform, unless the data set holds its output."""
        assert self.autoencoder.pretransform is not None
        return audio if self.pre_encoded else self.autoencoder.pretransform.encode(audio)

    def _discriminate(self, info: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.discriminator is not None
        info["loss_dis"] = self.discriminator.discriminator_loss(fake=info["decoded"], real=info["reals"])
        total, terms = self.losses_disc(info)
        return total, terms

    def _generate(self, info: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        info |= self.spectral(info["decoded"], info["reals"])
        if self.discriminator is not None:
            adversarial = matching = info["decoded"].new_zeros(())
            if self.warmed_up:
                adversarial, matching = self.discriminator.generator_loss(fake=info["decoded"], real=info["reals"])
            info |= {"loss_adv": adversarial, "feature_matching_distance": matching}
        if self.teacher_model is not None:
            info |= self._distil(info)
        if self.latent_tasks is not None:
            info |= self.latent_tasks(info["encoder_input"], info["latents"], self.global_step)
        total, terms = self.losses_gen(info)
        return total, terms

    def _distil(self, info: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the distances to the teacher: both decode each other's latents, with gradients through both."""
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

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        reals, _ = unwrap_batch(batch)
        info = self._reconstruct(reals)
        values = {**self.spectral(info["decoded"], info["reals"])}
        values |= {name: metric(info["decoded"], info["reals"]) for name, metric in self.metrics.items()}
        for name, value in values.items():
            self.log(f"val/{name}", value, on_epoch=True, sync_dist=True, batch_size=len(reals))


def _with_default(configs: JsonObject | None, lr: float | None, names: list[str]) -> JsonObject:
    """Return the configs, or AdamW at `lr` for each name."""
    if configs is not None:
        return configs
    if lr is None:
        raise ConfigError("training: give learning_rate, or optimizer_configs")
    adam = {"optimizer": {"type": "AdamW", "config": {"lr": lr, "betas": list(_BETAS)}}}
    return dict.fromkeys(names, adam)


class AutoencoderDemoCallback(DemoCallback[AutoencoderTrainingWrapper]):
    """Reconstructs the first items of a batch."""

    def __init__(
        self,
        demo_dl: Iterable[Batch] | None = None,
        demo_every: int = 2000,
        sample_size: int = 65536,
        sample_rate: int = 44100,
        max_demos: int = 8,
        folder: Path | None = None,
    ) -> None:
        super().__init__(demo_every, sample_rate, folder, demo_dl)
        self.sample_size, self.max_demos = sample_size, max_demos

    def make(self, trainer: pl.Trainer, module: AutoencoderTrainingWrapper, batch: Batch) -> Iterator[Demo]:
        reals = unwrap_batch(batch)[0][: self.max_demos].to(module.device)
        if module.pre_encoded:
            assert module.autoencoder.pretransform is not None
            reals = module.autoencoder.pretransform.decode(reals)
        latents = module.autoencoder.encode(reals.mean(1, keepdim=True) if module.force_input_mono else reals)
        decoded, reals = same_length(module.autoencoder.decode(latents), reals)
        pairs = rearrange([reals.expand_as(decoded), decoded], "i b c n -> c (b i n)")
        yield Demo("recon", audio=pairs, caption="each original, then its reconstruction")
        yield Demo("embeddings", latents=rearrange(latents, "b d t -> d (b t)"))


@register("demo", "autoencoder", ignored=("log_duration",))
def autoencoder_demo(
    demo_every: Annotated[int, Field(ge=1, description="steps between demos")] = 2000,
    max_num_sample: Annotated[int, Field(ge=1, description="items of a demo")] = 8,
    *,
    sample_size: Runtime[int],
    sample_rate: Runtime[int],
    folder: Runtime[Path | None] = None,
    demo_dl: Runtime[Iterable[Batch] | None] = None,
) -> AutoencoderDemoCallback:
    """Items of a batch and their reconstructions."""
    return AutoencoderDemoCallback(demo_dl, demo_every, sample_size, sample_rate, max_num_sample, folder)
