"""Conditional diffusion: a backbone with its conditioners and pretransform, and which condition goes where."""

import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import Kind, Part, Runtime, register
from stable_audio_tools.core.config.kinds import ModularSignal
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.generations import Generation, current_generation, generation
from stable_audio_tools.core.packages import LateMethod
from stable_audio_tools.models.calls import is_compiled, is_touched, published_call, runs_published
from stable_audio_tools.models.conditioners.base import ConditionTensors, find_condition, join_tokens, join_vectors
from stable_audio_tools.models.conditioners.multi import Conditioning, MultiConditioner
from stable_audio_tools.models.diffusion.backbones import takes_options_of
from stable_audio_tools.models.diffusion.checks import (
    check_conditioned,
    check_transformer,
    describe_conditioned,
    describe_transformer,
    unused_ids,
)
from stable_audio_tools.models.diffusion.denoising import GuidedTransformer, Inputs, ObservedDenoiser, PlainDenoiser
from stable_audio_tools.models.diffusion.distribution_shift import LogSNRShift, Shift, create_shift
from stable_audio_tools.models.diffusion.guidance import Conditions, Denoiser, Guidance
from stable_audio_tools.models.diffusion.objectives import HasObjective, Objective, parse_objective
from stable_audio_tools.models.diffusion.wrapper import DiffusionWrapper
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pretransforms import Pretransform

logger = logging.getLogger(__name__)


class ConditionedDiffusionModel(nn.Module):
    """Base of the conditional backbones. Each accepts every keyword of `forward` and ignores those it cannot use."""

    def __init__(
        self,
        *,
        supports_cross_attention: bool = False,
        supports_input_concat: bool = False,
        supports_global_cond: bool = False,
        supports_prepend_cond: bool = False,
    ) -> None:
        super().__init__()
        self.supports_cross_attention = supports_cross_attention
        self.supports_input_concat = supports_input_concat
        self.supports_global_cond = supports_global_cond
        self.supports_prepend_cond = supports_prepend_cond

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
        input_concat_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        cfg_scale: float = 1.0,
        cfg_dropout_prob: float = 0.0,
        batch_cfg: bool = False,
        rescale_cfg: bool = False,
        **options: Any,
    ) -> Any:
        """x (b, d, n), t (b,) from 0 at data to 1 at noise -> (b, d, n)"""
        raise NotImplementedError

    def denoiser(self, inputs: Inputs, guidance: Guidance, objective: Objective) -> Denoiser:
        """Bind this backbone to the conditions of one sampling run, by the keywords of `forward`."""
        return PlainDenoiser(self, inputs, guidance, objective)


@register("diffusion", "dit", facts=describe_transformer, check=check_transformer)
@register("diffusion_decoder", "dit", facts=describe_transformer, check=check_transformer)
@takes_options_of(DiffusionTransformer)
class DiTWrapper(HasObjective, ConditionedDiffusionModel):
    """The diffusion transformer."""

    def __init__(
        self,
        diffusion_objective: Runtime[Objective | str] = "v",
        modular_local_cond_configs: Runtime[list[ModularSignal] | None] = None,
        **options: Any,
    ) -> None:
        super().__init__(
            supports_cross_attention=True,
            supports_input_concat=True,
            supports_global_cond=True,
            supports_prepend_cond=True,
        )
        self.objective = parse_objective(diffusion_objective)
        self.model = DiffusionTransformer(modular_local_cond_configs=modular_local_cond_configs, **options)
        self.model.objective = self.objective
        self.io_channels = self.model.io_channels

    @published_call
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
        input_concat_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        cfg_scale: float = 1.0,
        cfg_dropout_prob: float = 0.0,
        batch_cfg: bool = True,
        rescale_cfg: bool = False,
        negative_global_cond: Tensor | None = None,
        negative_input_concat_cond: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Call `DiffusionTransformer.forward` with `options`.

        Guidance keeps the global and the concatenated condition, so their negatives have no effect, as in the original.
        `rescale_cfg` has no effect either: the transformer rescales by `scale_phi`.
        """
        if not batch_cfg:
            options["batch_cfg"] = False
        return self.model(
            x,
            t,
            cross_attn_cond=cross_attn_cond,
            cross_attn_cond_mask=cross_attn_mask,
            input_concat_cond=input_concat_cond,
            global_embed=global_cond,
            prepend_cond=prepend_cond,
            prepend_cond_mask=prepend_cond_mask,
            cfg_scale=cfg_scale,
            cfg_dropout_prob=cfg_dropout_prob,
            **options,
        )

    def denoiser(self, inputs: Inputs, guidance: Guidance, objective: Objective) -> Denoiser:
        published = PlainDenoiser(self, inputs, guidance, objective)
        if self.is_altered():
            return published
        conditions = Conditions(
            cross_attn=inputs.get("cross_attn_cond"),
            cross_attn_mask=inputs.get("cross_attn_mask"),
            input_concat=inputs.get("input_concat_cond"),
            global_embed=inputs.get("global_cond"),
            prepend=inputs.get("prepend_cond"),
            prepend_mask=inputs.get("prepend_cond_mask"),
            mask=inputs.get("mask"),
            padding_mask=inputs.get("padding_mask"),
            local=inputs.get("local_add_cond"),
            modular=inputs.get("modular_local_cond"),
        )
        negative, negative_mask = inputs.get("negative_cross_attn_cond"), inputs.get("negative_cross_attn_mask")
        fast = GuidedTransformer(self.model, conditions, guidance, negative, negative_mask)
        return ObservedDenoiser(fast, published, self.is_altered)

    def is_altered(self) -> bool:
        """Return True if other code replaced, wrapped, hooked or compiled calls that sampling would skip."""
        return (
            not runs_published(self)
            or is_touched(self)
            or is_compiled(self)
            or not isinstance(self.model, DiffusionTransformer)
            or is_compiled(self.model)
            or self.model.is_altered()
        )


def _with_equal_lengths(inputs: dict[str, Any]) -> dict[str, Any]:
    """Append masked zeros to the shorter of the cross-attention condition and its negative.

    Conditioners that pad a text to the longest of its batch give them different lengths.
    """
    names = [("cross_attn_cond", "cross_attn_mask"), ("negative_cross_attn_cond", "negative_cross_attn_mask")]
    tokens: list[Tensor] = [inputs[name] for name, _ in names if inputs.get(name) is not None]
    if len(tokens) < 2 or tokens[0].shape[2] != tokens[1].shape[2]:
        return inputs
    longest = max(one.shape[1] for one in tokens)
    for (name, mask_name), one in zip(names, tokens):
        missing = longest - one.shape[1]
        if missing:
            mask = inputs.get(mask_name)
            mask = one.new_ones(one.shape[:2], dtype=torch.bool) if mask is None else mask
            inputs[name], inputs[mask_name] = F.pad(one, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    return inputs


class ConditionedDiffusionModelWrapper(DiffusionWrapper):
    """A conditional backbone with its conditioners and pretransform."""

    takes_conditions = True
    generate = LateMethod("stable_audio_tools.inference.generation.diffusion:generate_diffusion_cond")

    def __init__(
        self,
        model: ConditionedDiffusionModel,
        conditioner: MultiConditioner | None,
        io_channels: int,
        sample_rate: int,
        min_input_length: int,
        diffusion_objective: Objective | str = "v",
        distribution_shift_options: Mapping[str, object] | None = None,
        pretransform: Pretransform | None = None,
        cross_attn_cond_ids: Sequence[str] = (),
        global_cond_ids: Sequence[str] = (),
        input_concat_ids: Sequence[str] = (),
        prepend_cond_ids: Sequence[str] = (),
        local_add_cond_ids: Sequence[str] = (),
        modular_local_cond_ids: Sequence[str] = (),
        sampling_distribution_shift_options: Mapping[str, object] | None = None,
        mask_padding_attention: bool = False,
        use_effective_length_for_schedule: bool = False,
        sampling_version: Generation | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.conditioner = conditioner
        self.io_channels = io_channels
        self.sample_rate = sample_rate
        self.min_input_length = min_input_length
        self.objective = parse_objective(diffusion_objective)
        self.dist_shift: Shift | None = (
            None if distribution_shift_options is None else create_shift(distribution_shift_options)
        )
        self.sampling_dist_shift: Shift = (
            LogSNRShift(rate=0.0)
            if sampling_distribution_shift_options is None
            else create_shift(sampling_distribution_shift_options)
        )
        self.mask_padding_attention = mask_padding_attention
        self.use_effective_length_for_schedule = use_effective_length_for_schedule
        self.sampling_version: Generation = current_generation() if sampling_version is None else sampling_version
        self.pretransform = pretransform
        self.cross_attn_cond_ids = list(cross_attn_cond_ids)
        self.global_cond_ids = list(global_cond_ids)
        self.input_concat_ids = list(input_concat_ids)
        self.prepend_cond_ids = list(prepend_cond_ids)
        self.local_add_cond_ids = list(local_add_cond_ids)
        self.modular_local_cond_ids = list(modular_local_cond_ids)

    def forward(self, x: Tensor, t: Tensor, cond: ConditionTensors, **options: Any) -> Any:
        """x (b, d, n) latents or audio, t (b,) from 0 at data to 1 at noise, conditions by id -> (b, d, n)"""
        return self.model(x, t, **self.get_conditioning_inputs(cond), **options)

    def denoiser(
        self,
        conditioning_inputs: Inputs,
        negative: Inputs | None = None,
        *,
        cfg_scale: float = 1.0,
        cfg_interval: tuple[float, float] = (0.0, 1.0),
        scale_phi: float | None = None,
        batch_cfg: bool = True,
        apg_scale: float | None = None,
        cfg_norm_threshold: float = 0.0,
        padding_mask: Tensor | None = None,
    ) -> Denoiser:
        """Return the function of (x, t) that samplers call, for one run under fixed conditions.

        Both inputs come from `get_conditioning_inputs`, the second with negative=True.
        """
        interval = (cfg_interval[0], cfg_interval[1])
        inputs = _with_equal_lengths({**conditioning_inputs, **(negative or {})})
        if padding_mask is not None:
            inputs["padding_mask"] = padding_mask
        network: nn.Module = self.model  # which other code may have replaced
        with generation(self.sampling_version):
            guidance = Guidance(cfg_scale, interval, scale_phi, batch_cfg, apg_scale, cfg_norm_threshold).resolved()
            if isinstance(network, ConditionedDiffusionModel):
                return network.denoiser(inputs, guidance, self.objective)
            return PlainDenoiser(network, inputs, guidance, self.objective)

    def get_conditioning_inputs(self, conditioning_tensors: ConditionTensors, negative: bool = False) -> dict[str, Any]:
        """Return the inputs of the backbone, by keyword, from conditions by id."""
        cross_attn = join_tokens(conditioning_tensors, self.cross_attn_cond_ids)
        global_cond = join_vectors(conditioning_tensors, self.global_cond_ids)
        input_concat = join_channels(conditioning_tensors, self.input_concat_ids)
        if negative:
            return {
                "negative_cross_attn_cond": cross_attn.tokens if cross_attn else None,
                "negative_cross_attn_mask": cross_attn.mask if cross_attn else None,
                "negative_global_cond": global_cond,
                "negative_input_concat_cond": input_concat,
            }
        prepend = join_tokens(conditioning_tensors, self.prepend_cond_ids)
        inputs: dict[str, Any] = {
            "cross_attn_cond": cross_attn.tokens if cross_attn else None,
            "cross_attn_mask": cross_attn.mask if cross_attn else None,
            "global_cond": global_cond,
            "input_concat_cond": input_concat,
            "prepend_cond": prepend.tokens if prepend else None,
            "prepend_cond_mask": prepend.mask if prepend else None,
        }
        if self.local_add_cond_ids:
            inputs["local_add_cond"] = join_channels(conditioning_tensors, self.local_add_cond_ids)
        modular = {
            id: find_condition(conditioning_tensors, id)[0]
            for id in self.modular_local_cond_ids
            if id in conditioning_tensors
        }
        if modular:
            inputs["modular_local_cond"] = modular
        return inputs


def join_channels(conditions: ConditionTensors, ids: Sequence[str]) -> Tensor | None:
    """Concatenate conditions (b, c, n) along their channels; None if there are no ids."""
    if not ids:
        return None
    signals = {name: find_condition(conditions, name)[0] for name in ids}
    lengths = {name: signal.shape[-1] for name, signal in signals.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise ValueError(f"conditions that join the input must have equal lengths, and have these frames: {listed}")
    return torch.cat(list(signals.values()), dim=1)


@register("model", "diffusion_cond", facts=describe_conditioned, check=check_conditioned)
@register("model", "diffusion_cond_inpaint", facts=describe_conditioned, check=check_conditioned)
def build_conditioned(
    io_channels: Annotated[int, Field(ge=1, description="channels that the backbone denoises")],
    diffusion: Annotated[Part, Kind("diffusion")],
    pretransform: Annotated[Part | None, Kind("pretransform")] = None,
    conditioning: Conditioning | None = None,
    *,
    sample_rate: Runtime[int],
) -> ConditionedDiffusionModelWrapper:
    """Diffusion steered by conditions."""
    for path, text in unused_ids(diffusion):
        logger.warning("%s: %s", path, text)
    codec = None if pretransform is None else pretransform.build(sample_rate=sample_rate)
    routing = diffusion.siblings
    objective = parse_objective(routing.diffusion_objective, f"{diffusion.path}.diffusion_objective")
    return ConditionedDiffusionModelWrapper(
        diffusion.build(diffusion_objective=objective),
        None if conditioning is None else conditioning.build(codec, sample_rate),
        io_channels=io_channels,
        sample_rate=sample_rate,
        min_input_length=(1 if codec is None else codec.downsampling_ratio) * diffusion.facts.get("length_multiple", 1),
        diffusion_objective=objective,
        distribution_shift_options=routing.distribution_shift_options,
        pretransform=codec,
        cross_attn_cond_ids=routing.cross_attention_cond_ids,
        global_cond_ids=routing.global_cond_ids,
        input_concat_ids=routing.input_concat_ids,
        prepend_cond_ids=routing.prepend_cond_ids,
        local_add_cond_ids=routing.local_add_cond_ids,
        modular_local_cond_ids=[condition["id"] for condition in routing.modular_local_cond_configs],
        sampling_distribution_shift_options=routing.sampling_distribution_shift_options,
        mask_padding_attention=routing.mask_padding_attention,
        use_effective_length_for_schedule=routing.use_effective_length_for_schedule,
        sampling_version=routing.sampling_version or _generation_of(routing),
    )


def _generation_of(routing: SimpleNamespace) -> Generation | None:
    """Return the generation whose keys a config uses; None if all of its keys are older."""
    keys_of_0_0_20 = (
        routing.sampling_distribution_shift_options,
        routing.mask_padding_attention,
        routing.use_effective_length_for_schedule,
        routing.local_add_cond_ids,
        routing.modular_local_cond_configs,
        "type" in (routing.distribution_shift_options or {}),
    )
    return "0.0.20" if any(keys_of_0_0_20) else None


def create_diffusion_cond_from_config(config: Mapping[str, object]) -> ConditionedDiffusionModelWrapper:
    """Build the conditional diffusion model of a model config."""
    model = create_model_from_config(config)
    if not isinstance(model, ConditionedDiffusionModelWrapper):
        raise ConfigError(f"model_type: {config['model_type']!r} is not a conditional diffusion model")
    return model
