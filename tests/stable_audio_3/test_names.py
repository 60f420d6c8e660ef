"""What stable-audio-3's classes add around generation: names, lists per item, files that are there already."""

from pathlib import Path
from typing import Any

import pytest

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.stable_audio_3 import AutoencoderModel, StableAudioModel
from stable_audio_tools.stable_audio_3.model import _metadata
from stable_audio_tools.stable_audio_3.model_configs import ae_models


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="no model named 'medum'; did you mean 'medium'"):
        StableAudioModel.from_pretrained("medum", device="cpu")
    with pytest.raises(UserError, match="no model named 'same-x'"):
        AutoencoderModel.from_pretrained("same-x", device="cpu")


def test_prompts_and_durations_are_one_for_all_or_one_each() -> None:
    assert _metadata("a", [1, 2], 2, "prompt") == [
        {"prompt": "a", "seconds_total": 1},
        {"prompt": "a", "seconds_total": 2},
    ]
    with pytest.raises(ValueError, match="prompt has 1 entries for batch_size 2"):
        _metadata(["a"], 3, 2, "prompt")


def test_an_autoencoder_is_taken_from_a_model_that_was_downloaded(tmp_path: Path, monkeypatch: Any) -> None:
    files = {name: tmp_path / name for name in ("model_config.json", "model.safetensors")}
    for file in files.values():
        file.touch()

    def cached(repository: str, name: str) -> str | None:
        return str(files[name]) if repository.endswith("small-sfx") else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert ae_models["same-s"].resolve() == tuple(map(str, files.values()))
