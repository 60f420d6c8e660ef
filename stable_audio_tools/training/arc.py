"""ARC post-training (Novack et al. 2025) of a few-step generator; its critic is the same transformer with a head."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from stable_audio_tools.core.config import Key, Runtime, as_record, build, register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.devices import send
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.loader import Batch, ItemInfo
from stable_audio_tools.data.transforms import compute_effective_seq_len_from_conditioning
from stable_audio_tools.inference.sampling.published import sample_flow_dpmpp
from stable_audio_tools.models.checkpoints import load_into, open_weights
from stable_audio_tools.models.clap import CLAP, create_clap_from_config
from stable_audio_tools.models.conditioners.base import ConditionTensors
from stable_audio_tools.models.diffusion import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.discriminators.arc_heads import MultiScaleTransformerDiscriminator, ScoringHead
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.inpainting import random_inpaint_mask
from stable_audio_tools.models.padding import padding_masks
from stable_audio_tools.models.pretrained import load_model
from stable_audio_tools.models.transformer import ContinuousTransformer
from stable_audio_tools.training.adversarial import AdversarialTraining, ClipNorm, without_gradients
from stable_audio_tools.training.arc_losses import (
    CLAPDistance,
    Scores,
    clap_distance,
    feature_distance,
    frame_masks,
    off_centre,
    relativistic,
    roughness,
)
from stable_audio_tools.training.diffusion.conditional import HOST, Inpainting, encode
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.masked_losses import (
    LossNormalization,
    compute_masked_loss,
    compute_normalized_mse,
    create_augmented_padding_mask,
)
from stable_audio_tools.training.masked_losses import masked_mean as masked_error
from stable_audio_tools.training.module import ConditionDropout, PreEncoded, RankState, UseEMA, unwrap_batch
from stable_audio_tools.training.timesteps import build_congruent_sampler

__all__ = ["ARCTrainingWrapper", "build_congruent_sampler"]

NoiseLaw = Literal[
    "uniform", "logit_normal", "trunc_logit_normal", "one_shot", "denoised", "logsnr_uniform", "congruent"
]
LOGSNR_RANGE = (-6.0, 2.0)
PENALTY_NOISE = 0.05  # standard deviation of the step that stands for the gradient
SMALL_PENALTY_NOISE = 0.01  # the same in 0.0.20
SHORTEST_TRIM = 128  # frames


@dataclasses.dataclass(frozen=True)
class Warmup:
    """Steps at the start that learn the teacher's trajectories instead of playing against the critic."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    refresh_rate: Annotated[int, Field(ge=1, description="steps between new trajectories")] = 1
    sampling_steps: Annotated[int, Field(ge=1, description="steps of a trajectory")] = 20
    cfg: Annotated[float, Field(description="the teacher's guidance")] = 4.0


@dataclasses.dataclass(frozen=True)
class NoiseLaws:
    generator: NoiseLaw = "uniform"
    discriminator: NoiseLaw = "uniform"
    clap: NoiseLaw = "uniform"
    congruent_step_counts: Annotated[
        tuple[int, ...], Field(min_length=1, description="numbers of steps, powers of two, of the law `congruent`")
    ] = (1, 2, 4, 8, 16)


Layer = Annotated[int, Field(ge=0)]


@dataclasses.dataclass(frozen=True)
class Critic:
    """States of the transformer after one or several layers, and a head that scores them."""

    dit_hidden_layer: Annotated[int | tuple[Layer, ...], Field(description="layer, or layers, whose states are scored")]
    type: Annotated[
        Literal["convnext", "conv", "dilated_conv", "transformer", "multi_scale"], Field(description="kind of head")
    ] = "convnext"
    config: JsonObject = dataclasses.field(default_factory=dict)
    layer_combine_mode: Annotated[
        Literal["concat", "stack"], Field(description="states of several layers beside or after each other")
    ] = "concat"
    contrastive: Annotated[bool, Field(description="also score audio against other prompts")] = False
    contrastive_beta: Annotated[float, Field(gt=0, description="factor on the scores of that term")] = 1.0
    disc_hinge_loss: Annotated[bool, Field(description="hinge loss for the critic")] = False
    include_grad_penalties: Annotated[bool, Field(description="keep scores smooth (R1 and R2)")] = False
    grad_penalty_weight: Annotated[
        float | None,
        Field(description="weight of their mean, 100 as in 0.0.20; null: of their sum, 1 as in 0.0.19"),
    ] = None
    include_r2_penalty: Annotated[bool, Field(description="also keep scores of generated latents smooth")] = True
    freeze_backbone: Annotated[bool, Field(description="train the head alone")] = False
    feature_matching_weight: Annotated[
        float, Field(ge=0, description="weight of the distance of the states, for the generator")
    ] = 0.0
    logit_center_weight: Annotated[float, Field(ge=0, description="weight of the scores' drift from zero")] = 0.0
    reset_every: Annotated[
        Annotated[int, Field(ge=1)] | None, Field(description="steps after which the head starts again")
    ] = None
    weights: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.dit_hidden_layer,) if isinstance(self.dit_hidden_layer, int) else self.dit_hidden_layer


@dataclasses.dataclass(frozen=True)
class ARC:
    """The `arc` section."""

    discriminator: Critic
    teacher_model: JsonObject | None = None
    use_model_as_teacher: bool = False
    teacher_model_ckpt: str | None = None
    discriminator_base_model: JsonObject | None = None
    use_model_as_discriminator: bool = False
    discriminator_base_ckpt: str | None = None
    reuse_discriminator_as_teacher: Annotated[
        bool, Field(description="the critic's network, with its weights, is the teacher of the warm-up")
    ] = False
    ode_warmup: Warmup = Warmup()
    noise_dist: NoiseLaws = NoiseLaws()
    disc_update_interval: Annotated[int, Field(ge=2, description="every so many steps, one is the critic's")] = 2
    forward_sample_prob: Annotated[
        float, Field(ge=0, le=1, description="how often the generator starts from what it generated")
    ] = 0.0
    denoiser_loss_t_exponent: Annotated[
        float, Field(ge=0, description="divide errors of the warm-up by this power of the noise level")
    ] = 0.0
    clap_config: Annotated[
        JsonObject | None,
        Field(description="config of a `clap` model, with ckpt_path, whose distance the generator minimises, too"),
    ] = None
    clap_loss_type: Annotated[CLAPDistance, Field(description="what is compared there")] = "audio_cosine_sim"
    sampling: JsonObject | None = None


@dataclasses.dataclass(frozen=True)
class Trim:
    """Random cuts of a batch to the length of one of its items."""

    trim_prob: Annotated[float, Field(ge=0, le=1)] = 0.0
    type: Literal["random_item"] = "random_item"


class PreparedItems(NamedTuple):
    """Latents of a step, with what belongs to them."""

    clean: Tensor  # (b, d, t)
    metadata: Sequence[ItemInfo]
    gaps: ConditionTensors
    real: Tensor | None  # (b, t), True at real frames, if attention leaves padding out
    lengths: Tensor | None  # (b,) in frames, if noise levels shift by them

    @property
    def masked(self) -> JsonObject:
        """The keyword of a network for padding."""
        return {} if self.real is None else {"padding_mask": self.real}


class Trajectory(NamedTuple):
    """Sampling of one batch by the teacher."""

    x: Tensor  # (steps, b, d, t)
    t: Tensor  # (steps,)
    target: Tensor  # (b, d, t)
    metadata: Sequence[ItemInfo]
    gaps: ConditionTensors
    real: Tensor | None = None


@register("training", "arc", ignored=("timestep_sampler", "timestep_sampler_options", "loss_configs"))
class ARCTrainingWrapper(AdversarialTraining):
    """Adversarial relativistic-contrastive post-training: generator on even steps, critic on odd ones.

    The losses are softplus(+-(real - fake)).
    """

    rebuilt = ("teacher_model.", "clap_model.")

    def __init__(
        self,
        model: Runtime[ConditionedDiffusionModelWrapper],
        discriminator: Runtime[ConditionedDiffusionModelWrapper | None],
        arc_config: Annotated[
            ARC | JsonObject,
            Key("arc", type=ARC),
            Field(description="critic, teacher, warm-up and noise levels"),
        ],
        optimizer_configs: Annotated[JsonObject, Field(description="of diffusion and of discriminator")],
        teacher_model: Runtime[ConditionedDiffusionModelWrapper | None] = None,
        use_ema: UseEMA = True,
        pre_encoded: PreEncoded = False,
        cfg_dropout_prob: Annotated[ConditionDropout, Key(default=0.1)] = 0.0,
        clip_grad_norm: ClipNorm = 0.0,
        trim_config: Annotated[
            Trim | JsonObject | None, Key(type=Trim | None), Field(description="shorter batches now and then")
        ] = None,
        inpainting_config: Annotated[
            Inpainting | JsonObject | None,
            Key("inpainting", type=Inpainting | None),
            Field(description="what is hidden, for models that fill in"),
        ] = None,
        mask_padding_attention: Annotated[
            bool, Field(description="as the key of model.diffusion, where it belongs")
        ] = False,
        use_effective_length_for_schedule: Annotated[
            bool, Field(description="as the key of model.diffusion, where it belongs")
        ] = False,
        silence_extension_scale_seconds: Annotated[
            float, Field(ge=0, description="mean of the silence after an item that counts as part of it")
        ] = 0.0,
        mask_loss_weight: Annotated[
            float, Field(ge=0, description="weight of padding and of given frames in the loss of the warm-up")
        ] = 0.0,
        loss_normalization: Annotated[
            LossNormalization, Field(description="divide errors of the warm-up by the variance of the target")
        ] = "none",
        loss_norm_eps: Annotated[float, Field(gt=0, description="added to that variance")] = 1e-6,
        model_config: Runtime[JsonObject | None] = None,
        accum_batches: Runtime[int] = 1,
        gradient_clip_val: Runtime[float] = 0.0,
    ) -> None:
        """Teacher and critic are built from `arc_config` if they are omitted."""
        super().__init__(
            optimizer_configs, ["diffusion", "discriminator"], accum_batches, clip_grad_norm or gradient_clip_val
        )
        arc = as_record(ARC, arc_config, "arc_config")
        teacher = _build_teacher(arc, model_config) if teacher_model is None else teacher_model
        critic = _build_critic(arc, model_config) if discriminator is None else discriminator
        self.diffusion = model
        self.discriminator = critic
        if critic.pretransform is not None:  # the critic reads latents
            critic.pretransform = None
        has_weights = discriminator is not None or arc.discriminator_base_ckpt is not None
        if arc.reuse_discriminator_as_teacher and (teacher is not None or not has_weights):
            raise ConfigError(
                "training.arc.reuse_discriminator_as_teacher: give discriminator_base_ckpt and no other teacher"
            )
        self.teacher_model = None if teacher is None else teacher.eval().requires_grad_(False)
        self.clap_model = _build_clap(arc, model)
        model.mask_padding_attention |= mask_padding_attention
        model.use_effective_length_for_schedule |= use_effective_length_for_schedule
        self.silence_extension_scale_seconds = silence_extension_scale_seconds
        self.mask_loss_weight = mask_loss_weight
        self.loss_normalization, self.loss_norm_eps = loss_normalization, loss_norm_eps
        self.diffusion_ema = WeightAverage(model.model) if use_ema else None
        self.arc, self.critic = arc, arc.discriminator
        transformer = critic.model.get_submodule("model.transformer")
        assert isinstance(transformer, ContinuousTransformer)
        deepest = max(self.critic.layers)
        if deepest >= transformer.depth:
            raise ConfigError(
                f"training.arc.discriminator.dit_hidden_layer: is {deepest}, and the critic's transformer has layers "
                f"0 to {transformer.depth - 1}"
            )
        beside = len(self.critic.layers) if self.critic.layer_combine_mode == "concat" else 1
        width = transformer.dim * beside
        self._memory_tokens = transformer.num_memory_tokens
        if self.critic.freeze_backbone:
            critic.eval().requires_grad_(False)
        head = {"type": self.critic.type, "config": self.critic.config}
        self.discriminator_head: ScoringHead = build(
            "discriminator_head", head, "training.arc.discriminator", channels=width, in_channels=width
        )
        if arc.ode_warmup.warmup_steps and teacher is None and not arc.reuse_discriminator_as_teacher:
            raise ConfigError("training.arc.ode_warmup: needs a teacher; give teacher_model or use_model_as_teacher")
        self.pre_encoded, self.cfg_dropout_prob = pre_encoded, cfg_dropout_prob
        self.trim = as_record(Trim, trim_config, "trim_config")
        fills_in = inpainting_config is not None
        self.inpainting = as_record(Inpainting, inpainting_config, "inpainting_config") if fills_in else None
        self._trajectory: Trajectory | None = None

    @property
    def weight_average(self) -> WeightAverage | None:
        return self.diffusion_ema

    @property
    def exported(self) -> nn.Module:
        return self.diffusion

    def rank_state(self) -> RankState:
        """Return the teacher's trajectory, which is large and differs between processes, if the next step learns it."""
        warmup = self.arc.ode_warmup
        goes_on = self.global_step < warmup.warmup_steps and self.global_step % warmup.refresh_rate != 0
        return {"trajectory": tuple(self._trajectory)} if goes_on and self._trajectory is not None else {}

    def load_rank_state(self, state: RankState) -> None:
        if "trajectory" in state:
            self._trajectory = Trajectory(*state["trajectory"])

    def players(self) -> list[nn.Module]:
        return [self.diffusion, nn.ModuleList([self.discriminator_head, self.discriminator])]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        audio, metadata = unwrap_batch(batch)
        clean = encode(self.diffusion, audio, self.pre_encoded)  # (b, d, t)
        masks = padding_masks(metadata, clean.shape[2], HOST)
        if self.global_step < self.arc.ode_warmup.warmup_steps:
            loss = self._follow_teacher(self._prepare(clean, metadata, masks))
            self._step(loss, 0, {"ode_mse_loss": loss})
            return loss.detach()
        items = self._prepare(*self._trimmed(clean, metadata, masks))
        if self.critic.reset_every and self.global_step and self.global_step % self.critic.reset_every == 0:
            self._reset_head()
        interval = self.arc.disc_update_interval
        if self.global_step % interval != interval - 1:
            with without_gradients(*self.players()[1:]):
                fake = self._generate(items, self.cfg_dropout_prob)
                loss, terms = self._generator_loss(items, fake)
                self._step(loss, 0, {"loss": loss, "std_data": clean.std(), **terms})
        else:
            with torch.no_grad():
                fake = self._generate(items, 0.0)
            loss, terms = self._critic_loss(items, fake)
            self._step(loss, 1, {"discriminator_loss": loss, **terms})
        return loss.detach()

    def _prepare(self, clean: Tensor, metadata: Sequence[ItemInfo], masks: Tensor | None) -> PreparedItems:
        real = None
        if self.diffusion.mask_padding_attention:
            known = torch.ones(len(clean), clean.shape[2], dtype=torch.bool) if masks is None else masks
            codec = self.diffusion.pretransform
            ratio = 1 if codec is None else codec.downsampling_ratio
            real = create_augmented_padding_mask(
                send(known, clean.device), self.silence_extension_scale_seconds, self.diffusion.sample_rate, ratio
            )
        lengths = None
        if self.diffusion.use_effective_length_for_schedule:
            codec = self.diffusion.pretransform
            lengths = compute_effective_seq_len_from_conditioning(
                metadata, self.diffusion.sample_rate, 1 if codec is None else codec.downsampling_ratio, self.device
            )
        return PreparedItems(clean, metadata, self._gaps(clean, masks if real is None else real), real, lengths)

    def _reset_head(self) -> None:
        """Start the head again, with the same weights in every process."""
        self.discriminator_head.reset_parameters()
        if torch.distributed.is_initialized():
            for tensor in self.discriminator_head.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)

    def _follow_teacher(self, items: PreparedItems) -> Tensor:
        """Return the error of the student's one-step guess, from anywhere on a trajectory, of the trajectory's end."""
        warmup = self.arc.ode_warmup
        if self._trajectory is None or self.global_step % warmup.refresh_rate == 0:
            self._trajectory = self._ask_teacher(items)
        path = self._trajectory
        count = path.x.shape[1]
        index = torch.randint(0, len(path.t), (count,))
        x, t = path.x[index, torch.arange(count)].to(items.clean), path.t[index].to(items.clean)
        gaps = tree_map_only(Tensor, lambda part: part.to(items.clean.device), path.gaps)
        kept = items._replace(metadata=path.metadata, gaps=gaps, real=path.real)
        conditions = self._conditions(self.diffusion, kept)
        velocity = self.diffusion(x, t, cond=conditions, cfg_dropout_prob=self.cfg_dropout_prob, **kept.masked)
        guess, target = x - t[:, None, None] * velocity, path.target.to(items.clean)
        if kept.real is None and self.loss_normalization == "none" and not self.arc.denoiser_loss_t_exponent:
            return F.mse_loss(guess, target)
        real = torch.ones_like(target[:, 0], dtype=torch.bool) if kept.real is None else kept.real
        given = gaps["inpaint_mask"][0][:, 0].bool() if gaps else torch.zeros_like(real)
        errors = compute_normalized_mse(guess, target, real & ~given, self.loss_normalization, self.loss_norm_eps)
        errors = errors * t.clamp(min=1e-4).pow(-self.arc.denoiser_loss_t_exponent)[:, None, None]
        masks_attention = kept.real is not None
        loss = compute_masked_loss(errors, real & ~given, masks_attention, self.mask_loss_weight)[0]
        if masks_attention and self.mask_loss_weight > 0:
            loss = loss + self.mask_loss_weight * masked_error(errors, given & real)
        return loss

    @torch.no_grad()
    def _ask_teacher(self, items: PreparedItems) -> Trajectory:
        teacher = self.teacher_model or self.discriminator
        warmup = self.arc.ode_warmup
        times = torch.sigmoid(-torch.linspace(*LOGSNR_RANGE, warmup.sampling_steps + 1))
        times[0], times[-1] = 1.0, 0.0
        seen: list[tuple[Tensor, float]] = []
        target = sample_flow_dpmpp(
            teacher,
            torch.randn_like(items.clean),
            sigmas=times,
            callback=lambda info: seen.append((info["x"].clone(), float(info["t"]))),
            disable_tqdm=True,
            cond=self._conditions(teacher, items),
            cfg_scale=warmup.cfg,
            batch_cfg=True,
            **items.masked,
        )
        states = torch.stack([x for x, _ in seen])
        return Trajectory(states, torch.tensor([t for _, t in seen]), target, items.metadata, items.gaps, items.real)

    def _draw(self, law: NoiseLaw, items: PreparedItems) -> Tensor:
        """Noise levels of a law, shifted for the length where the model's generation shifts them."""
        count, device = len(items.clean), items.clean.device
        if law == "congruent":
            t = build_congruent_sampler(list(self.arc.noise_dist.congruent_step_counts), lambda: device)(count)
        else:
            t = draw_levels(law, count, device)
        shift = self.diffusion.dist_shift
        if shift is None or self.diffusion.sampling_version == "0.0.19":
            return t
        return shift.shift(t, items.clean.shape[2] if items.lengths is None else items.lengths)

    def _generate(self, items: PreparedItems, cfg_dropout_prob: float) -> Tensor:
        """Return data in one step from a noise level of the generator's law."""
        clean, noise = items.clean, torch.randn_like(items.clean)
        t = self._draw(self.arc.noise_dist.generator, items)
        conditions = self._conditions(self.diffusion, items)
        options: JsonObject = {"cond": conditions, "cfg_dropout_prob": cfg_dropout_prob, **items.masked}
        if self.arc.forward_sample_prob and random.random() < self.arc.forward_sample_prob:
            with torch.no_grad():
                clean = noise - self.diffusion(noise, torch.ones_like(t), **options)
                noise = torch.randn_like(clean)
        noisy = interpolate(clean, noise, t)
        generated: Tensor = noisy - t[:, None, None] * self.diffusion(noisy, t, **options)
        return generated

    def _generator_loss(self, items: PreparedItems, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        judge = self._judge(items)
        fakes, fake_states = judge.score(judge.renoise(fake))
        reals, real_states = judge.score(judge.renoise(items.clean))
        loss = relativistic(fakes, reals, judge.masks(reals)) * self.critic.weights.get("generator", 1.0)
        flat = torch.cat([scores.flatten() for scores in fakes])
        terms = {"adv_loss": loss, "gen_disc_scores_mean": flat.mean(), "gen_disc_scores_std": flat.std()}
        if weight := self.critic.feature_matching_weight:
            terms["feature_matching_loss"] = weight * feature_distance(real_states, fake_states, items.real)
            loss = loss + terms["feature_matching_loss"]
        if self.clap_model is not None:
            t = self._draw(self.arc.noise_dist.clap, items)
            noise = torch.randn_like(fake)
            prompts = [str(entry.get("clap_prompt", entry.get("prompt", ""))) for entry in items.metadata]
            noised = (interpolate(items.clean, noise, t), interpolate(fake, noise, t))
            terms["clap_loss"] = clap_distance(
                self.clap_model, self.arc.clap_loss_type, *noised, t, prompts, items.real
            )
            loss = loss + terms["clap_loss"]
        return loss, terms

    def _critic_loss(self, items: PreparedItems, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        judge, critic = self._judge(items), self.critic
        noisy_real, noisy_fake = judge.renoise(items.clean), judge.renoise(fake)
        reals, fakes = judge.score(noisy_real)[0], judge.score(noisy_fake)[0]
        masks = judge.masks(reals)
        weight = critic.weights.get("discriminator", 1.0)
        loss = relativistic(reals, fakes, masks, hinge=critic.disc_hinge_loss) * weight
        means = [torch.cat([scores.flatten() for scores in side]).mean() for side in (reals, fakes)]
        terms = {"dis_loss": loss, "disc_real_scores_mean": means[0], "disc_fake_scores_mean": means[1]}
        if isinstance(self.discriminator_head, MultiScaleTransformerDiscriminator):
            for name, ours, theirs in zip(self.discriminator_head.head_names, reals, fakes):
                terms[f"disc_gap_{name}"] = ours.mean() - theirs.mean()
        if critic.include_grad_penalties:
            sides = {"r1_penalty": (noisy_real, reals), "r2_penalty": (noisy_fake, fakes)}
            if not critic.include_r2_penalty:
                del sides["r2_penalty"]
            penalties = {name: self._penalty(judge, x, scores, masks) for name, (x, scores) in sides.items()}
            terms |= penalties
            loss = loss + torch.stack(list(penalties.values())).mean()
        if critic.contrastive:
            strangers = items._replace(metadata=with_next_prompt(items.metadata))
            scores = judge.score(noisy_real, self._conditions(self.discriminator, strangers))[0]
            contrast = relativistic(reals, scores, masks, critic.contrastive_beta, critic.disc_hinge_loss)
            terms["contrastive_loss_dis"] = contrast * weight * critic.weights.get("contrastive", 1.0)
            loss = loss + terms["contrastive_loss_dis"]
        if critic.logit_center_weight:
            terms["logit_center_penalty"] = critic.logit_center_weight * off_centre(reals, fakes, masks)
            loss = loss + terms["logit_center_penalty"]
        return loss, terms

    def _penalty(self, judge: "Judge", x: Tensor, scores: Scores, masks: Sequence[Tensor | None]) -> Tensor:
        weight = self.critic.grad_penalty_weight
        step = PENALTY_NOISE if weight is None else SMALL_PENALTY_NOISE
        moved = judge.score(x + step * torch.randn_like(x))[0]
        if weight is not None:
            return weight * roughness(moved, scores, masks)
        changes = [(after - before).square().sum((1, 2)).mean() for after, before in zip(moved, scores)]
        return torch.stack(changes).mean()

    def _judge(self, items: PreparedItems) -> "Judge":
        """Return how to score, and how to noise: real and generated latents get the same noise at the same level."""
        t = self._draw(self.arc.noise_dist.discriminator, items)
        noise, usual = torch.randn_like(items.clean), self._conditions(self.discriminator, items)
        silenced = 1.0 if items.real is None else items.real[:, None]

        def score(x: Tensor, conditions: ConditionTensors = usual) -> tuple[Scores, list[Tensor]]:
            states = self._states(x, t, conditions, items)
            joined = torch.cat(states, dim=-1 if self.critic.layer_combine_mode == "concat" else 1)
            scores = self.discriminator_head(joined.mT)
            return scores if isinstance(scores, list) else [scores], states

        frames = items.real
        if frames is not None and self.critic.layer_combine_mode == "stack":
            frames = frames.repeat(1, len(self.critic.layers))
        return Judge(score, lambda x: interpolate(x, noise, t) * silenced, frames)

    def _states(self, x: Tensor, t: Tensor, conditions: ConditionTensors, items: PreparedItems) -> list[Tensor]:
        """Return the states (b, t, d) of the critic's layers."""
        options: JsonObject = {"cond": conditions, "exit_layer_ix": max(self.critic.layers), **items.masked}
        if len(self.critic.layers) == 1:
            return [self.discriminator(x, t, **options)]
        _, info = self.discriminator(x, t, return_info=True, **options)
        return [info["hidden_states"][index][:, self._memory_tokens :] for index in self.critic.layers]

    def _conditions(self, network: ConditionedDiffusionModelWrapper, items: PreparedItems) -> ConditionTensors:
        assert network.conditioner is not None
        return {**network.conditioner(items.metadata, self.device), **items.gaps}

    def _trimmed(
        self, clean: Tensor, metadata: Sequence[ItemInfo], masks: Tensor | None
    ) -> tuple[Tensor, Sequence[ItemInfo], Tensor | None]:
        if masks is None or random.random() >= self.trim.trim_prob:
            return clean, metadata, masks
        length = max(int(random.choice(masks.sum(1).tolist())), SHORTEST_TRIM)
        return clean[:, :, :length], metadata, masks[:, :length]

    def _gaps(self, clean: Tensor, masks: Tensor | None) -> ConditionTensors:
        if self.inpainting is None:
            return {}
        real = masks if masks is not None else torch.ones(len(clean), clean.shape[2], dtype=torch.bool)
        options = dataclasses.asdict(self.inpainting.mask_kwargs)
        masked = self.diffusion.mask_padding_attention
        kept, mask = random_inpaint_mask(clean, padding_masks=real, mask_padding=masked, **options)
        return {"inpaint_mask": [mask], "inpaint_masked_input": [kept]}

    def _step(self, loss: Tensor, index: int, terms: dict[str, Tensor]) -> None:
        self.take_turn(loss, index)
        self.log_terms({**terms, ("gen_lr", "disc_lr")[index]: self.learning_rate(index)})


class Judge(NamedTuple):
    """The critic at the noise levels of one step."""

    score: Callable[..., tuple[Scores, list[Tensor]]]  # latents -> scores, states
    renoise: Callable[[Tensor], Tensor]
    frames: Tensor | None  # mask of the states

    def masks(self, scores: Scores) -> list[Tensor | None]:
        return frame_masks(self.frames, scores)


def interpolate(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return (1 - t) data + t noise."""
    return clean * (1 - t)[:, None, None] + noise * t[:, None, None]


def draw_levels(law: NoiseLaw, count: int, device: torch.device) -> Tensor:
    """Draw noise levels (b,); 1 is pure noise."""
    if law == "one_shot":
        return torch.ones(count, device=device)
    if law == "denoised":
        return torch.zeros(count, device=device)
    if law == "logsnr_uniform":
        low, high = LOGSNR_RANGE
        return send(torch.sigmoid(-(low + (high - low) * torch.rand(count))), device)
    if law == "uniform":
        return send(torch.rand(count), device)
    drawn: Tensor = build("timestep_law", {"type": law}, "training.arc.noise_dist").draw(count)
    return send(drawn, device)


def with_next_prompt(metadata: Sequence[ItemInfo]) -> list[ItemInfo]:
    """Return copies of the items, each with the prompt of the next one."""
    following = [*metadata[1:], *metadata[:1]]
    return [
        {**own, "prompt": other["prompt"]} if "prompt" in other else dict(own)
        for own, other in zip(metadata, following)
    ]


def _build_clap(arc: ARC, model: ConditionedDiffusionModelWrapper) -> CLAP | None:
    """The CLAP of the section, frozen, with its weights; only the halves that the loss reads."""
    if arc.clap_config is None:
        return None
    config = dict(arc.clap_config)
    pretransform = model.pretransform if config.pop("use_model_pretransform", False) else None
    weights = config.pop("ckpt_path", None)
    clap = create_clap_from_config(config, pretransform)
    if weights is not None:
        load_into(clap, open_weights(weights))
    clap.pretransform = None
    if arc.clap_loss_type != "audio_text_distance":
        del clap.text_branch, clap.text_projection
    return clap.eval().requires_grad_(False)


def _build_teacher(arc: ARC, model_config: JsonObject | None) -> ConditionedDiffusionModelWrapper | None:
    """Build the teacher that the section names, with its weights."""
    config = arc.teacher_model or (model_config if arc.use_model_as_teacher else None)
    if config is None:
        return None
    if arc.teacher_model_ckpt is None:
        raise ConfigError("training.arc.teacher_model_ckpt: missing; a teacher needs its weights")
    return _conditional(load_model(config, arc.teacher_model_ckpt), "teacher_model")


def _build_critic(arc: ARC, model_config: JsonObject | None) -> ConditionedDiffusionModelWrapper:
    """Build the trainable network below the critic's head."""
    base = arc.discriminator_base_model or (model_config if arc.use_model_as_discriminator else None)
    if base is None:
        raise ConfigError(
            "training.arc: the critic needs a network; give discriminator_base_model, or use_model_as_discriminator"
        )
    weights = arc.discriminator_base_ckpt
    critic = create_model_from_config(base) if weights is None else load_model(base, weights).train()
    return _conditional(critic.requires_grad_(True), "discriminator_base_model")


def _conditional(model: nn.Module, key: str) -> ConditionedDiffusionModelWrapper:
    if not isinstance(model, ConditionedDiffusionModelWrapper):
        raise ConfigError(f"training.arc.{key}: expected a conditional diffusion model, got {type(model).__name__}")
    return model
