"""`lora info`, `convert`, `merge` and `extract`."""

from pathlib import Path

import pytest
import torch
from support.small_models import SmallModel, small_model

from stable_audio_tools.cli.main import main
from stable_audio_tools.core.config import load
from stable_audio_tools.models.lora import LoraConfig, attach_lora, read_lora, save_lora
from stable_audio_tools.models.pretrained import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model("tiny_diffusion_cond", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapter(model: SmallModel) -> Path:
    """A file with an adapter that changes the transformer."""
    loaded = load_model(load(model.config), model.weights)
    attached = attach_lora(loaded, LoraConfig(rank=2, alpha=4.0, include=["model.model.transformer"]), seed=0)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(0.1 * torch.cos(torch.arange(parameter.numel())).view(parameter.shape))
    facts = {"base_name": "tiny", "trigger": "bells", "step": 12}
    return save_lora(attached, model.weights.with_name("bells.safetensors"), metadata=facts, model=loaded)


def test_info_describes(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", "info", str(adapter)]) == 0
    printed = capsys.readouterr().out
    assert "bells.safetensors: an adapter of type lora in this package's format" in printed
    assert "rank 2, alpha 4" in printed
    assert "trigger: bells" in printed and "step: 12" in printed
    assert "model.model.transformer.layers.0." in printed


def test_convert_there_and_back(model: SmallModel, adapter: Path, tmp_path: Path) -> None:
    for format_name, name in (("loraw", "a.ckpt"), ("sa3", "a.safetensors"), ("comfyui", "b.safetensors")):
        assert main(["lora", "convert", str(adapter), str(tmp_path / name), "--to", format_name]) == 0
        flags = ["--model-config", str(model.config)] if format_name == "comfyui" else []
        assert main(["lora", "convert", str(tmp_path / name), str(tmp_path / "back.safetensors"), *flags]) == 0
        ours, back = read_lora(adapter), read_lora(tmp_path / "back.safetensors")
        assert set(back.layers) == set(ours.layers)
        for path, held in ours.layers.items():
            change = ours.scale(path) * held["lora_B"] @ held["lora_A"]
            found = back.scale(path) * back.layers[path]["lora_B"] @ back.layers[path]["lora_A"]
            torch.testing.assert_close(found, change)


def test_merge_writes_a_model_that_needs_no_adapter(model: SmallModel, adapter: Path, tmp_path: Path) -> None:
    target = tmp_path / "merged.safetensors"
    flags = ["--ckpt-path", str(model.weights), "--lora", f"{adapter}:0.5", "--lora", str(adapter)]
    assert main(["lora", "merge", str(target), *flags]) == 0
    merged, base = load_model(None, target), load_model(None, model.weights)
    lora = read_lora(adapter)
    for path, held in lora.layers.items():
        before, after = base.get_submodule(path).weight, merged.get_submodule(path).weight
        torch.testing.assert_close(after, before + 1.5 * 2 * (held["lora_B"] @ held["lora_A"]).view(before.shape))


def test_extract_finds_the_adapter_again(
    model: SmallModel, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tmp_path / "tuned.safetensors"
    main(["lora", "merge", str(tuned), "--ckpt-path", str(model.weights), "--lora", str(adapter)])
    found = tmp_path / "found.safetensors"
    flags = ["--base", str(model.weights), "--tuned", str(tuned), "--rank", "2", "--half"]
    assert main(["lora", "extract", str(found), *flags]) == 0
    assert "100.0% of their change kept" in capsys.readouterr().out
    ours, theirs = read_lora(adapter), read_lora(found)
    assert set(theirs.layers) == set(ours.layers)
    for path, held in theirs.layers.items():
        assert held["lora_A"].dtype == torch.float16
        change = 2 * ours.layers[path]["lora_B"] @ ours.layers[path]["lora_A"]
        torch.testing.assert_close(held["lora_B"].float() @ held["lora_A"].float(), change, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["info", "{weights}"], "error: {weights}: not an adapter file: none of its"),
        (["info", "{absent}"], "error: {absent}: no such file or folder"),
        (["convert", "{adapter}", "{absent}.bin"], "error: {absent}.bin: unknown suffix '.bin'"),
        (["merge", "{absent}.ckpt", "--ckpt-path", "{weights}", "--lora", "{weights}"], "not an adapter file"),
        (["extract", "{absent}.ckpt", "--base", "{weights}", "--tuned", "{weights}"], "error: none of the"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_file(
    words: list[str],
    sentence: str,
    model: SmallModel,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"weights": model.weights, "adapter": adapter, "absent": tmp_path / "absent"}
    assert main(["lora", *(word.format(**names) for word in words)]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert sentence.format(**names) in printed[-1]
    assert not list(tmp_path.iterdir())


def test_adapters_are_combined(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "both.safetensors"
    chosen = ["--lora", f"{adapter}:0.5", "--lora", f"{adapter}:-0.25"]
    assert main(["lora", "combine", str(target), *chosen, "--rank", "2"]) == 0
    assert "layers from 2 adapters, 100.0% of the combined change kept" in capsys.readouterr().out
    ours, both = read_lora(adapter), read_lora(target)
    for path, held in ours.layers.items():
        found = both.layers[path]["lora_B"] @ both.layers[path]["lora_A"]
        torch.testing.assert_close(found, 0.25 * 2 * held["lora_B"] @ held["lora_A"], rtol=1e-3, atol=1e-4)
    assert main(["lora", "combine", str(target), *chosen, "--method", "ties", "--density", "0.3", "--half"]) == 0
    assert all(held["lora_A"].dtype == torch.float16 for held in read_lora(target).layers.values())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lora", "a"], "--lora: give at least two adapters, got 1"),
        (
            ["--lora", "a", "--lora", "b", "--density", "0.5"],
            "--density: has no meaning for --method sum; leave it out",
        ),
        (["--lora", "a", "--lora", "b", "--model-config", "m.json"], "--model-config: goes with --base"),
    ],
)
def test_combine_refuses(flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", "combine", str(tmp_path / "x.safetensors"), *flags]) == 2
    assert sentence in capsys.readouterr().err
