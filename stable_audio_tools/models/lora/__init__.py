"""Low-rank adapters: trained beside a frozen model, saved in small files, stacked and switched at will.

    adapter = attach_lora(model, lora_config_from(model_config["lora"]), seed=42)   # training
    optimizer = torch.optim.AdamW(adapter.parameters())
    save_lora(adapter, "voice.safetensors", model=model, metadata={"trigger": "my voice"})

    adapter = load_lora(model, "voice.safetensors", strength=0.8)                   # use
    merge_lora(model)

PEFT and the LoRA utilities of diffusers are not used here. PEFT replaces layers by wrappers, which renames the base's
state dict (`base_layer.weight`), so that its checkpoints no longer fit once an adapter is on. It has no adapters along
columns or both axes, no -xs forms of them, and no intervals of noise levels. The converters of diffusers know the names
of its own models, not these. ComfyUI's files, which both worlds read, are written by `lora convert`.
"""

from stable_audio_tools.models.lora.adapter import LoraAdapter, attach_lora, attached_loras, unload_lora
from stable_audio_tools.models.lora.base import base_facts, same_weights
from stable_audio_tools.models.lora.config import AdapterType, BasePrecision, LoraConfig, lora_config_from
from stable_audio_tools.models.lora.files import describe_lora, read_lora, write_lora
from stable_audio_tools.models.lora.loading import convert_lora, fill_lora, load_and_apply_loras, load_lora, save_lora
from stable_audio_tools.models.lora.merging import Extracted, extract_lora, merge_lora, unmerge_lora
from stable_audio_tools.models.lora.stored import LoraFile, LoraFormat

__all__ = [
    "AdapterType",
    "BasePrecision",
    "Extracted",
    "LoraAdapter",
    "LoraConfig",
    "LoraFile",
    "LoraFormat",
    "attach_lora",
    "attached_loras",
    "base_facts",
    "convert_lora",
    "describe_lora",
    "extract_lora",
    "fill_lora",
    "load_and_apply_loras",
    "load_lora",
    "lora_config_from",
    "merge_lora",
    "read_lora",
    "same_weights",
    "save_lora",
    "unload_lora",
    "unmerge_lora",
    "write_lora",
]
