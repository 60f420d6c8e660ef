"""All conditioners of a model: a batch of metadata in, one condition per conditioner out."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from stable_audio_tools.core.config import Kind, Part
from stable_audio_tools.core.config.parts import as_error, place
from stable_audio_tools.core.config.registry import accept_objects
from stable_audio_tools.core.config.sentences import nearest, sentences
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.models.conditioners.base import Condition, Conditioner, Values

logger = logging.getLogger(__name__)

_Configs = Annotated[
    list[Annotated[Part, Kind("conditioner")]], Field(description="the conditioners, each with the id that it reads")
]


@dataclass(frozen=True)
class Conditioning:
    """The `conditioning` of a model config."""

    cond_dim: Annotated[int, Field(ge=1, description="width of every condition that names no output_dim")]
    configs: _Configs
    default_keys: Annotated[dict[str, str], Field(description="metadata key that replaces one that an item lacks")] = (
        field(default_factory=dict)
    )
    pre_encoded_keys: Annotated[
        list[str], Field(description="ids whose metadata are condition tensors, used as they are")
    ] = field(default_factory=list)

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the conditioners, which are the metadata keys that they read."""
        return tuple(part.siblings.id for part in self.configs)

    def width(self, id: str) -> int | None:
        """Return the channels of a condition; None if the config does not say."""
        if id not in self.ids or id in self.pre_encoded_keys:
            return None
        return vars(self.configs[self.ids.index(id)].config).get("output_dim") or self.cond_dim

    def build(
        self, pretransform: nn.Module | None = None, sample_rate: int | None = None, path: str = "model.conditioning"
    ) -> "MultiConditioner":
        """Build the conditioners; `pretransform` is the model's, for conditioners that share it."""
        raise_if(check_conditioning(self, path))
        _warn_of_unused(self, path)
        runtime: dict[str, object] = {"cond_dim": self.cond_dim, "pretransform": pretransform}
        if sample_rate is not None:
            runtime["sample_rate"] = sample_rate
        built = {id: part.build(**runtime) for id, part in zip(self.ids, self.configs)}
        return MultiConditioner(built, self.default_keys, self.pre_encoded_keys)


def check_conditioning(conditioning: Conditioning | None, path: str = "conditioning") -> Iterator[tuple[str, str]]:
    """Yield mistakes that several keys make together, as (path, sentence)."""
    if conditioning is None:
        return
    ids = conditioning.ids
    for index, id in enumerate(ids):
        where = f"{path}.configs[{index}].id"
        if id in ids[:index]:
            yield where, f"{id!r} is the id of configs[{ids.index(id)}] too; each conditioner needs its own"
        elif "." in id or hasattr(nn.ModuleDict, id):
            yield where, f"{id!r} cannot be the name of a module; choose another, and route it by default_keys"


def _warn_of_unused(conditioning: Conditioning, path: str) -> None:
    # default_keys may be chained through keys that no conditioner reads.
    read = {*conditioning.ids, *conditioning.default_keys.values()}
    for section in ("default_keys", "pre_encoded_keys"):
        for key in getattr(conditioning, section):
            if key not in read:
                logger.warning("%s.%s: no conditioner has the id %r; it is ignored", path, section, key)


def check_ids(
    conditioning: Conditioning | None, ids: Sequence[str], path: str, others: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """`ids` of a routing list (`cross_attention_cond_ids`...) that neither a conditioner nor `others` provide."""
    known = [*(conditioning.ids if conditioning is not None else ()), *others]
    for index, id in enumerate(ids):
        if id not in known:
            yield f"{path}[{index}]", f"no conditioner has the id {id!r}; {nearest(id, known)}"


class MultiConditioner(nn.Module):
    """Conditioners by the metadata key that they read.

    `default_keys` name the key that is read from an item without the conditioner's own; conditions of
    `pre_encoded_keys` are taken from the metadata as they are.
    """

    def __init__(
        self,
        conditioners: Mapping[str, Conditioner],
        default_keys: Mapping[str, str] | None = None,
        pre_encoded_keys: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.conditioners = nn.ModuleDict(conditioners)
        self.default_keys = dict(default_keys or {})
        self.pre_encoded_keys = list(pre_encoded_keys)
        self._requested_device: torch.device | None = None

    def set_device(self, device: torch.device | str) -> None:
        """Move all conditioners; later calls need not name the device."""
        self._requested_device = torch.device(device)
        for conditioner in self.conditioners.values():
            cast(Conditioner, conditioner).set_device(device)

    def forward(
        self, batch_metadata: Sequence[Mapping[str, object]], device: torch.device | str | None = None
    ) -> dict[str, Condition]:
        """One metadata dict per item of the batch to one condition per conditioner."""
        device = self._requested_device if device is None else device
        conditions = {}
        for id, conditioner in self.conditioners.items():
            values = [self._value(metadata, id, index) for index, metadata in enumerate(batch_metadata)]
            if id in self.pre_encoded_keys:
                conditions[id] = Condition(_stacked(values, id).to(device), None)
            else:
                conditions[id] = _encode(cast(Conditioner, conditioner), values, device)
        return conditions

    def _value(self, metadata: Mapping[str, object], id: str, index: int) -> Any:
        """Return the value of an item for a conditioner; collation may have wrapped it in a list of one."""
        tried = [id]
        while tried[-1] not in metadata:
            default = self.default_keys.get(tried[-1])
            if default is None or default in tried:
                missing = " or ".join(repr(key) for key in tried)
                given = ", ".join(sorted(metadata)) or "none"
                source = f" ({metadata['path']})" if "path" in metadata else ""
                raise UserError(
                    f"conditioning: item {index}{source} has no {missing}, which conditioner {id!r} needs "
                    f"(its keys: {given}); add it, or name another key under default_keys"
                )
            tried.append(default)
        value = metadata[tried[-1]]
        return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _encode(conditioner: Conditioner, values: Values, device: torch.device | str | None) -> Condition:
    """Encode values; a ValueError about them is the user's mistake."""
    try:
        condition: Condition = conditioner(values, device)
        return condition
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def _stacked(values: Values, id: str) -> torch.Tensor:
    tensors = [torch.as_tensor(value) for value in values]
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise ValueError(
            f"conditioning: {id!r} is pre-encoded, and its tensors must have one shape in a batch, "
            f"got {', '.join(map(str, shapes))}; crop or pad them in the dataset's metadata"
        )
    return torch.stack(tensors)


class _Holder(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    conditioning: accept_objects(Conditioning)  # type: ignore[valid-type]


def create_multi_conditioner_from_conditioning_config(
    config: Mapping[str, object], pretransform: nn.Module | None = None, sample_rate: int | None = None
) -> MultiConditioner:
    """Build the `conditioning` of a model config; `pretransform` is the model's, for conditioners that share it."""
    try:
        conditioning = _Holder.model_validate({"conditioning": config}).conditioning
    except ValidationError as error:
        raise as_error(sentences(error, "", _Holder)) from None
    place(conditioning, "conditioning")
    return conditioning.build(pretransform, sample_rate, path="conditioning")


def raise_if(problems: Iterator[tuple[str, str]]) -> None:
    """Raise one ConfigError with all mistakes, if there are any."""
    found = list(problems)
    if found:
        raise as_error(found)
