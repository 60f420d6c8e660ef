"""Training of CLAP on pairs of latents and prompts: contrastive, over the batches of all processes."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import Key, Runtime, build, register
from stable_audio_tools.core.devices import send
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.clap import CLAP, LatentTransformerCLAPAudioBranch
from stable_audio_tools.models.padding import padding_masks
from stable_audio_tools.training.module import (
    LearningRate,
    OptimizerConfigs,
    PreEncoded,
    TrainingModule,
    unwrap_batch,
)
from stable_audio_tools.training.optimizers import configure_optimizer, resolve_optimizer

_TERMS = {"contrastive": 1.0, "uniformity": 0.1, "cross_uniformity": 0.1, "alignment": 0.1}
_CLEAN_SHARE = 0.5  # of the items, when latents are noised
_RANKS = (1, 5, 10)


@register("training", "clap", ignored=("htsat_dataset",))
class CLAPTrainingWrapper(TrainingModule):
    """Cross entropy of which text belongs to which audio, with terms that align pairs and spread vectors apart."""

    def __init__(
        self,
        model: Runtime[CLAP],
        lr: LearningRate = None,
        optimizer_configs: OptimizerConfigs = None,
        pre_encoded: PreEncoded = False,
        loss_config: Annotated[
            Mapping[str, float] | None,
            Key(type=dict[str, float] | None),
            Field(description="weights: contrastive 1, uniformity, cross_uniformity and alignment 0.1"),
        ] = None,
        mask_padding_attention: Annotated[bool, Field(description="attention leaves padding out")] = False,
    ) -> None:
        super().__init__()
        unknown = [name for name in loss_config or {} if name not in _TERMS]
        if unknown:
            raise ConfigError(f"training.loss_config.{unknown[0]}: unknown term; allowed: {', '.join(_TERMS)}")
        self.model = model
        if model.pretransform is not None:
            model.pretransform.requires_grad_(False)
        elif not pre_encoded:
            raise ConfigError("model.pretransform: missing; give one, or set training.pre_encoded and load latents")
        self.optimizer_config = resolve_optimizer(optimizer_configs, "model", lr, "Adam")
        self.weights = {**_TERMS, **(loss_config or {})}
        self.pre_encoded, self.mask_padding_attention = pre_encoded, mask_padding_attention
        branch = model.audio_branch
        if isinstance(branch, LatentTransformerCLAPAudioBranch) and branch.noise_config is not None:
            self.timesteps = build("timestep_law", {"type": "uniform"}, "")
        self._judged: list[tuple[Tensor, Tensor]] = []

    @property
    def exported(self) -> nn.Module:
        return self.model

    def configure_optimizers(self) -> Any:
        return configure_optimizer(self.optimizer_config, self.model)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        audio, text = self._embed(batch, noised=self.timesteps is not None)
        audios, texts = self._of_all(audio), self._of_all(text)
        scale = self.model.logit_scale_a.exp()
        own = torch.arange(len(audio), device=audio.device) + self.global_rank * len(audio)
        # Rows of this process against the columns of all; DDP averages over the processes.
        contrastive = (
            F.cross_entropy(scale * audio @ texts.T, own) + F.cross_entropy(scale * text @ audios.T, own)
        ) / 2
        terms = {"contrastive_loss": contrastive}
        total = self.weights["contrastive"] * contrastive
        if weight := self.weights["alignment"]:
            terms["alignment_loss"] = weight * (1 - F.cosine_similarity(audio, text)).mean()
        if (weight := self.weights["uniformity"]) and len(audio) > 1:
            spread = [_crowding(torch.pdist(vectors)) for vectors in (audio, text)]
            terms |= {"audio_uniformity": spread[0].detach(), "text_uniformity": spread[1].detach()}
            terms["uniformity"] = weight * (spread[0] + spread[1]) / 2
        if weight := self.weights["cross_uniformity"]:
            terms["cross_uniformity"] = weight * _crowding(torch.cdist(audio, text))
        for name in ("alignment_loss", "uniformity", "cross_uniformity"):
            total = total + terms.get(name, 0.0)
        self.log_terms({"loss": total, **terms, "lr": self.learning_rate()})
        return total

    def _of_all(self, vectors: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return vectors
        gathered: Any = self.all_gather(vectors, sync_grads=True)
        together: Tensor = gathered.flatten(0, 1)
        return together

    def _embed(self, batch: Any, noised: bool) -> tuple[Tensor, Tensor]:
        """Return the vectors of latents and of prompts, (b, joint_embed_dim) each."""
        audio, metadata = unwrap_batch(batch)
        missing = next((entry for entry in metadata if "prompt" not in entry), None)
        if missing is not None:
            raise ConfigError("the dataset supplies no 'prompt'; CLAP learns pairs of audio and text")
        latents = audio
        if not self.pre_encoded and self.model.pretransform is not None:
            with torch.no_grad():
                latents = self.model.pretransform.encode(audio)
        options: dict[str, Tensor] = {}
        if self.mask_padding_attention:
            mask = padding_masks(metadata, latents.shape[2], latents.device)
            options = {} if mask is None else {"mask": mask}
        if noised and self.timesteps is not None:
            levels = send(self.timesteps.draw(len(latents)), latents.device)
            levels = torch.where(torch.rand_like(levels) < _CLEAN_SHARE, 0.0, levels)
            share = levels[:, None, None]
            latents = (1 - share) * latents + share * torch.randn_like(latents)
            options["noise_levels"] = levels
        texts = [entry["prompt"] for entry in metadata]
        prompts = [text[0] if isinstance(text, list | tuple) else text for text in texts]
        return self.model.get_audio_embedding(latents, **options), self.model.get_text_embedding(prompts)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        audio, text = self._embed(batch, noised=False)
        self._judged.append((audio, text))

    def on_validation_epoch_end(self) -> None:
        audio, text = (torch.cat(side) for side in zip(*self._judged))
        self._judged = []
        audio, text = (torch.as_tensor(self.all_gather(side)).reshape(-1, side.shape[-1]) for side in (audio, text))
        for name, value in retrieval_metrics(audio, text, self.model.logit_scale_a.exp()).items():
            self.log(f"val/{name}", value)


def _crowding(distances: Tensor) -> Tensor:
    """Return the logarithm of the mean Gaussian potential of distances (Wang & Isola 2020): lower is more even."""
    return distances.square().mul(-2).exp().mean().log()


def retrieval_metrics(audio: Tensor, text: Tensor, scale: Tensor) -> dict[str, Tensor | float]:
    """Return how well each side finds its partner: cross entropy, ranks (1 is best), recall, precision at 10."""
    logits = scale * audio @ text.T
    own = torch.arange(len(audio), device=audio.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    metrics: dict[str, Tensor | float] = {"cumulative_loss": loss, "num_samples": float(len(audio))}
    for name, scores in (("audio_to_text", logits), ("text_to_audio", logits.T)):
        before = (scores > scores.diagonal()[:, None]).sum(1).float()  # partners that rank above the true one
        metrics[f"{name}_mean_rank"] = before.mean() + 1
        metrics[f"{name}_median_rank"] = before.median() + 1
        metrics |= {f"{name}_R@{count}": (before < count).float().mean() for count in _RANKS}
        metrics[f"{name}_mAP@10"] = torch.where(before < 10, 1 / (before + 1), 0.0).mean()
    return metrics
