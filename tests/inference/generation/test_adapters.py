"""Adapters from Python and in batches: strengths, several at once, and what files say of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_adapters import small_adapter
from support.small_models import SmallModel, small_model

import stable_audio_tools
from stable_audio_tools.data.comments import read_comment
from stable_audio_tools.inference.batch.outputs import OutputFolder
from stable_audio_tools.inference.batch.plan import plan_batch
from stable_audio_tools.inference.batch.run import run_batch
from stable_audio_tools.inference.generation.request import GenerationRequest

ASKED: dict[str, Any] = {"sound": "rain", "seconds": 0.2, "seed": 3, "steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model("tiny_diffusion_cond", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def files(base: SmallModel) -> list[Path]:
    folder = base.config.parent
    return [small_adapter(*base, folder / f"{name}.safetensors", seed) for seed, name in enumerate(("one", "two"))]


def test_adapters_load_stack_switch_and_come_off(base: SmallModel, files: list[Path]) -> None:
    model = stable_audio_tools.load(*base, device="cpu")
    plain, weights = model.generate(**ASKED).audio, model.fingerprint
    model.load_lora(files[0], 0.5)
    alone = model.generate(**ASKED).audio
    model.load_lora(files[1])
    both = model.generate(**ASKED).audio
    assert list(model.adapters) == ["one", "two"]
    assert not torch.equal(plain, alone) and not torch.equal(alone, both)
    assert torch.equal(model.generate(**ASKED, lora={"two": 0}).audio, alone)
    assert torch.equal(model.generate(**ASKED, lora={"one": 0, "two": 0}).audio, plain)
    assert model.adapters["two"].strength == 1  # a call changes nothing for the next
    model.adapters["two"].enabled = False
    assert torch.equal(model.generate(**ASKED).audio, alone)
    assert [told["file"] for told in model.describe_adapters()] == ["one.safetensors"]
    model.unload_lora()
    assert torch.equal(model.generate(**ASKED).audio, plain)
    fresh = stable_audio_tools.load(*base, device="cpu", lora={files[0]: 0.5, files[1]: 1})
    assert torch.equal(fresh.generate(**ASKED).audio, both)
    assert fresh.fingerprint == weights  # which is the base's


def test_an_unknown_name_and_a_missing_file_are_told(base: SmallModel, files: list[Path]) -> None:
    model = stable_audio_tools.load(*base, device="cpu")
    with pytest.raises(ValueError, match="no adapter named 'one'; the model has none"):
        model.generate(**ASKED, lora={"one": 1})
    model.load_lora(files[0])
    with pytest.raises(ValueError, match="no adapter named 'on'; did you mean 'one'"):
        model.generate(**ASKED, lora={"on": 1})
    with pytest.raises(ValueError, match="no such file"):
        model.load_lora("absent.safetensors")


def test_files_of_a_batch_know_their_adapters(base: SmallModel, files: list[Path], tmp_path: Path) -> None:
    prompts = tmp_path / "p.yaml"
    prompts.write_text("rain: {sound: rain, seconds_total: 1}")
    common = GenerationRequest(steps=1, cfg_scale=1)

    def run(lora: Any) -> bool:
        model = stable_audio_tools.load(*base, device="cpu", lora=lora)
        told = []
        batches = plan_batch(prompts, model.facts, common)
        run_batch(model, batches, OutputFolder(tmp_path / "out"), lambda _, is_new: told.append(is_new))
        return told == [True]

    assert run({files[0]: 0.5})
    said = json.loads(read_comment(tmp_path / "out" / "rain_item-1.wav") or "")["adapters"]
    assert [(each["file"], each["strength"]) for each in said] == [("one.safetensors", 0.5)]
    assert json.loads((tmp_path / "out" / "manifest.jsonl").read_text())["adapters"] == said
    assert not run({files[0]: 0.5})  # complete, and as asked for
    assert run({files[0]: 0.6})
    assert run({files[1]: 0.6})
    assert run(None)  # without any, it is another piece
    assert not run(None)
