"""Every shipped config builds offline, agrees with itself, and its training section is understood."""

import json
import runpy
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

import stable_audio_tools
from stable_audio_tools.core.config import components, load
from stable_audio_tools.models.factory import check_model_config, create_model_from_config

ROOT = Path(stable_audio_tools.__file__).parent / "configs"
MODELS = sorted((ROOT / "model_configs").rglob("*.json"))
TINY = [path for path in MODELS if path.stem.startswith("tiny_")]
DATASETS = sorted((ROOT / "dataset_configs").rglob("*.json"))
PUBLISHED = {
    "autoencoders/dac_2048_32_vae.json",
    "autoencoders/encodec_musicgen_rvq.json",
    "autoencoders/stable_audio_1_0_vae.json",
    "autoencoders/stable_audio_2_0_vae.json",
    "dance_diffusion/dance_diffusion_base.json",
    "dance_diffusion/dance_diffusion_base_16k.json",
    "dance_diffusion/dance_diffusion_base_44k.json",
    "dance_diffusion/dance_diffusion_large.json",
    "txt2audio/stable_audio_1_0.json",
    "txt2audio/stable_audio_2_0.json",
    "txt2audio/stable_audio_open_1_0.json",
}


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_published_names_are_there() -> None:
    assert {path.relative_to(ROOT / "model_configs").as_posix() for path in MODELS} >= PUBLISHED
    assert {path.name for path in DATASETS} >= {"local_training_example.json", "s3_wds_example.json"}


def test_every_model_type_has_a_tiny_config() -> None:
    needs_a_text_encoder = {"clap"}  # which would have to be downloaded
    assert {load(path)["model_type"] for path in TINY} == set(components("model")) - needs_a_text_encoder


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_it_builds_offline_without_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with torch.device("meta"):
        model = create_model_from_config(load(path))
    assert sum(p.numel() for p in model.parameters()) > 0
    assert not caplog.records, caplog.text


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_its_window_is_whole_for_the_model(path: Path) -> None:
    top, part = check_model_config(load(path))
    assert top.sample_size is not None
    assert top.sample_size % part.facts.get("min_input_length", 1) == 0


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_its_training_section_is_understood(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from stable_audio_tools.training.factory import check_training_config

    section = check_training_config(load(path))
    assert section.demo is not None
    assert not caplog.records, caplog.text


@pytest.mark.parametrize("path", TINY, ids=name_of)
def test_tiny_models_are_tiny(path: Path) -> None:
    config = load(path)
    model = create_model_from_config(config)
    assert sum(p.numel() for p in model.parameters()) < 3_000_000
    assert config["sample_size"] <= 65536


@pytest.mark.parametrize("path", [*MODELS, *DATASETS], ids=name_of)
def test_the_file_is_plain_json_without_repeated_keys(path: Path) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names)), names
        return dict(pairs)

    text = path.read_text(encoding="utf-8")
    assert json.loads(text, object_pairs_hook=unique)
    assert text.endswith("}\n")


def test_second_stages_hold_the_first_stage_as_it_is_trained() -> None:
    """So that weights of the one load into the other."""
    folder = ROOT / "model_configs"
    for second, first in {
        "txt2audio/tiny_diffusion_cond.json": "autoencoders/tiny_autoencoder.json",
        "txt2audio/tiny_diffusion_cond_inpaint.json": "autoencoders/tiny_autoencoder.json",
        "txt2audio/tiny_stable_audio_3.json": "autoencoders/tiny_same.json",
        "lm/tiny_lm.json": "autoencoders/tiny_codec.json",
        "txt2audio/stable_audio_1_0.json": "autoencoders/stable_audio_1_0_vae.json",
        "txt2audio/stable_audio_2_0.json": "autoencoders/stable_audio_2_0_vae.json",
        "txt2audio/stable_audio_open_1_0.json": "autoencoders/stable_audio_2_0_vae.json",
    }.items():
        assert load(folder / second)["model"]["pretransform"]["config"] == load(folder / first)["model"], second


def test_the_example_of_custom_metadata_gives_a_prompt() -> None:
    module = runpy.run_path(str(ROOT / "dataset_configs/custom_metadata/custom_md_example.py"))
    get_custom_metadata = module["get_custom_metadata"]
    assert get_custom_metadata({"relpath": "drums/a.wav"}, None) == {"prompt": "drums/a.wav"}
    assert get_custom_metadata({"relpath": "a.wav", "prompt": "slow drums"}, None) == {"prompt": "slow drums"}
