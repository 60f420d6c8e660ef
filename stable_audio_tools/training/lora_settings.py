"""Everything that `train_lora.py` can be told beyond what `train.py` can; what is given here comes before the JSON."""

import dataclasses
from typing import Any

from stable_audio_tools.core.settings import option
from stable_audio_tools.training.settings import TrainSettings

ADAPTER_TYPES = (
    "",
    "lora",
    "dora",
    "dora-rows",
    "dora-cols",
    "bora",
    "lora-xs",
    "dora-rows-xs",
    "dora-cols-xs",
    "bora-xs",
)
BASE_PRECISIONS = ("", "fp32", "bf16", "fp16", "int8", "nf4")


@dataclasses.dataclass(frozen=True)
class LoraSettings(TrainSettings):
    lora_ckpt_path: str = option("", "adapter file to go on from, in a new run")
    rank: int = option(0, "width of the adapter; 0: as the config says, else 16", ge=0)
    alpha: float = option(0.0, "the change of a weight is alpha / rank * B A; 0: as the config says, else the rank")
    adapter_type: str = option("", "kind of adapter; empty: as the config says, else lora", choices=ADAPTER_TYPES)
    include: tuple[str, ...] = option((), "patterns of the layers to adapt, such as self_attn cross_attn")
    exclude: tuple[str, ...] = option((), "patterns of layers to leave alone")
    base_precision: str = option(
        "", "type of the frozen weights; int8 and nf4 need bitsandbytes", choices=BASE_PRECISIONS
    )
    adapter_every: int = option(500, "steps between adapter files; there is one at the end in any case", ge=1)
    keep_adapters: int = option(-1, "how many adapter files to keep; -1: all", ge=-1)
    trigger_text: str = option("", "words that call for what was learnt, noted in the adapter files")

    def lora_section(self, section: dict[str, Any] | None) -> dict[str, Any]:
        """The `lora` section of the config with what the flags say in its place."""
        changed = dict(section or {})
        if self.include:
            changed.pop("component_whitelist", None)
        if self.adapter_type:
            changed.pop("weight_decompose", None)
        flags = {
            "rank": self.rank,
            "alpha": self.alpha,
            "adapter_type": self.adapter_type,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "base_precision": self.base_precision,
        }
        return {**changed, **{key: value for key, value in flags.items() if value}}
