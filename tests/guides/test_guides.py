"""The guides, followed to the letter on models of the same shape, and what they promise."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile as sf
from support import docs_scratch as scratch
from support import docs_stand_ins as stand_ins
from support import small_clap, stand_in_models
from support.docs_pages import ROOT, blocks_of

from stable_audio_tools.core.config import load
from stable_audio_tools.models.conditioners import CLAPTextConditioner
from stable_audio_tools.models.factory import check_model_config


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`follow("stable_audio_2_0")`: carry out the page -> the folder that it was carried out in."""
    monkeypatch.setattr(stand_ins, "STAND_INS", {**stand_ins.STAND_INS, **stand_in_models.GUIDES})

    def carry_out(name: str) -> Path:
        clone = scratch.make_clone(tmp_path / "clone")
        names = {"__name__": "__page__"}
        with scratch.working_in(clone):
            for block in blocks_of(ROOT / "docs" / f"{name}.md"):
                try:
                    scratch.execute(block, names)
                except Exception as error:
                    raise AssertionError(f"{block.place}: {type(error).__name__}: {error}") from error
        return clone

    return carry_out


def test_stable_audio_2_0_from_scratch(follow: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLAPTextConditioner, "tokenizer", property(lambda _: small_clap.tokenizer()))
    clone = follow("stable_audio_2_0")
    with (clone / "outputs" / "reconstructed" / "metrics.csv").open() as table:
        assert len([row for row in csv.DictReader(table) if row["mrstft"]]) >= 5
    assert len(list((clone / "data" / "latents").rglob("*.npy"))) == 5
    assert list((clone / "runs" / "vae").glob("*/demos/*/*.wav")) and list((clone / "runs" / "dit").glob("*/demos/*/*"))
    for name in ("house/organ_item-1.wav", "piano_item-1.wav"):
        about = sf.info(clone / "outputs" / "generated" / name)
        assert (about.samplerate, about.channels) == (44100, 2)
    assert load(clone / "dit.json")["training"]["pre_encoded"] is True


def test_stable_audio_open_1_0(follow: Callable[[str], Path]) -> None:
    clone = follow("stable_audio_open")
    assert sf.info(clone / "rain.wav").frames == 22050
    lines = (clone / "outputs" / "generated" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 6 and len({json.loads(line)["seed"] for line in lines}) == 6
    assert list((clone / "runs" / "finetune").glob("*/checkpoints/*.ckpt"))


def test_fine_tuning_stable_audio_open_small(follow: Callable[[str], Path]) -> None:
    clone = follow("stable_audio_open_small")
    assert len(list((clone / "runs" / "finetune").glob("*/checkpoints/*.ckpt"))) == 1
    assert (clone / "models" / "finetuned.safetensors").is_file()
    assert sf.info(clone / "drums.wav").frames == 22050


@pytest.mark.parametrize("name", ["autoencoders/stable_audio_2_0_vae", "txt2audio/stable_audio_2_0"])
def test_the_scaled_models_have_the_shape_of_the_published_ones(name: str) -> None:
    """The same keys at the same places, and so the same code; only numbers and the place of T5 differ."""

    def shape(node: object) -> object:
        if isinstance(node, dict):
            return {key: shape(value) for key, value in node.items() if not key.startswith("demo")}
        if isinstance(node, list):
            return [shape(entry) for entry in node]
        return node if isinstance(node, str | bool) else type(node).__name__

    config = load(stand_in_models.CONFIGS / "model_configs" / f"{name}.json")
    assert shape(stand_in_models.scaled(config)) == shape(config)
    check_model_config(stand_in_models.scaled(config))
