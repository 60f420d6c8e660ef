"""Config keys, facts and checks that encoders and decoders of several levels share."""

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated

from pydantic import Field

from stable_audio_tools.core.config.json_files import JsonObject

Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, description="unit of c_mults, which set the width of each level")]
Multiples = Annotated[Sequence[Count], Field(min_length=1, description="width of each level, in units of channels")]
Strides = Annotated[Sequence[Count], Field(min_length=1, description="stride of each level, from audio to latents")]
Depths = Annotated[
    Sequence[Annotated[int, Field(ge=0)]], Field(min_length=1, description="transformer layers of each level")
]
Recompute = Annotated[bool, Field(description="in training, recompute activations in the backward pass: less memory")]
Snake = Annotated[bool, Field(description="SnakeBeta activations instead of ELU")]
Conformer = Annotated[bool, Field(description="a convolution module in each transformer layer")]
LayerScale = Annotated[bool, Field(description="a learned gain on each residual branch, near zero at first")]


def describe_coder(
    config: SimpleNamespace,
    channels: str,
    channels_key: str | None = None,
    latent_key: str | None = None,
    ratio_key: str = "strides",
) -> JsonObject:
    """Return the facts of an encoder (`channels` is "in_channels") or of a decoder ("out_channels").

    The keys name the fields of the config if they differ from the facts.
    """
    facts: JsonObject = {
        channels: getattr(config, channels_key or channels),
        "latent_dim": getattr(config, latent_key or "latent_dim"),
        "ratio": math.prod(getattr(config, ratio_key)),
        "ratio_key": ratio_key,
    }
    renamed = {"channels_key": channels_key, "latent_key": latent_key}
    return facts | {fact: key for fact, key in renamed.items() if key is not None}


def check_lengths(config: SimpleNamespace, keys: Sequence[str], counted: str = "c_mults") -> Iterator[tuple[str, str]]:
    """Check that lists have as many entries as `counted`."""
    levels = len(getattr(config, counted))
    for key in keys:
        if len(getattr(config, key)) != levels:
            yield key, f"has {len(getattr(config, key))} entries for {levels} {counted}; give one per level"


def check_widths(config: SimpleNamespace, head_width: int, note: str = "") -> Iterator[tuple[str, str]]:
    """Check that the widths of all levels divide into attention heads."""
    for index, multiple in enumerate(config.c_mults):
        width = multiple * config.channels
        if width > head_width and width % head_width:
            nearest = round(width / head_width) * head_width
            yield (
                f"c_mults[{index}]",
                f"results in a width of {width} with channels {config.channels}; attention heads are {head_width} wide"
                f"{note}, so a larger width must be a multiple of it, such as {nearest}",
            )
