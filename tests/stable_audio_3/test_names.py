"""What stable-audio-3's classes add around generation: names, lists per item, files that are there already."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.next_cases import STEADY, build, diffusion

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.inference.batch.run import describe
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.request import GenerationRequest
from stable_audio_tools.models.lora import add_lora, get_lora_state_dict, save_lora_safetensors
from stable_audio_tools.models.lora.parametrization import layer_config
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


def test_adapters_of_files_change_the_output_by_their_strength(tmp_path: Path) -> None:
    config = diffusion({**STEADY, "local_add_cond_dim": None})
    donor = build(config)
    add_lora(donor.model, layer_config(2, 2, "lora"))
    with torch.no_grad():
        state = {name: torch.randn_like(value) for name, value in get_lora_state_dict(donor.model).items()}
    save_lora_safetensors(state, {"rank": 2, "alpha": 2}, tmp_path / "loud.safetensors")
    player = StableAudioModel(build(config), config, "cpu", False)
    x, t = torch.randn(1, 8, 16), torch.tensor([0.5])
    with torch.no_grad():
        cond = player.model.conditioner([{"mood": "calm", "seconds_total": 0.25}], "cpu")
        bare = player.model(x, t, cond=cond)
        assert player.load_lora([tmp_path / "loud.safetensors"]) == ["loud"]
        assert not torch.allclose(player.model(x, t, cond=cond), bare, atol=1e-3)
        player.set_lora_strength(0.0)
        torch.testing.assert_close(player.model(x, t, cond=cond), bare)


def test_manifests_record_the_generation_whose_defaults_hold() -> None:
    recorded = []
    for version in ("0.0.19", "0.0.20"):
        config = diffusion(STEADY, sampling_version=version)
        request = GenerationRequest(conditions={"mood": "calm", "seconds_total": 0.25})
        recorded.append(describe(AudioModel(build(config), config, "cpu"), request).get("sampling_version"))
    assert recorded == [None, "0.0.20"]
