"""Low-rank adapters: trained beside a frozen model, saved in small files, stacked and switched individually.

    adapter = attach_lora(model, lora_config_from(model_config["lora"]), seed=42)   # training
    optimizer = torch.optim.AdamW(adapter.parameters())
    save_lora(adapter, "voice.safetensors", model=model, metadata={"trigger": "my voice"})

    adapter = load_lora(model, "voice.safetensors", strength=0.8)                   # use
    merge_lora(model)

PEFT and the LoRA utilities of diffusers are not used here. PEFT replaces layers by wrappers, which renames the base's
state dict (`base_layer.weight`), so checkpoints no longer fit while an adapter is attached. It has no adapters
along columns or both axes, no -xs forms of them, and no intervals of noise levels. The converters of diffusers only
handle the names of diffusers' models. ComfyUI's files, which both worlds read, are written by `lora convert`.
"""

from stable_audio_tools.models.lora.adapter import LoraAdapter, attach_lora, attached_loras, unload_lora
from stable_audio_tools.models.lora.base import base_facts, same_weights
from stable_audio_tools.models.lora.combining import Combined, CombineMethod, combine_loras
from stable_audio_tools.models.lora.config import AdapterType, BasePrecision, LoraConfig, lora_config_from
from stable_audio_tools.models.lora.files import describe_lora, read_lora, write_lora
from stable_audio_tools.models.lora.loading import convert_lora, fill_lora, load_lora, save_lora
from stable_audio_tools.models.lora.merging import Extracted, extract_lora, merge_lora, unmerge_lora
from stable_audio_tools.models.lora.parametrization import (
    LoRAParametrization,
    add_lora,
    add_lora_by_name,
    default_lora_config,
    disable_lora,
    enable_lora,
    filter_lora_layers,
    get_lora_count,
    get_lora_layers,
    has_lora,
    remove_lora,
    remove_lora_by_index,
    set_lora_strength,
    tie_weights,
    untie_weights,
)
from stable_audio_tools.models.lora.published import (
    apply_to_lora,
    cast_base_to_precision,
    convert_lora_ckpt_to_safetensors,
    detect_dora_variant,
    get_bias_params,
    get_lora_params,
    get_lora_state_dict,
    infer_global_rank,
    load_and_apply_loras,
    load_lora_checkpoint,
    load_multiple_lora,
    name_is_lora,
    prepare_dora_state_dict,
    remap_lora_state_dict,
    resolve_adapter_type,
    save_lora_safetensors,
    select_lora,
)
from stable_audio_tools.models.lora.stored import LoraFile, LoraFormat

__all__ = [
    "AdapterType",
    "BasePrecision",
    "CombineMethod",
    "Combined",
    "Extracted",
    "LoRAParametrization",
    "LoraAdapter",
    "LoraConfig",
    "LoraFile",
    "LoraFormat",
    "add_lora",
    "add_lora_by_name",
    "apply_to_lora",
    "attach_lora",
    "attached_loras",
    "base_facts",
    "cast_base_to_precision",
    "combine_loras",
    "convert_lora",
    "convert_lora_ckpt_to_safetensors",
    "default_lora_config",
    "describe_lora",
    "detect_dora_variant",
    "disable_lora",
    "enable_lora",
    "extract_lora",
    "fill_lora",
    "filter_lora_layers",
    "get_bias_params",
    "get_lora_count",
    "get_lora_layers",
    "get_lora_params",
    "get_lora_state_dict",
    "has_lora",
    "infer_global_rank",
    "load_and_apply_loras",
    "load_lora",
    "load_lora_checkpoint",
    "load_multiple_lora",
    "lora_config_from",
    "merge_lora",
    "name_is_lora",
    "prepare_dora_state_dict",
    "read_lora",
    "remap_lora_state_dict",
    "remove_lora",
    "remove_lora_by_index",
    "resolve_adapter_type",
    "same_weights",
    "save_lora",
    "save_lora_safetensors",
    "select_lora",
    "set_lora_strength",
    "tie_weights",
    "unload_lora",
    "unmerge_lora",
    "untie_weights",
    "write_lora",
]
