"""`check` says what a config builds, or every mistake in one go."""

import json
from pathlib import Path
from typing import Any

import pytest

import stable_audio_tools
from stable_audio_tools.cli.main import main

CONFIGS = Path(stable_audio_tools.__file__).parent / "configs"
TINY = CONFIGS / "model_configs" / "autoencoders" / "tiny_autoencoder.json"
EVERY = sorted((CONFIGS / "model_configs").rglob("*.json"))


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(TINY.read_text())
    return loaded


def check(config: dict[str, Any], folder: Path, *more: str) -> int:
    path = folder / "model.json"
    path.write_text(json.dumps(config))
    return main(["check", str(path), *more])


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_every_shipped_config_passes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    parts = summary["parameters"]
    assert parts["total"] == sum(count for name, count in parts.items() if name != "total")


def test_the_summary_of_stable_audio_open(capsys: pytest.CaptureFixture[str]) -> None:
    path = CONFIGS / "model_configs" / "txt2audio" / "stable_audio_open_1_0.json"
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "model type: diffusion_cond" in printed
    assert "model: 1,056,828,544" in printed
    assert "latent rate: 21.53 Hz" in printed
    assert "47.55 s, 1024 latent frames" in printed


def test_four_mistakes_give_four_lines(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["sample_rat"] = 1
    config["model"]["encoder"]["config"]["use_snakee"] = True
    config["model"]["decoder"]["config"]["strides"] = [2, "4", 4, 8]
    config["model"]["bottleneck"]["type"] = "vea"
    assert check(config, tmp_path) == 2
    path = tmp_path / "model.json"
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"error: {path}: model.bottleneck.type: no bottleneck named 'vea'; did you mean 'vae'?",
        f"error: {path}: model.decoder.config.strides[1]: expected a whole number, got '4'",
        f"error: {path}: model.encoder.config.use_snakee: unknown key; did you mean 'use_snake'?",
        f"error: {path}: sample_rat: unknown key; did you mean 'sample_rate'?",
    ]


@pytest.mark.parametrize(
    ("place", "key", "value", "sentence"),
    [
        (("model",), "latent_dim", 17, "encoder.config.latent_dim"),
        (
            ("model",),
            "downsampling_ratio",
            100,
            "downsampling_ratio: is 100, but encoder.config.strides multiply to 256",
        ),
        ((), "sample_size", 100, "sample_size: is 100, but the model works in steps of 256 samples; use 256"),
    ],
)
def test_numbers_that_must_agree_are_named_together(
    place: tuple[str, ...],
    key: str,
    value: int,
    sentence: str,
    config: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    node = config
    for step in place:
        node = node[step]
    node[key] = value
    assert check(config, tmp_path) == 2
    assert sentence in capsys.readouterr().err


def test_a_window_between_two_steps_is_warned_about(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["sample_size"] = 1000
    assert check(config, tmp_path) == 0
    assert "works in steps of 256 samples; use 768 or 1024" in capsys.readouterr().err


def test_model_and_dataset_mistakes_come_together(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["model"]["io_channels"] = "2"
    (tmp_path / "data.json").write_text('{"dataset_type": "audio_dirr", "datasets": []}')
    assert check(config, tmp_path, str(tmp_path / "data.json")) == 2
    printed = capsys.readouterr().err
    assert "model.io_channels: expected a whole number" in printed
    assert "audio_dirr" in printed


def test_a_dataset_alone_and_before_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(tmp_path)}]}))
    assert main(["check", str(data)]) == 0
    assert capsys.readouterr().out == "dataset: audio_dir\n"
    assert main(["check", str(data), str(TINY)]) == 0
    assert capsys.readouterr().out.startswith("model type: autoencoder")


def test_files_that_do_not_exist_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.wav").touch()
    data = {
        "dataset_type": "audio_dir",
        "exclude_paths_file": "/absent/list.txt",
        "datasets": [
            {"id": "a", "path": "/absent/a"},
            {"id": "b", "path": str(tmp_path / "file.wav")},
            {"id": "c", "path": str(tmp_path), "metadata_path": "/absent/table.csv"},
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    assert main(["check", str(tmp_path / "data.json")]) == 2
    errors = [line.partition("data.json: ")[2] for line in capsys.readouterr().err.splitlines()]
    assert errors == [
        "dataset.exclude_paths_file: no such file: /absent/list.txt",
        "dataset.datasets[0].path: no such folder: /absent/a",
        f"dataset.datasets[1].path: is a file, and a folder is needed: {tmp_path / 'file.wav'}",
        "dataset.datasets[2].metadata_path: no such file: /absent/table.csv",
    ]


def test_the_training_section_is_checked(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["training"] |= {"optimizer": "adamw", "batch_size": 4, "grad_accum_steps": 2}
    assert check(config, tmp_path) == 2
    printed = capsys.readouterr().err
    for key in ("optimizer", "batch_size", "grad_accum_steps"):
        assert f"training.{key}: unknown key" in printed


def test_channels_of_data_and_model_must_agree(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["audio_channels"] = 1
    assert check(config, tmp_path) == 2
    assert "audio_channels: is 1, but the model takes audio of 2 channels; use 2" in capsys.readouterr().err


def test_latents_for_a_model_that_encodes_audio_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = next((CONFIGS / "model_configs").rglob("tiny_diffusion_cond.json"))
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"dataset_type": "pre_encoded", "datasets": [{"id": "a", "path": str(tmp_path)}]}))
    assert main(["check", str(model), str(data)]) == 2
    assert "training.pre_encoded: is false, but" in capsys.readouterr().err


def test_memory_of_small_models_is_not_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TINY)]) == 0
    assert "MiB" in capsys.readouterr().out


def test_comments_are_refused_with_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.json").write_text('{\n  "model_type": "lm" // why\n}')
    assert main(["check", str(tmp_path / "model.json")]) == 2
    assert "model.json:2:22: JSON has no comments" in capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "torch " in capsys.readouterr().out
