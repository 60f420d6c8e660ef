"""The kinds of component a config can name: the packages that define them, and the keys next to `type` and `config`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from stable_audio_tools.core.generations import Generation

if TYPE_CHECKING:
    from torch import nn

SiblingFields = Mapping[str, tuple[Any, Any]]  # name -> (annotated type, default)


def _freeze_unless_asked(component: "nn.Module", siblings: SimpleNamespace) -> "nn.Module":
    if not siblings.requires_grad:
        component.requires_grad_(False)
    return component


def _freeze_pretransform(component: "nn.Module", siblings: SimpleNamespace) -> "nn.Module":
    component.enable_grad = siblings.enable_grad
    return component.eval().requires_grad_(siblings.enable_grad)


@dataclass(frozen=True)
class KindInfo:
    """A kind of component.

    `packages` define its components. `siblings` are the keys next to `type` and `config`: those in `common` are read
    by the parent or by `finish`, the others by the component.
    """

    packages: tuple[str, ...]
    siblings: SiblingFields = field(default_factory=dict)
    common: frozenset[str] = frozenset()
    finish: Callable[[Any, SimpleNamespace], object] | None = None


_Trainable = Annotated[bool, Field(description="train this part; false freezes it")]
_TRAINABLE: SiblingFields = {"requires_grad": (_Trainable, True)}
_Ids = Annotated[list[str], Field(description="conditioner ids routed to this input, in order")]
_NO_IDS: object = Field(default_factory=list)
_Shift = dict[str, float | bool | str] | None


class ModularSignal(TypedDict):
    """A signal that every layer of a diffusion transformer adds through its own projection."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    id: str
    dim: int


KINDS: dict[str, KindInfo] = {
    "model": KindInfo(
        (
            "stable_audio_tools.models.autoencoders",
            "stable_audio_tools.models.clap",
            "stable_audio_tools.models.diffusion",
            "stable_audio_tools.models.lm",
        )
    ),
    "clap_audio": KindInfo(("stable_audio_tools.models.clap",)),
    "clap_text": KindInfo(("stable_audio_tools.models.clap",)),
    "encoder": KindInfo(
        ("stable_audio_tools.models.autoencoders",), _TRAINABLE, frozenset({"requires_grad"}), _freeze_unless_asked
    ),
    "decoder": KindInfo(
        ("stable_audio_tools.models.autoencoders",),
        {
            **_TRAINABLE,
            "soft_clip": (Annotated[bool, Field(description="pass the output through tanh")], False),
        },
        frozenset({"requires_grad", "soft_clip"}),
        _freeze_unless_asked,
    ),
    "bottleneck": KindInfo(
        ("stable_audio_tools.models.bottleneck",), _TRAINABLE, frozenset({"requires_grad"}), _freeze_unless_asked
    ),
    "pretransform": KindInfo(
        ("stable_audio_tools.models.pretransforms", "stable_audio_tools.mel.pretransform"),
        {
            "enable_grad": (Annotated[bool, Field(description="train the pretransform with the model")], False),
            "scale": (
                Annotated[
                    Annotated[float, Field(gt=0)] | Literal["auto"],
                    Field(
                        description="encoding divides latents by this, decoding multiplies; auto: their standard "
                        "deviation, measured by training on its first batch and saved with the weights"
                    ),
                ],
                1.0,
            ),
            "model_half": (Annotated[bool, Field(description="run the pretransform in float16")], False),
            "iterate_batch": (
                Annotated[bool | int, Field(description="encode and decode this many items at a time (true: one)")],
                False,
            ),
            "chunked": (Annotated[bool, Field(description="encode and decode in overlapping chunks")], False),
        },
        frozenset({"enable_grad"}),
        _freeze_pretransform,
    ),
    "vocoder": KindInfo(("stable_audio_tools.mel.vocoders",)),
    "conditioner": KindInfo(
        ("stable_audio_tools.models.conditioners",),
        {"id": (Annotated[str, Field(min_length=1, description="metadata key that this conditioner reads")], ...)},
        frozenset({"id"}),
    ),
    "diffusion": KindInfo(
        ("stable_audio_tools.models.diffusion",),
        {
            "diffusion_objective": (
                Annotated[
                    Literal["v", "rectified_flow", "rf_denoiser"] | dict[str, Any],
                    Field(description='what the network predicts: a name, or {"type": "ddpm", "config": {...}}'),
                ],
                "v",
            ),
            "cross_attention_cond_ids": (_Ids, _NO_IDS),
            "global_cond_ids": (_Ids, _NO_IDS),
            "input_concat_ids": (_Ids, _NO_IDS),
            "prepend_cond_ids": (_Ids, _NO_IDS),
            "local_add_cond_ids": (
                Annotated[
                    list[str],
                    Field(description="signals of conditioners or of the data that every layer adds to its frames"),
                ],
                _NO_IDS,
            ),
            "modular_local_cond_configs": (
                Annotated[
                    list[ModularSignal],
                    Field(description="optional signals, each with its own projection in every layer"),
                ],
                _NO_IDS,
            ),
            "distribution_shift_options": (
                Annotated[_Shift, Field(description="length-dependent shift of the noise levels in training")],
                None,
            ),
            "sampling_distribution_shift_options": (
                Annotated[
                    _Shift,
                    Field(description="length-dependent shift of the sampling schedule (generation 0.0.20 on)"),
                ],
                None,
            ),
            "mask_padding_attention": (
                Annotated[bool, Field(description="keep attention within each item's length, from seconds_total")],
                False,
            ),
            "use_effective_length_for_schedule": (
                Annotated[bool, Field(description="shift the noise levels by each item's length, from seconds_total")],
                False,
            ),
            "sampling_version": (
                Annotated[
                    Generation | None,
                    Field(description="generation whose sampling defaults apply; if omitted, the other keys decide"),
                ],
                None,
            ),
        },
        frozenset(
            {
                "diffusion_objective",
                "cross_attention_cond_ids",
                "global_cond_ids",
                "input_concat_ids",
                "prepend_cond_ids",
                "local_add_cond_ids",
                "distribution_shift_options",
                "sampling_distribution_shift_options",
                "mask_padding_attention",
                "use_effective_length_for_schedule",
                "sampling_version",
            }
        ),
    ),
    "objective": KindInfo(("stable_audio_tools.models.diffusion",)),
    "unconditional": KindInfo(("stable_audio_tools.models.diffusion",)),
    "diffusion_decoder": KindInfo(("stable_audio_tools.models.diffusion",)),
    "lm": KindInfo(
        ("stable_audio_tools.models.lm",),
        {
            "codebook_pattern": (
                Annotated[
                    Literal["delay", "parallel", "unroll", "musiclm", "coarse_first"],
                    Field(description="order in which the codes of a frame are read and written"),
                ],
                "delay",
            ),
            "cross_attention_cond_ids": (_Ids, _NO_IDS),
            "prepend_cond_ids": (_Ids, _NO_IDS),
            "global_cond_ids": (_Ids, _NO_IDS),
        },
        frozenset({"codebook_pattern", "cross_attention_cond_ids", "prepend_cond_ids", "global_cond_ids"}),
    ),
    "discriminator": KindInfo(
        ("stable_audio_tools.models.discriminators",),
        {
            "weights": (
                Annotated[dict[str, float], Field(description="weight of each loss term")],
                Field(default_factory=dict),
            )
        },
        frozenset({"weights"}),
    ),
    "discriminator_head": KindInfo(("stable_audio_tools.models.discriminators",)),
    "dataset": KindInfo(("stable_audio_tools.data.sources",)),
    "timestep_law": KindInfo(("stable_audio_tools.training.timesteps",)),
    "demo": KindInfo(("stable_audio_tools.training",)),
    "training": KindInfo(("stable_audio_tools.training",)),
    "evaluation": KindInfo(("stable_audio_tools.training.callbacks",)),
    "embedder": KindInfo(("stable_audio_tools.evaluation.embedders",)),
}
