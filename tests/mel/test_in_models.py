"""Mel bands are channels, so what the toolkit does with latents it does with them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
import torch
from torch import Tensor

from stable_audio_tools.cli.mel import images as audio_to_images
from stable_audio_tools.core.config import load
from stable_audio_tools.core.seeds import seed_everything
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training import create_training_wrapper_from_config

CONFIGS = Path(__file__).parents[2] / "stable_audio_tools" / "configs" / "model_configs"
RATE, HOP, FRAMES, BANDS = 22050, 128, 32, 16
MEL = {"variant": "db_image", "n_fft": 512, "hop_length": HOP, "n_mels": BANDS}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The shipped tiny inpainting model, on a mel spectrogram in place of an autoencoder's latents."""
    made = copy.deepcopy(load(CONFIGS / "txt2audio" / "tiny_diffusion_cond_inpaint.json"))
    made |= {"sample_size": FRAMES * HOP, "audio_channels": 1}
    vocoder = {"type": "griffin_lim", "config": {"n_iter": 2}}
    made["model"]["pretransform"] = {"type": "mel", "config": {**MEL, "vocoder": vocoder}}
    made["model"]["io_channels"] = BANDS
    small = {"io_channels": BANDS, "input_concat_dim": BANDS + 1, "embed_dim": 32, "depth": 1, "num_heads": 2}
    made["model"]["diffusion"]["config"] |= small
    return made


@pytest.fixture(scope="module")
def model(config: dict[str, Any]) -> AudioModel:
    torch.manual_seed(0)
    return AudioModel(create_model_from_config(config).eval(), config, "cpu")


def sine() -> Tensor:
    return 0.3 * torch.sin(torch.arange(FRAMES * HOP) * 0.05)[None]


def test_a_model_makes_as_many_samples_as_asked(model: AudioModel) -> None:
    made = model.generate(conditions={"sound": "rain", "seconds_total": 1}, seconds=0.1, steps=2, seed=0, num_samples=2)
    assert made.audio.shape == (2, 1, round(0.1 * RATE))
    assert torch.isfinite(made.audio).all()


def test_inpainting_keeps_the_kept_region_to_the_bit(model: AudioModel) -> None:
    begin, end = 0.05, 0.1
    made = model.generate(
        conditions={"sound": "rain", "seconds_total": 1},
        inpaint_audio=(RATE, sine()),
        inpaint=[(begin, end)],
        steps=2,
        seed=0,
        keep_exact=True,
        crossfade_seconds=0.0,
    ).audio[0]
    margin = 2 * HOP
    first, last = round(begin * RATE), round(end * RATE)
    assert torch.equal(made[:, : first - margin], sine()[:, : first - margin])
    assert torch.equal(made[:, last + margin :], sine()[:, last + margin :])
    assert not torch.allclose(
        made[:, first + margin : last - margin], sine()[:, first + margin : last - margin], atol=0.01
    )


def test_audio_is_varied(model: AudioModel) -> None:
    asked = {"conditions": {"sound": "rain", "seconds_total": 1}, "steps": 2, "seed": 0}
    made = model.generate(init_audio=(RATE, sine()), init_noise_level=0.01, **asked).audio  # type: ignore[arg-type]
    other = model.generate(**asked).audio  # type: ignore[arg-type]
    assert made.shape == other.shape == (1, 1, FRAMES * HOP)
    assert not torch.allclose(made, other, atol=1e-3)


def test_training_on_audio_and_on_the_latents_of_the_command_is_the_same(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audio").mkdir()
    sf.write(tmp_path / "audio" / "a.wav", sine()[0].numpy(), RATE, subtype="FLOAT")
    held = tmp_path / "model.json"
    held.write_text(json.dumps(config))
    flags = ["--input_dir", tmp_path / "audio", "--output_dir", tmp_path / "mel", "--resolution", str(FRAMES)]
    assert audio_to_images([*map(str, flags), "--model-config", str(held), "--num-workers", "0"]) == 0
    entry = {"id": "mel", "path": str(tmp_path / "mel")}
    loader = create_dataloader_from_config(
        {"dataset_type": "pre_encoded", "datasets": [entry]}, 1, FRAMES, RATE, num_workers=0
    )
    latents, infos = next(iter(loader))
    about = {**infos[0], "sound": "rain"}
    losses = []
    for pre_encoded, clip in ((True, latents), (False, sine()[None])):
        training = {**config, "training": {**config["training"], "pre_encoded": pre_encoded}}
        torch.manual_seed(0)
        model = create_model_from_config(training)
        wrapper = create_training_wrapper_from_config(training, model)
        monkeypatch.setattr(wrapper, "log_terms", lambda terms: None)
        monkeypatch.setattr(wrapper, "learning_rate", lambda: 0.0)
        seed_everything(1)
        mask = torch.ones(FRAMES if pre_encoded else FRAMES * HOP)
        losses.append(wrapper.training_step((clip, [{**about, "padding_mask": mask}]), 0).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
