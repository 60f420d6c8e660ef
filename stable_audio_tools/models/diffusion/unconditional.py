"""Unconditional diffusion: a backbone with its pretransform and objective."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Annotated, Any, cast

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Kind, Part, Runtime, components, register
from stable_audio_tools.core.config.parts import as_error, examine_body, place
from stable_audio_tools.core.config.sentences import nearest, show
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.packages import LateMethod
from stable_audio_tools.models.diffusion.backbones import halve_parameters, takes_options_of
from stable_audio_tools.models.diffusion.checks import (
    check_objective,
    check_transformer,
    describe_transformer,
    shortest_input,
)
from stable_audio_tools.models.diffusion.denoising import PlainDenoiser
from stable_audio_tools.models.diffusion.guidance import Denoiser, Guidance
from stable_audio_tools.models.diffusion.objectives import NamedObjective, Objective, parse_objective
from stable_audio_tools.models.diffusion.wrapper import DiffusionWrapper
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pretransforms import Pretransform


class DiffusionModel(nn.Module):
    """Base of the unconditional backbones: x (b, c, n), t (b,) from 0 at data to 1 at noise -> (b, c, n)."""

    io_channels: int

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        raise NotImplementedError


@register("unconditional", "dit", facts=describe_transformer, check=check_transformer)
@takes_options_of(DiffusionTransformer, without=("io_channels", "modular_local_cond_configs"))
class DiTUncondWrapper(DiffusionModel):
    """The diffusion transformer without conditions."""

    def __init__(
        self, in_channels: Annotated[int, Field(ge=1, description="channels of the audio or latents")], **options: Any
    ) -> None:
        super().__init__()
        self.model = DiffusionTransformer(io_channels=in_channels, **options)
        self.io_channels = in_channels
        halve_parameters(self.model)

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        out: Tensor = self.model(x, t, **options)
        return out


class DiffusionModelWrapper(DiffusionWrapper):
    """An unconditional backbone with its pretransform and objective."""

    takes_conditions = False
    generate = LateMethod("stable_audio_tools.inference.generation.diffusion:generate_diffusion_uncond")

    def __init__(
        self,
        model: DiffusionModel,
        io_channels: int,
        sample_size: int | None,
        sample_rate: int,
        min_input_length: int,
        pretransform: Pretransform | None = None,
        diffusion_objective: Objective | str = "v",
    ) -> None:
        super().__init__()
        self.model = model
        self.io_channels = io_channels
        self.sample_size = sample_size
        self.sample_rate = sample_rate
        self.min_input_length = min_input_length
        self.pretransform = pretransform
        self.conditioner = None
        self.dist_shift = None
        self.objective = parse_objective(diffusion_objective)

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        """x (b, d, n) latents or audio, t (b,) from 0 at data to 1 at noise -> (b, d, n)"""
        out: Tensor = self.model(x, t, **options)
        return out

    def denoiser(self) -> Denoiser:
        """Return the function of (x, t) that samplers call."""
        return PlainDenoiser(self.model, {}, Guidance(), self.objective)


def describe_unconditional(config: SimpleNamespace) -> dict[str, object]:
    """Return facts of a `diffusion_uncond` config."""
    backbone, _ = examine_body("unconditional", config.type, config.config or {}, "config")
    assert backbone is not None, "checked before"
    return {
        "use": "unconditional diffusion",
        "has_steps": True,
        "min_input_length": shortest_input(backbone, config.pretransform),
    }


def check_unconditional(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Yield problems of the backbone, whose type and config are keys of the model."""
    yield from check_objective(config.diffusion_objective, "diffusion_objective")
    known = components("unconditional")
    if config.type not in known:
        yield "type", f"no unconditional diffusion model named {show(config.type)}; {nearest(config.type, known)}"
        return
    backbone, problems = examine_body("unconditional", config.type, config.config or {}, "config")
    yield from problems
    if backbone is not None and config.pretransform is not None:
        channels, encoded = backbone.facts.get("io_channels"), config.pretransform.facts.get("encoded_channels")
        if None not in (channels, encoded) and channels != encoded:
            key = "in_channels" if hasattr(backbone.config, "in_channels") else "io_channels"
            yield f"config.{key}", f"is {channels}, but the pretransform delivers {encoded} channels: use {encoded}"


@register("model", "diffusion_uncond", facts=describe_unconditional, check=check_unconditional)
def build_unconditional(
    type: Annotated[str, Field(description="the backbone: dit, adp_uncond_1d, DAU1d or unet2d")],
    config: Annotated[dict[str, object] | None, Field(description="keys of the backbone")] = None,
    pretransform: Annotated[Part | None, Kind("pretransform")] = None,
    diffusion_objective: Annotated[
        NamedObjective | dict[str, object] | None,
        Field(
            description='what the network predicts: a name, {"type": "ddpm", "config": {...}}, or null: v, or what the '
            "backbone says"
        ),
    ] = None,
    *,
    sample_rate: Runtime[int],
    sample_size: Runtime[int | None] = None,
) -> DiffusionModelWrapper:
    """Diffusion without conditions."""
    backbone, problems = examine_body("unconditional", type, config or {}, "model.config")
    if backbone is None:
        raise as_error(problems)
    place(backbone, "model", "model.config")
    node = diffusion_objective or cast(NamedObjective, getattr(backbone.config, "diffusion_objective", "v"))
    objective = parse_objective(node, "model.diffusion_objective")
    model = backbone.build(diffusion_objective=objective)
    codec = None if pretransform is None else pretransform.build(sample_rate=sample_rate)
    return DiffusionModelWrapper(
        model,
        io_channels=model.io_channels,
        sample_size=sample_size,
        sample_rate=sample_rate,
        min_input_length=(1 if codec is None else codec.downsampling_ratio) * backbone.facts.get("length_multiple", 1),
        pretransform=codec,
        diffusion_objective=objective,
    )


def create_diffusion_uncond_from_config(config: Mapping[str, object]) -> DiffusionModelWrapper:
    """Build the unconditional diffusion model of a model config."""
    model = create_model_from_config(config)
    if not isinstance(model, DiffusionModelWrapper):
        raise ConfigError(f"model_type: {config['model_type']!r} is not an unconditional diffusion model")
    return model
