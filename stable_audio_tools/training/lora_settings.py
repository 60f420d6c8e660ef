"""Everything that `train_lora.py` can be told beyond what `train.py` can; what is given here comes before the JSON."""

import dataclasses
from typing import Any

from stable_audio_tools.training.settings import TrainSettings, setting

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
    lora_ckpt_path: str = setting("", "adapter file to go on from, in a new run")
    rank: int = setting(0, "width of the adapter; 0: as the config says, else 16")
    alpha: float = setting(0.0, "the change of a weight is alpha / rank * B A; 0: as the config says, else the rank")
    adapter_type: str = setting("", "kind of adapter; empty: as the config says, else lora", ADAPTER_TYPES)
    include: tuple[str, ...] = setting((), "patterns of the layers to adapt, such as self_attn cross_attn")
    exclude: tuple[str, ...] = setting((), "patterns of layers to leave alone")
    base_precision: str = setting("", "type of the frozen weights; int8 and nf4 need bitsandbytes", BASE_PRECISIONS)
    adapter_every: int = setting(500, "steps between adapter files; there is one at the end in any case")
    keep_adapters: int = setting(-1, "how many adapter files to keep; -1: all")
    trigger_text: str = setting("", "words that call for what was learnt, noted in the adapter files")

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
