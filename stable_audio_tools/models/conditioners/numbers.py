"""Numbers and choices as one vector each."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.conditioners.base import Condition, Conditioner, OutputDim, Values, as_token, reads
from stable_audio_tools.models.diffusion.unet1d.embeddings import FourierEmbedding

_FREQUENCIES = 128


def _check_range(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if config.max_val <= config.min_val:
        yield "max_val", f"is {config.max_val}, not above min_val, {config.min_val}; exchange or widen them"


@register("conditioner", "int", facts=reads("integer"), check=_check_range)
class IntConditioner(Conditioner):
    """A whole number, clamped to a range, as one learned vector per number."""

    def __init__(
        self,
        output_dim: OutputDim = None,
        min_val: Annotated[int, Field(description="smallest number; those below count as it")] = 0,
        max_val: Annotated[int, Field(description="largest number; those above count as it")] = 512,
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        super().__init__(None, output_dim, cond_dim=cond_dim)
        self.min_val = min_val
        self.max_val = max_val
        self.int_embedder = nn.Embedding(max_val - min_val + 1, self.output_dim)

    def encode(self, values: Values) -> Condition:
        numbers = torch.tensor([int(value) for value in values], device=self.device)
        return as_token(self.int_embedder(numbers.clamp(self.min_val, self.max_val) - self.min_val))


FeaturesType = Literal["learned", "expo"]


class NumberEmbedder(nn.Module):
    """Numbers (b,) to (b, features) through Fourier features, at learned or at exponentially spaced frequencies."""

    def __init__(self, features: int, fourier_features_type: FeaturesType = "learned") -> None:
        super().__init__()
        self.embedding = FourierEmbedding(2 * _FREQUENCIES, features, exponential=fourier_features_type == "expo")

    def forward(self, numbers: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(numbers)
        return embedded


@register("conditioner", "number", facts=reads("number"), check=_check_range)
class NumberConditioner(Conditioner):
    """A number, clamped to a range and scaled to 0..1, through Fourier features."""

    def __init__(
        self,
        output_dim: OutputDim = None,
        min_val: Annotated[float, Field(description="becomes 0; numbers below count as it")] = 0,
        max_val: Annotated[float, Field(description="becomes 1; numbers above count as it")] = 1,
        fourier_features_type: Annotated[
            FeaturesType, Field(description="frequencies of the features: learned, or fixed and exponentially spaced")
        ] = "learned",
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        super().__init__(None, output_dim, cond_dim=cond_dim)
        self.min_val = min_val
        self.max_val = max_val
        self.embedder = NumberEmbedder(self.output_dim, fourier_features_type)

    def encode(self, values: Values) -> Condition:
        # In float32 whatever the type of the weights: in float16, 2047 of 4096 equals 2048.
        numbers = torch.tensor([float(value) for value in values], dtype=torch.float32, device=self.device)
        scaled = (numbers.clamp(self.min_val, self.max_val) - self.min_val) / (self.max_val - self.min_val)
        return as_token(self.embedder(scaled))


def _check_options(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if not config.options:
        yield "options", "missing; list the names that this condition can take"


@register("conditioner", "list", facts=reads("choice"), check=_check_options)
class ListConditioner(Conditioner):
    """One of a list of names as one learned vector per name, and one more for every name not in the list."""

    def __init__(
        self,
        output_dim: OutputDim = None,
        options: Annotated[Sequence[str], Field(description="the names")] = (),
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        super().__init__(None, output_dim, cond_dim=cond_dim)
        self.options = list(options)
        self.embedder = nn.Embedding(len(self.options) + 1, self.output_dim)
        self._rows = {name: row for row, name in reversed(list(enumerate(self.options, start=1)))}

    def encode(self, values: Values) -> Condition:
        rows = torch.tensor([self._rows.get(value, 0) for value in values], device=self.device)
        return as_token(self.embedder(rows))
