"""Base of the conditioners: one metadata value per item of the batch in, one condition tensor out."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.errors import ConfigError

OutputDim = Annotated[
    int | None, Field(ge=1, description="width of the condition; the cond_dim of the conditioning if left out")
]
ProjectOut = Annotated[bool, Field(description="project the condition even if it already has the right width")]

PaddingMode = Annotated[
    Literal["zero", "none", "learned"],
    Field(description="tokens of padding: zeros, the encoder's output, or one learned vector"),
]


InputKind = Literal["text", "number", "integer", "choice", "audio", "other"]


def reads(kind: InputKind) -> Callable[[SimpleNamespace], dict[str, object]]:
    """Return the `facts` of a conditioner that reads values of a kind; requests, flags and the app follow them.

    A choice names its values in the config key `options`.
    """

    def facts(config: SimpleNamespace) -> dict[str, object]:
        return {"input": kind, "options": tuple(config.options) if kind == "choice" else ()}

    return facts


class Condition(NamedTuple):
    """A condition tensor and its mask, which is True where the condition carries information.

    Tokens are (b, s, d) with a mask (b, s), one vector is one token, audio is (b, d, t) with a mask (b, t). A
    condition that was encoded in the dataset keeps its shape and has no mask.
    """

    tensor: Tensor
    mask: Tensor | None


# One value per item of the batch, of the kind that the conditioner reads.
Values = Sequence[Any]


class Conditioner(nn.Module):
    """A conditioner: `dim` is the width of its features, `output_dim` the width of the condition it returns."""

    def __init__(
        self,
        dim: int | None,
        output_dim: int | None = None,
        project_out: bool = False,
        cond_dim: int | None = None,
        padding_mode: PaddingMode = "zero",
    ) -> None:
        """`cond_dim` replaces a missing `output_dim`, and `output_dim` a missing `dim`."""
        super().__init__()
        output_dim = cond_dim if output_dim is None else output_dim
        if output_dim is None:
            raise ConfigError(f"{type(self).__name__} needs its output_dim, the width of the condition")
        self.dim = output_dim if dim is None else dim
        self.output_dim = output_dim
        projected = project_out or self.dim != output_dim
        self.proj_out = nn.Linear(self.dim, output_dim) if projected else nn.Identity()
        self.padding_mode = padding_mode
        if padding_mode == "learned":
            self.padding_embedding = nn.Parameter(0.02 * torch.randn(output_dim))
        self._requested_device = torch.device("cpu")

    @property
    def device(self) -> torch.device:
        """Return the device of the weights; a conditioner without weights returns the device requested last."""
        first = next(self.parameters(), None)
        return self._requested_device if first is None else first.device

    def set_device(self, device: torch.device | str) -> None:
        """Move the conditioner; later calls need not name the device."""
        self._requested_device = torch.device(device)
        self.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Conditioner":
        """Move or convert the conditioner; one without weights remembers the device."""
        super()._apply(fn, recurse)
        self._requested_device = fn(torch.empty(0, device=self._requested_device)).device
        return self

    def forward(self, values: Values, device: torch.device | str | None = None) -> Condition:
        """Encode one value per item of the batch; the condition is on `device`, or on the device of the weights."""
        if device is not None:
            self._requested_device = torch.device(device)
        tensor, mask = self.encode(values)
        wanted = self.device if device is None else self._requested_device
        return Condition(tensor.to(wanted), None if mask is None else mask.to(wanted))

    def encode(self, values: Values) -> Condition:
        """Compute the condition on `self.device`."""
        raise NotImplementedError

    def project(self, features: Tensor) -> Tensor:
        """Features (b, s, dim) to (b, s, output_dim), in the type of the projection's weights."""
        if isinstance(self.proj_out, nn.Linear):
            features = features.to(self.proj_out.weight)
        projected: Tensor = self.proj_out(features)
        return projected

    def fill_padding(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Replace the tokens (b, s, d) outside the mask (b, s) according to `padding_mode`."""
        if self.padding_mode == "none":
            return tokens
        if self.padding_mode == "learned":
            return torch.where(mask[..., None], tokens, self.padding_embedding.to(tokens.dtype))
        return tokens * mask[..., None]


def as_token(vectors: Tensor) -> Condition:
    """Turn one vector per item (b, d) into one token (b, 1, d)."""
    return Condition(vectors[:, None], torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device))


def require_texts(texts: Values) -> list[str]:
    """Return the values as strings; anything else is an error."""
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a text condition must be a string, got {text!r}")
    return list(texts)


# By id: a tensor, and its mask or None, which may be left out.
ConditionTensors = Mapping[str, Sequence[Tensor | None]]


class Tokens(NamedTuple):
    """Condition tokens (b, s, d) and their mask (b, s), True where they carry information."""

    tokens: Tensor
    mask: Tensor


def find_condition(conditions: ConditionTensors, id: str) -> tuple[Tensor, Tensor | None]:
    """Return a condition and its mask; a mask of None means "everywhere"."""
    if id not in conditions:
        given = ", ".join(sorted(conditions)) or "none"
        raise ValueError(f"condition {id!r} is missing (conditions given: {given}); add it to the conditioning")
    tensor, *rest = conditions[id]
    assert tensor is not None
    return tensor, rest[0] if rest else None


def join_tokens(conditions: ConditionTensors, ids: Sequence[str]) -> Tokens | None:
    """Concatenate conditions in time; a vector (b, d) is one token. Return None if there are no ids."""
    if not ids:
        return None
    tokens, masks = [], []
    for id in ids:
        tensor, mask = find_condition(conditions, id)
        tensor = tensor[:, None] if tensor.ndim == 2 else tensor
        if mask is None:
            mask = torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device)
        tokens.append(tensor)
        masks.append(mask.to(tensor.device).bool().expand(tensor.shape[:2]))
    return Tokens(torch.cat(tokens, dim=1), torch.cat(masks, dim=1))


def join_vectors(conditions: ConditionTensors, ids: Sequence[str]) -> Tensor | None:
    """Concatenate conditions of one vector per item, (b, sum of widths). Return None if there are no ids."""
    if not ids:
        return None
    vectors = []
    for id in ids:
        tensor, _ = find_condition(conditions, id)
        if tensor.ndim == 3 and tensor.shape[1] != 1:
            raise ValueError(
                f"condition {id!r} has {tensor.shape[1]} tokens, and a global condition is one vector; "
                "route it by cross_attention_cond_ids or prepend_cond_ids"
            )
        vectors.append(tensor[:, 0] if tensor.ndim == 3 else tensor)
    return torch.cat(vectors, dim=-1)
