"""Encodings that were computed beforehand, such as `scripts/encode_text.py` writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.models.conditioners.base import Condition, Conditioner, OutputDim, ProjectOut, Values


@register("conditioner", "precomputed")
class PrecomputedConditioner(Conditioner):
    """Vectors or tokens from the data, or from a file by a name from the data."""

    def __init__(
        self,
        dim: Annotated[int, Field(ge=1, description="width of the encodings")],
        output_dim: OutputDim = None,
        path: Annotated[
            str | None,
            Field(description="a .safetensors or .npz file of encodings by name, for items that hold a name"),
        ] = None,
        max_length: Annotated[int, Field(ge=1, description="tokens of a condition; shorter ones are padded")] = 1,
        project_out: ProjectOut = False,
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        super().__init__(dim, output_dim, project_out, cond_dim)
        self.path, self.max_length = path, max_length
        self._encodings: Mapping[str, Tensor] | None = None

    def encode(self, values: Values) -> Condition:
        tokens = torch.zeros(len(values), self.max_length, self.dim, device=self.device)
        mask = torch.zeros(len(values), self.max_length, dtype=torch.bool, device=self.device)
        for index, value in enumerate(values):
            encoding = self._encoding_of(value)
            tokens[index, : len(encoding)] = encoding.to(tokens)
            mask[index, : len(encoding)] = True
        projected = self.project(tokens)
        return Condition(projected * mask[..., None].to(projected), mask)

    def _encoding_of(self, value: Any) -> Tensor:
        """(s, dim)"""
        encoding = self._look_up(value) if isinstance(value, str) else torch.as_tensor(value)
        encoding = encoding[None] if encoding.ndim == 1 else encoding
        name = repr(value) if isinstance(value, str) else "an encoding"
        if encoding.ndim != 2 or encoding.shape[1] != self.dim:
            raise ValueError(
                f"{name} is shaped {tuple(encoding.shape)}, and the conditioner takes ({self.dim},) or "
                f"(tokens, {self.dim})"
            )
        if len(encoding) > self.max_length:
            raise ValueError(
                f"{name} has {len(encoding)} tokens, and max_length of the conditioner is {self.max_length}"
            )
        return encoding

    def _look_up(self, name: str) -> Tensor:
        if self.path is None:
            raise ValueError(
                f"the condition is the name {name!r}, and the conditioner has no path to a file of encodings by name"
            )
        if self._encodings is None:
            self._encodings = read_encodings(self.path)
        if name not in self._encodings:
            raise ValueError(f"{self.path}: holds no encoding of {name!r}; {nearest(name, list(self._encodings))}")
        return self._encodings[name]


def read_encodings(path: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a .safetensors or .npz file, by name; code in it is never run."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file of encodings; scripts/encode_text.py writes one")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    raise UserError(f"{path}: expected a .safetensors or .npz file of encodings, not {path.suffix or 'no suffix'!r}")
