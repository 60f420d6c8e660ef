"""Configs: a tree of tagged nodes, checked against constructor signatures and built by one registry."""

from stable_audio_tools.core.config.json_files import load, parse, save
from stable_audio_tools.core.config.parts import Kind, Part, as_record, build, validate
from stable_audio_tools.core.config.registry import Key, Runtime, components, register

__all__ = [
    "Key",
    "Kind",
    "Part",
    "Runtime",
    "as_record",
    "build",
    "components",
    "load",
    "parse",
    "register",
    "save",
    "validate",
]
