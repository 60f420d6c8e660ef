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
from stable_audio_tools.inference.sampling.published import sample_flow_dpmpp
from stable_audio_tools.models.conditioners.base import ConditionTensors
from stable_audio_tools.models.diffusion import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.inpainting import random_inpaint_mask
from stable_audio_tools.models.padding import padding_masks
from stable_audio_tools.models.pretrained import load_model
from stable_audio_tools.training.adversarial import AdversarialTraining, ClipNorm, without_gradients
from stable_audio_tools.training.diffusion.conditional import HOST, Inpainting, encode
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.module import ConditionDropout, PreEncoded, RankState, UseEMA, unwrap_batch
from stable_audio_tools.training.timesteps import build_congruent_sampler

__all__ = ["ARCTrainingWrapper", "build_congruent_sampler"]

NoiseLaw = Literal["uniform", "logit_normal", "trunc_logit_normal", "one_shot", "denoised", "logsnr_uniform"]
LOGSNR_RANGE = (-6.0, 2.0)
PENALTY_NOISE = 0.05  # standard deviation of the step that stands for the gradient
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


@dataclasses.dataclass(frozen=True)
class Critic:
    """A critic: the states of the transformer after one layer, and a head that scores them."""

    dit_hidden_layer: Annotated[int, Field(ge=0, description="layer whose states are scored")]
    type: Annotated[Literal["convnext", "conv"], Field(description="kind of head")] = "convnext"
    config: JsonObject = dataclasses.field(default_factory=dict)
    contrastive: Annotated[bool, Field(description="also score audio against other prompts")] = False
    include_grad_penalties: Annotated[bool, Field(description="keep scores smooth (R1 and R2)")] = False
    weights: dict[str, float] = dataclasses.field(default_factory=dict)


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
    ode_warmup: Warmup = Warmup()
    noise_dist: NoiseLaws = NoiseLaws()
    sampling: JsonObject | None = None


@dataclasses.dataclass(frozen=True)
class Trim:
    """Random cuts of a batch to the length of one of its items."""

    trim_prob: Annotated[float, Field(ge=0, le=1)] = 0.0
    type: Literal["random_item"] = "random_item"


class Trajectory(NamedTuple):
    """Sampling of one batch by the teacher."""

    x: Tensor  # (steps, b, d, t)
    t: Tensor  # (steps,)
    target: Tensor  # (b, d, t)
    metadata: Sequence[ItemInfo]
    gaps: ConditionTensors


@register("training", "arc", ignored=("timestep_sampler", "timestep_sampler_options", "loss_configs"))
class ARCTrainingWrapper(AdversarialTraining):
    """Adversarial relativistic-contrastive post-training: generator on even steps, critic on odd ones.

    The losses are softplus(+-(real - fake)).
    """

    rebuilt = ("teacher_model.",)

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
        self.teacher_model = None if teacher is None else teacher.eval().requires_grad_(False)
        self.diffusion_ema = WeightAverage(model.model) if use_ema else None
        self.arc, self.critic = arc, arc.discriminator
        width = critic.model.get_submodule("model.transformer").dim
        head = {"type": self.critic.type, "config": self.critic.config}
        self.discriminator_head: nn.Module = build(
            "discriminator_head", head, "training.arc.discriminator", channels=width, in_channels=width
        )
        if arc.ode_warmup.warmup_steps and teacher is None:
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
            loss = self._follow_teacher(clean, metadata, masks)
            self._step(loss, 0, {"ode_mse_loss": loss})
            return loss.detach()
        clean, masks = self._trimmed(clean, masks)
        gaps = self._gaps(clean, masks)
        if self.global_step % 2 == 0:
            with without_gradients(*self.players()[1:]):
                fake = self._generate(clean, metadata, gaps, self.cfg_dropout_prob)
                loss, terms = self._generator_loss(clean, fake, metadata, gaps)
                self._step(loss, 0, {"loss": loss, "std_data": clean.std(), **terms})
        else:
            with torch.no_grad():
                fake = self._generate(clean, metadata, gaps, 0.0)
            loss, terms = self._critic_loss(clean, fake, metadata, gaps)
            self._step(loss, 1, {"discriminator_loss": loss, **terms})
        return loss.detach()

    def _follow_teacher(self, clean: Tensor, metadata: Sequence[ItemInfo], masks: Tensor | None) -> Tensor:
        """Return the loss of predicting the end of a trajectory from a random point of it, in one step."""
        warmup = self.arc.ode_warmup
        if self._trajectory is None or self.global_step % warmup.refresh_rate == 0:
            self._trajectory = self._ask_teacher(clean, metadata, self._gaps(clean, masks))
        path = self._trajectory
        count = path.x.shape[1]
        index = torch.randint(0, len(path.t), (count,))
        x, t = path.x[index, torch.arange(count)].to(clean), path.t[index].to(clean)
        gaps = tree_map_only(Tensor, lambda part: part.to(clean.device), path.gaps)
        conditions = {**self.diffusion.conditioner(path.metadata, self.device), **gaps}  # type: ignore[misc]
        velocity = self.diffusion(x, t, cond=conditions, cfg_dropout_prob=self.cfg_dropout_prob)
        return F.mse_loss(x - t[:, None, None] * velocity, path.target.to(clean))

    @torch.no_grad()
    def _ask_teacher(self, clean: Tensor, metadata: Sequence[ItemInfo], gaps: ConditionTensors) -> Trajectory:
        assert self.teacher_model is not None
        teacher, warmup = self.teacher_model, self.arc.ode_warmup
        conditions = {**teacher.conditioner(metadata, self.device), **gaps}  # type: ignore[misc]
        times = torch.sigmoid(-torch.linspace(*LOGSNR_RANGE, warmup.sampling_steps + 1))
        times[0], times[-1] = 1.0, 0.0
        seen: list[tuple[Tensor, float]] = []
        target = sample_flow_dpmpp(
            teacher,
            torch.randn_like(clean),
            sigmas=times,
            callback=lambda info: seen.append((info["x"].clone(), float(info["t"]))),
            disable_tqdm=True,
            cond=conditions,
            cfg_scale=warmup.cfg,
            batch_cfg=True,
        )
        states = torch.stack([x for x, _ in seen])
        return Trajectory(states, torch.tensor([t for _, t in seen]), target, metadata, gaps)

    def _generate(
        self, clean: Tensor, metadata: Sequence[ItemInfo], gaps: ConditionTensors, cfg_dropout_prob: float
    ) -> Tensor:
        """Return data, generated in one step from a noise level of the generator's law."""
        t = draw_levels(self.arc.noise_dist.generator, len(clean), clean.device)
        noisy = interpolate(clean, torch.randn_like(clean), t)
        conditions = {**self.diffusion.conditioner(metadata, self.device), **gaps}  # type: ignore[misc]
        velocity = self.diffusion(noisy, t, cond=conditions, cfg_dropout_prob=cfg_dropout_prob)
        return noisy - t[:, None, None] * velocity

    def _generator_loss(
        self, clean: Tensor, fake: Tensor, metadata: Sequence[ItemInfo], gaps: ConditionTensors
    ) -> tuple[Tensor, dict[str, Tensor]]:
        score, renoise = self._judge(clean, metadata, gaps)
        fakes, reals = score(renoise(fake)), score(renoise(clean))
        loss = F.softplus(reals - fakes).mean() * self.critic.weights.get("generator", 1.0)
        return loss, {"adv_loss": loss, "gen_disc_scores_mean": fakes.mean(), "gen_disc_scores_std": fakes.std()}

    def _critic_loss(
        self, clean: Tensor, fake: Tensor, metadata: Sequence[ItemInfo], gaps: ConditionTensors
    ) -> tuple[Tensor, dict[str, Tensor]]:
        score, renoise = self._judge(clean, metadata, gaps)
        noisy_real, noisy_fake = renoise(clean), renoise(fake)
        reals, fakes = score(noisy_real), score(noisy_fake)
        weight = self.critic.weights.get("discriminator", 1.0)
        loss = F.softplus(fakes - reals).mean() * weight
        terms = {"dis_loss": loss, "disc_real_scores_mean": reals.mean(), "disc_fake_scores_mean": fakes.mean()}
        if self.critic.include_grad_penalties:
            changes = [
                (score(x + PENALTY_NOISE * torch.randn_like(x)) - scores).square().sum((1, 2)).mean()
                for x, scores in ((noisy_real, reals), (noisy_fake, fakes))
            ]
            terms |= {"r1_penalty": changes[0], "r2_penalty": changes[1]}
            loss = loss + (changes[0] + changes[1]) / 2
        if self.critic.contrastive:
            strangers = score(noisy_real, self._conditions(with_next_prompt(metadata), gaps))
            contrast = F.softplus(strangers - reals).mean() * weight * self.critic.weights.get("contrastive", 1.0)
            terms["contrastive_loss_dis"] = contrast
            loss = loss + contrast
        return loss, terms

    def _judge(
        self, clean: Tensor, metadata: Sequence[ItemInfo], gaps: ConditionTensors
    ) -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]:
        """Return the functions that score and add noise, which is the same for real and generated latents."""
        t = draw_levels(self.arc.noise_dist.discriminator, len(clean), clean.device)
        noise, usual = torch.randn_like(clean), self._conditions(metadata, gaps)

        def score(x: Tensor, conditions: ConditionTensors = usual) -> Tensor:
            states = self.discriminator(x, t, cond=conditions, exit_layer_ix=self.critic.dit_hidden_layer)
            scores: Tensor = self.discriminator_head(states.transpose(1, 2))
            return scores

        return score, lambda x: interpolate(x, noise, t)

    def _conditions(self, metadata: Sequence[ItemInfo], gaps: ConditionTensors) -> ConditionTensors:
        return {**self.discriminator.conditioner(metadata, self.device), **gaps}  # type: ignore[misc]

    def _trimmed(self, clean: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if masks is None or random.random() >= self.trim.trim_prob:
            return clean, masks
        length = max(int(random.choice(masks.sum(1).tolist())), SHORTEST_TRIM)
        return clean[:, :, :length], masks[:, :length]

    def _gaps(self, clean: Tensor, masks: Tensor | None) -> ConditionTensors:
        if self.inpainting is None:
            return {}
        real = masks if masks is not None else torch.ones(len(clean), clean.shape[2], dtype=torch.bool)
        kept, mask = random_inpaint_mask(clean, padding_masks=real, **dataclasses.asdict(self.inpainting.mask_kwargs))
        return {"inpaint_mask": [mask], "inpaint_masked_input": [kept]}

    def _step(self, loss: Tensor, index: int, terms: dict[str, Tensor]) -> None:
        self.take_turn(loss, index)
        self.log_terms({**terms, ("gen_lr", "disc_lr")[index]: self.learning_rate(index)})


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
