"""Local conditions: one vector per token, added to the hidden states of a layer before its feed-forward."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config.kinds import ModularSignal


class LocalConditions(NamedTuple):
    """Local conditions of one pass, (b, any length, channels) each."""

    joined: Tensor | None = None
    modular: Mapping[str, Tensor] | None = None

    def first(self, items: int) -> "LocalConditions":
        """Return the conditions of the first items of the batch."""
        joined = None if self.joined is None else self.joined[:items]
        modular = self.modular and {id: value[:items] for id, value in self.modular.items()}
        return LocalConditions(joined, modular)


class LocalProjections(nn.ModuleDict):
    """Projections of modular conditions, by their id; each starts at zero."""

    def __init__(self, dim: int, conditions: Sequence[ModularSignal]) -> None:
        super().__init__({condition["id"]: local_projection(condition["dim"], dim) for condition in conditions})


def local_projection(dim_in: int, dim: int) -> nn.Sequential:
    """Two layers whose output starts at zero: (b, n, dim_in) -> (b, n, dim)."""
    last = nn.Linear(dim, dim)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(nn.Linear(dim_in, dim), nn.SiLU(), last)


def align_right(embedded: Tensor, length: int) -> Tensor:
    """Align the end of a condition with the end of the sequence: prepend zeros, or keep the last frames.

    sequence     | memory | prepended | frames |
    condition      0 0 0 0 0 0 0 0 0  | frames |
    """
    missing = length - embedded.shape[1]
    return F.pad(embedded, (0, 0, missing, 0)) if missing >= 0 else embedded[:, -length:]
