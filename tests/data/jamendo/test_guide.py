"""The guide from the first command to the last, on a made-up data set in Jamendo's layout and with a tiny model."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stable_audio_tools
from stable_audio_tools.cli import data as data_commands
from stable_audio_tools.cli import generate, train
from stable_audio_tools.cli.train import unwrap
from stable_audio_tools.core.config import load, save
from stable_audio_tools.data.path_lists import read_path_list
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_weights

CONFIGS = Path(stable_audio_tools.__file__).parent / "configs"
WINDOW = 16_384


def small(name: str) -> dict[str, Any]:
    """The shipped config a few channels wide, and without the text encoder, whose weights are a download."""
    config = load(CONFIGS / "model_configs" / "txt2audio" / f"{name}.json")
    config["sample_size"] = WINDOW
    for part in ("encoder", "decoder"):
        config["model"]["pretransform"]["config"][part]["config"]["channels"] = 2
    conditioning, diffusion = config["model"]["conditioning"], config["model"]["diffusion"]
    conditioning["configs"] = [node for node in conditioning["configs"] if node["type"] != "t5"]
    conditioning["cond_dim"] = 16
    diffusion["cross_attention_cond_ids"].remove("prompt")
    diffusion["config"] |= {"embed_dim": 16, "depth": 1, "num_heads": 2, "cond_token_dim": 16, "global_cond_dim": 32}
    config["training"]["demo"]["enabled"] = False
    return config


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Weights to start from; what begins at zero would stop every gradient before it."""
    torch.manual_seed(0)
    model = create_model_from_config(small("jamendo_full"))
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    save_weights(model, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


@pytest.fixture
def data(mirror: Any, tmp_path: Path) -> Path:
    """Downloaded and cleaned, as the dataset config of the guide has it."""
    root = tmp_path / "dataset" / "small-5000"
    words = ["--audio-dir", str(root / "audio"), "--mirror", mirror.url, "--lists", mirror.url]
    assert data_commands.download([*words, "--target", "6", "--with-metadata"]) == 0
    shutil.copy(root / "audio" / "14" / "314.mp3", root / "audio" / "14" / "214.mp3")
    config = load(CONFIGS / "dataset_configs" / "local_training_custom.json")
    entry = config["datasets"][0]
    entry["path"] = str(root / "audio")
    entry["custom_metadata_module"] = str(
        Path(stable_audio_tools.__file__).parents[1] / entry["custom_metadata_module"]
    )
    out = tmp_path / "outputs" / "dac_dedup"
    config["exclude_paths_file"] = str(out / "exclude_paths.txt")
    save(config, tmp_path / "local_training_custom.json")
    flags = ["--dataset-config", str(tmp_path / "local_training_custom.json"), "--output-dir", str(out)]
    assert data_commands.dedup([*flags, "--codec", "spectral", "--keep", "first"]) == 0
    assert read_path_list(out / "exclude_paths.txt") == ["custom_audio:14/314.mp3"]
    return tmp_path / "local_training_custom.json"


@pytest.fixture
def fit(tmp_path: Path, data: Path, base: Path) -> Callable[..., Path]:
    """fit(train.main, "jamendo_full") -> the run folder."""

    def run(main: Callable[[list[str]], int], name: str) -> Path:
        save(small(name), tmp_path / f"{name}.json")
        words = ["--model-config", str(tmp_path / f"{name}.json"), "--dataset-config", str(data), "--name", name]
        words += ["--pretrained-ckpt-path", str(base), "--save-dir", str(tmp_path / "runs"), "--max-steps", "2"]
        words += ["--batch-size", "2", "--num-workers", "0", "--accelerator", "cpu", "--logger", "none"]
        assert main(words) == 0
        (folder,) = (tmp_path / "runs" / name).iterdir()
        return folder

    return run


def changed(before: Path, after: Path) -> set[str]:
    """Which parts of the model have other weights."""
    one, other = (torch.load(path, weights_only=True)["state_dict"] for path in (before, after))
    assert one.keys() == other.keys()
    names = {key for key, value in one.items() if not torch.equal(value, other[key])}
    return {".".join(key.split(".")[:3]) if key.startswith("pretransform") else key.split(".")[0] for key in names}


def unwrapped(name: str, folder: Path, tmp_path: Path) -> Path:
    words = ["--model-config", str(tmp_path / f"{name}.json"), "--ckpt-path", str(folder)]
    assert unwrap([*words, "--name", str(tmp_path / f"{name}_unwrap")]) == 0
    return next(tmp_path.glob(f"{name}_unwrap.*"))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("jamendo_full_encoder", {"model", "conditioner", "pretransform.model.encoder"}),
        ("jamendo_freeze_vae", {"model", "conditioner"}),
    ],
)
def test_from_download_to_audio(
    name: str, parts: set[str], fit: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    weights = unwrapped(name, fit(train.main, name), tmp_path)
    assert changed(base, weights) == parts
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("query_0000:\n  seconds_start: 0\n  seconds_total: 1\n")
    words = ["--model-config", str(tmp_path / f"{name}.json"), "--ckpt-path", str(weights), "--device", "cpu"]
    words += ["--cond-yaml-path", str(prompts), "--output-dir", str(tmp_path / "generated"), "--sample-steps", "2"]
    assert generate.main(words) == 0
    assert list((tmp_path / "generated").rglob("*.wav"))


def test_an_adapter_leaves_the_model_as_it_is(fit: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    before = base.read_bytes()
    folder = fit(train.train_lora, "jamendo_lora")
    adapters = sorted((folder / "adapters").rglob("*.safetensors"))
    assert adapters and all(path.stat().st_size < base.stat().st_size for path in adapters)
    assert base.read_bytes() == before
