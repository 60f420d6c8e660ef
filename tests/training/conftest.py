"""Runs small enough to train within a test: a few clips, narrowed models, one process."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.small_training import training_config

from stable_audio_tools.cli import train
from stable_audio_tools.data.example_clips import write_example_clips

COMMON = ("--batch-size", "2", "--num-workers", "0", "--log-every", "1", "--logger", "csv", "--accelerator", "cpu")

WriteConfig = Callable[..., Path]
Train = Callable[..., Path]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips, two of each class, and the config that reads them."""
    clips = tmp_path_factory.mktemp("clips")
    write_example_clips(clips, per_class=2)
    path = clips / "dataset.json"
    path.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": str(clips)}]}))
    return path


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    """`write_config("tiny_lm", change)`: the narrowed config in a file, after `change(config)`."""

    def write(name: str, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
        config = training_config(name)
        if change is not None:
            change(config)
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config))
        return path

    return write


@pytest.fixture
def run_training(tmp_path: Path, dataset: Path) -> Train:
    """`run_training(config, "--max-steps", "4")` -> the newest run folder."""

    def run(config: Path, *flags: str, status: int = 0, name: str = "run") -> Path:
        words = ["--model-config", str(config), "--dataset-config", str(dataset), "--save-dir", str(tmp_path / "runs")]
        assert train.main([*words, "--name", name, *COMMON, *flags]) == status
        folders = sorted((tmp_path / "runs" / name).glob("*"), key=lambda path: path.stat().st_mtime_ns)
        return folders[-1] if folders else tmp_path

    return run


def newest_checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def losses_of() -> Callable[[Path], list[float]]:
    """The training losses that a run logged, in order."""

    def read(folder: Path) -> list[float]:
        with (folder / "metrics" / "metrics.csv").open() as file:
            return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]

    return read


@pytest.fixture
def checkpoint_of() -> Callable[[Path], Path]:
    return newest_checkpoint
