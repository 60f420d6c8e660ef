"""Metadata of one clip for training: copy this file and name it as `custom_metadata_module` of a data set."""

from typing import Any


def get_custom_metadata(info: dict[str, Any], audio: Any) -> dict[str, Any]:
    """Conditions of the clip that `info` is about: its caption where it has one, else its path in the data set."""
    return {"prompt": info.get("prompt", info["relpath"])}
