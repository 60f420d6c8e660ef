"""Published import path of small helpers around torch."""

from stable_audio_tools.core.ranks import rank as get_rank
from stable_audio_tools.core.ranks import world_size as get_world_size
from stable_audio_tools.core.seeds import seed_everything as set_seed
from stable_audio_tools.models.checkpoints.loading import copy_state_dict
from stable_audio_tools.models.summary import count_tensors as count_parameters

__all__ = ["copy_state_dict", "count_parameters", "get_rank", "get_world_size", "set_seed"]
