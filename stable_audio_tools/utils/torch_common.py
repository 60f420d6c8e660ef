"""Published import path of small helpers around torch."""

from stable_audio_tools.models.checkpoints.loading import copy_state_dict
from stable_audio_tools.models.summary import count_tensors as count_parameters
from stable_audio_tools.system.ranks import rank as get_rank
from stable_audio_tools.system.ranks import world_size as get_world_size
from stable_audio_tools.system.seeds import seed_everything as set_seed

__all__ = ["copy_state_dict", "count_parameters", "get_rank", "get_world_size", "set_seed"]
