"""Folders of models in formats of other packages, next to our own of `model_config.json` and weights.

A format is an object of the subject that it belongs to. It is named here by its path, and imported for the first folder
that holds its index.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import nn


class FolderFormat(Protocol):
    """Reads the folders of a format."""

    index_name: str  # the file that marks such a folder

    def file_patterns(self, suffix: Literal["safetensors", "bin"]) -> list[str]:
        """Patterns of the files that a model consists of, in a repository that may hold more."""
        ...

    def missing_file(self, folder: str | Path) -> str | None:
        """The first file that the folder's index names and that does not exist."""
        ...

    def read_config(self, folder: str | Path) -> dict[str, Any]:
        """The model config that the folder stands for, without its weights."""
        ...

    def load(self, folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
        """The model in eval mode, and its config."""
        ...


_FORMATS = {"model_index.json": "stable_audio_tools.mel.pipeline_folders:PIPELINES"}
INDEX_NAMES = tuple(_FORMATS)


def format_of_index(index_name: str) -> FolderFormat:
    """Return the format whose folders hold a file of that name."""
    module, _, name = _FORMATS[index_name].partition(":")
    found: FolderFormat = getattr(import_module(module), name)
    return found


def format_of_folder(folder: Path) -> FolderFormat | None:
    """Return the format of a folder; None for a folder without an index."""
    index = next((name for name in INDEX_NAMES if (folder / name).is_file()), None)
    return None if index is None else format_of_index(index)
