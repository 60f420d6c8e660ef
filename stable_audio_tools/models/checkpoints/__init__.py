"""Reading and writing of weight files."""

from stable_audio_tools.models.checkpoints.formats import StoredWeights, open_weights
from stable_audio_tools.models.checkpoints.loading import LoadReport, WrongShape, load_into, read_weights
from stable_audio_tools.models.checkpoints.saving import describe_weights, export_weights, save_weights
from stable_audio_tools.models.checkpoints.skeleton import parameters_on_meta

__all__ = [
    "LoadReport",
    "StoredWeights",
    "WrongShape",
    "describe_weights",
    "export_weights",
    "load_into",
    "open_weights",
    "parameters_on_meta",
    "read_weights",
    "save_weights",
]
