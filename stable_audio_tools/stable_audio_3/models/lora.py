"""Import path of the adapters."""

from stable_audio_tools.models.lora import (
    LoRAParametrization,
    add_lora,
    get_lora_layers,
    get_lora_params,
    get_lora_state_dict,
    load_and_apply_loras,
    load_lora_checkpoint,
    remove_lora_by_index,
    save_lora_safetensors,
    set_lora_strength,
)

__all__ = [
    "LoRAParametrization",
    "add_lora",
    "get_lora_layers",
    "get_lora_params",
    "get_lora_state_dict",
    "load_and_apply_loras",
    "load_lora_checkpoint",
    "remove_lora_by_index",
    "save_lora_safetensors",
    "set_lora_strength",
]
