"""A small model of every kind of layer that takes an adapter, and the adapted weights by their definition."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.lora import LoraAdapter, LoraConfig, attach_lora

MATRIX_TYPES = ("lora", "dora-rows", "dora-cols", "bora", "lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs")
TYPES = (*MATRIX_TYPES, "loha", "lokr")
Factors = dict[str, dict[str, Tensor]]  # layer -> factor -> tensor


class Layered(nn.Module):
    """Indices (b, t) -> (b, 5, t)"""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.widen = nn.Linear(8, 12)
        self.smooth = nn.Conv1d(12, 6, 3, padding=1)
        self.grouped = nn.Conv1d(6, 6, 3, padding=1, groups=2)
        self.mix = nn.Conv1d(6, 5, 1, bias=False)

    def forward(self, indices: Tensor) -> Tensor:
        wide = self.widen(self.table(indices)).transpose(1, 2)
        out: Tensor = self.mix(F.silu(self.grouped(self.smooth(wide))))
        return out


def layered(dtype: torch.dtype = torch.float64) -> tuple[Layered, Tensor]:
    """A model and its input, always the same."""
    torch.manual_seed(0)
    return Layered().to(dtype), torch.randint(0, 10, (2, 7))


def trained(model: nn.Module, kind: str, rank: int = 3, alpha: float | None = 6.0, **options: object) -> LoraAdapter:
    """An adapter whose factors have moved."""
    adapter = attach_lora(model, LoraConfig(adapter_type=kind, rank=rank, alpha=alpha, **options), seed=1)
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
            parameter.add_(0.2 * noise.to(parameter.dtype))
    return adapter


def defined_weight(kind: str, weight: Tensor, factors: dict[str, Tensor], scale: float) -> Tensor:
    """W' of a matrix, as the papers write it."""
    if kind == "loha":
        change = (factors["hada_w1_a"] @ factors["hada_w1_b"]) * (factors["hada_w2_a"] @ factors["hada_w2_b"])
    elif kind == "lokr":
        second = factors["lokr_w2"] if "lokr_w2" in factors else factors["lokr_w2_a"] @ factors["lokr_w2_b"]
        (a, c), (p, q) = factors["lokr_w1"].shape, second.shape
        change = (factors["lokr_w1"][:, None, :, None] * second[None, :, None, :]).reshape(a * p, c * q)
    elif kind.endswith("-xs"):
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        rank = len(factors["M_xs"])
        change = left[:, :rank] @ signed(left[:, :rank], factors["M_xs"]) @ right[:rank]
    else:
        change = factors["lora_B"] @ factors["lora_A"]
    made = weight + scale * change
    base = kind.removesuffix("-xs")
    if base in ("dora-rows", "bora"):
        magnitude = factors["magnitude_r" if base == "bora" else "magnitude"]
        made = magnitude[:, None] * made / made.norm(dim=1, keepdim=True)
    if base in ("dora-cols", "bora"):
        magnitude = factors["magnitude_c" if base == "bora" else "magnitude"]
        made = magnitude[None] * made / made.norm(dim=0, keepdim=True)
    return made


def signed(left: Tensor, core: Tensor) -> Tensor:
    """The core between vectors of any sign, given between those whose largest entry on the left is positive."""
    signs = torch.tensor([1.0 if column[column.abs().argmax()] > 0 else -1.0 for column in left.T]).to(core)
    return signs[:, None] * core * signs


def defined_model(
    model: Layered, adapters: list[tuple[str, float, dict[str, dict[str, Tensor]]]], scale: float
) -> Layered:
    """The model with W + sum of strength (W' - W) written into its weights."""
    made = Layered().to(next(model.parameters()).dtype)
    made.load_state_dict(model.state_dict())
    for path, layer in made.named_children():
        weight = layer.weight.detach().flatten(1)
        change = sum(
            (
                strength * (defined_weight(kind, weight, layers[path], scale) - weight)
                for kind, strength, layers in adapters
            ),
            torch.zeros_like(weight),
        )
        layer.weight.data += change.view(layer.weight.shape)
    return made


def factors_of(adapter: LoraAdapter) -> Factors:
    found: Factors = {}
    for name, tensor in adapter.state_dict().items():
        path, _, factor = name.rpartition(".")
        found.setdefault(path, {})[factor] = tensor
    return found
