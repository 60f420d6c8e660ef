"""Published names only."""

from stable_audio_tools.models.autoencoders.weight_norm import remove_weight_norm_from_model
from stable_audio_tools.models.checkpoints.loading import copy_state_dict, load_ckpt_state_dict

__all__ = ["copy_state_dict", "load_ckpt_state_dict", "remove_weight_norm_from_model"]
