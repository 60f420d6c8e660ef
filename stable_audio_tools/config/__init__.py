"""Configs: a tree of tagged nodes, checked against constructor signatures and built by one registry."""

from stable_audio_tools.config.errors import AudioError, CheckpointError, ConfigError, MissingPackage, UserError
from stable_audio_tools.config.files import load, parse, save
from stable_audio_tools.config.parts import Kind, Part, build, validate
from stable_audio_tools.config.registry import Runtime, components, register

__all__ = [
    "AudioError",
    "CheckpointError",
    "ConfigError",
    "Kind",
    "MissingPackage",
    "Part",
    "Runtime",
    "UserError",
    "build",
    "components",
    "load",
    "parse",
    "register",
    "save",
    "validate",
]
