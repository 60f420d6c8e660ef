"""Training of language models over codec tokens."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import pytorch_lightning as pl
import torch
from einops import rearrange
from pydantic import Field
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.data.loader import Batch
from stable_audio_tools.models.lm import AudioLanguageModelWrapper
from stable_audio_tools.models.padding import padding_masks
from stable_audio_tools.training.callbacks.demos import Demo, DemoCallback, repeated
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.module import (
    ConditionDropout,
    LearningRate,
    OptimizerConfigs,
    PreEncoded,
    TrainingModule,
    UseEMA,
    unwrap_batch,
)
from stable_audio_tools.training.optimizers import configure_optimizer, resolve_optimizer


@register("training", "lm")
class AudioLanguageModelTrainingWrapper(TrainingModule):
    """Cross entropy of each codebook's next token, averaged over codebooks."""

    def __init__(
        self,
        model: Runtime[AudioLanguageModelWrapper],
        lr: LearningRate = 1e-4,
        use_ema: UseEMA = False,
        ema_copy: Runtime[nn.Module | None] = None,
        optimizer_configs: OptimizerConfigs = None,
        pre_encoded: PreEncoded = False,
        cfg_dropout_prob: ConditionDropout = 0.1,
    ) -> None:
        super().__init__()
        self.model = model
        model.pretransform.requires_grad_(False)
        self.model_ema: WeightAverage | None = None
        if use_ema:
            self.model_ema = WeightAverage(
                model, beta=0.99, power=2 / 3, update_every=10, update_after_step=100, start=ema_copy
            )
        self.optimizer_config = resolve_optimizer(
            optimizer_configs, "lm", lr, "AdamW", betas=[0.9, 0.95], weight_decay=0.1
        )
        self.pre_encoded, self.cfg_dropout_prob = pre_encoded, cfg_dropout_prob

    @property
    def weight_average(self) -> WeightAverage | None:
        return self.model_ema

    @property
    def exported(self) -> nn.Module:
        return self.model

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizer(self.optimizer_config, self.model)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        entropies = self._cross_entropies(batch, self.cfg_dropout_prob)
        loss = entropies.mean()
        each = {f"cross_entropy_q{number}": value for number, value in enumerate(entropies, 1)}
        terms: dict[str, Tensor | float] = {
            "loss": loss,
            "cross_entropy": loss,
            "perplexity": loss.exp(),
            "lr": self.learning_rate(),
        }
        self.log_terms({**terms, **each})
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss = self._cross_entropies(batch, cfg_dropout_prob=0.0).mean()
        self.log("val/cross_entropy", loss, on_epoch=True, sync_dist=True, prog_bar=True, batch_size=len(batch[1]))

    def _cross_entropies(self, batch: Batch, cfg_dropout_prob: float) -> Tensor:
        """One per codebook `(q,)`, over tokens that the pattern predicts and that are not padding."""
        audio, metadata = unwrap_batch(batch)
        codes = audio.long() if self.pre_encoded else self.model.pretransform.tokenize(audio)  # (b, q, t)
        conditions = self.model.conditioner(metadata, self.device) if self.model.conditioner is not None else None
        output = self.model.compute_logits(codes, condition_tensors=conditions, cfg_dropout_prob=cfg_dropout_prob)
        counted = output.mask
        if (real := padding_masks(metadata, codes.shape[2], codes.device)) is not None:
            counted = counted & real[:, None]
        return cross_entropies(output.logits, codes, counted)

    def on_before_zero_grad(self, *_: object) -> None:
        if self.model_ema is not None:
            self.model_ema.update()


def cross_entropies(logits: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
    """logits (b, q, t, card), codes and counted (b, q, t) -> (q,); 0 for a codebook of which nothing counts."""
    logits = logits.masked_fill(~counted[..., None], 0.0)  # where the pattern predicts nothing there are NaNs
    losses = F.cross_entropy(rearrange(logits, "b q t k -> b k q t").float(), codes, reduction="none")
    totals = counted.sum((0, 2))
    return (losses * counted).sum((0, 2)) / totals.clamp(min=1)


class AudioLanguageModelDemoCallback(DemoCallback[AudioLanguageModelTrainingWrapper]):
    """Generates audio for given conditions at several strengths of guidance."""

    def __init__(
        self,
        demo_every: int = 2000,
        num_demos: int = 8,
        sample_size: int = 65536,
        sample_rate: int = 48000,
        demo_conditioning: Sequence[JsonObject] | None = None,
        demo_cfg_scales: Sequence[float] = (1.0,),
        folder: Path | None = None,
        demo_dl: Iterable[Batch] | None = None,
    ) -> None:
        super().__init__(demo_every, sample_rate, folder, demo_dl)
        self.num_demos, self.sample_size = num_demos, sample_size
        self.conditions, self.cfg_scales = demo_conditioning, tuple(demo_cfg_scales)

    def make(self, trainer: pl.Trainer, module: AudioLanguageModelTrainingWrapper, batch: Batch) -> Iterator[Demo]:
        conditions = repeated(self.conditions, self.num_demos) if self.conditions else list(batch[1])[: self.num_demos]
        frames = self.sample_size // module.model.pretransform.downsampling_ratio
        for scale in self.cfg_scales:
            audio = module.model.generate_audio(
                batch_size=len(conditions),
                max_gen_len=frames,
                conditioning=conditions if module.model.conditioner is not None else None,
                cfg_scale=scale,
                temp=1.0,
                top_p=0.95,
            )
            yield Demo(f"demo_cfg_{scale:g}", audio=rearrange(torch.as_tensor(audio), "b c n -> c (b n)"))


@register("demo", "lm")
def language_model_demo(
    demo_every: Annotated[int, Field(ge=1, description="steps between demos")] = 2000,
    num_demos: Annotated[int, Field(ge=1, description="items of a demo")] = 8,
    demo_cond: Annotated[list[JsonObject] | None, Field(description="conditions; null: from a batch")] = None,
    demo_cfg_scales: Annotated[Sequence[float], Field(min_length=1, description="strengths of guidance")] = (1.0,),
    *,
    sample_size: Runtime[int],
    sample_rate: Runtime[int],
    folder: Runtime[Path | None] = None,
    demo_dl: Runtime[Iterable[Batch] | None] = None,
) -> AudioLanguageModelDemoCallback:
    """Audio for given conditions."""
    return AudioLanguageModelDemoCallback(
        demo_every, num_demos, sample_size, sample_rate, demo_cond, demo_cfg_scales, folder, demo_dl
    )
