"""Damaged audio files, dataset configs and metadata tables: each is read, or refused with a typed error."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.damage import damaged, damaged_bytes, damaged_text

from stable_audio_tools.core.config import Part
from stable_audio_tools.core.errors import AudioError, ConfigError, UserError
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.dataset import check_dataset_config
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.metadata import read_rows, read_sidecar

SEEDS = st.integers(0, 2**32)
CALM = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
CONFIGS: dict[str, dict[str, Any]] = {
    "audio_dir": {
        "datasets": [{"id": "a", "path": "clips", "metadata_path": "t.csv", "weight": 2.0}],
        "captions": {"rename": {"a": "b"}, "tags": ["genre"], "templates": ["{genre}"], "tag_dropout": 0.1},
        "min_length_sec": 1,
        "volume_norm": True,
        "volume_norm_param": [-16, 2],
    },
    "pre_encoded": {"datasets": [{"id": "a", "path": "latents"}], "latent_crop_length": 32, "random_crop": True},
    "wds": {"datasets": [{"id": "a", "path": "tars"}], "epoch_steps": 10, "captions": {"recipe": {"keep": 0.5}}},
    "huggingface": {"datasets": [{"id": "a", "path": "arrow", "split": "train"}], "seed": 1},
}


@cache
def encoded(suffix: str, folder: Path) -> bytes:
    path = folder / f"whole{suffix}"
    audio_io.write(path, 0.3 * torch.sin(torch.arange(8000) * 0.05).expand(2, -1), 16_000, comment="a")
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=CALM)
@given(seed=SEEDS)
def test_a_damaged_audio_file_is_read_or_refused(
    suffix: str, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"damaged{suffix}"
    path.write_bytes(damaged_bytes(encoded(suffix, folder), random.Random(seed)))
    try:
        about = audio_io.info(path)
        audio_io.check_end(path, about)
        audio_io.read(path, 100, 1000, 22_050)
        assert audio_io.read(path, 0, 200_000).samples.shape[0] == about.channels
    except AudioError as error:
        assert str(error).startswith(str(path))


@pytest.mark.parametrize("kind", CONFIGS)
@settings(max_examples=175, deadline=None, derandomize=True, suppress_health_check=CALM)
@given(seed=SEEDS)
def test_a_damaged_dataset_config_is_accepted_or_refused(kind: str, seed: int) -> None:
    config = damaged({"dataset_type": kind, **CONFIGS[kind]}, random.Random(seed))
    try:
        assert isinstance(check_dataset_config(config), Part)
    except ConfigError as error:
        assert all(problem.startswith("dataset") for problem in error.problems)


ROWS = [{"path": "a.wav", "prompt": "drums, loud", "bpm": 120}, {"path": "b/c.wav", "prompt": "rain", "bpm": 1.5}]
TABLES = {
    ".jsonl": "".join(f"{json.dumps(row)}\n" for row in ROWS),
    ".json": json.dumps(ROWS),
    ".csv": 'path,prompt,bpm\na.wav,"drums, loud",120\nb/c.wav,rain,1.5\n',
    ".tsv": "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\ntrack_1\ta\tb\t01/1.mp3\t3.5\tgenre---rock\n",
}


@pytest.mark.parametrize("suffix", TABLES)
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=CALM)
@given(seed=SEEDS)
def test_a_damaged_table_is_read_or_refused(suffix: str, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged_table{suffix}"
    path.write_bytes(damaged_text(TABLES[suffix], random.Random(seed)))
    try:
        assert all(isinstance(row, dict) for _, row in read_rows(path))
    except UserError as error:
        assert path.name in str(error)
    path.replace(beside := path.with_name("damaged_sidecar.json"))
    try:
        assert isinstance(read_sidecar(beside.with_suffix(".wav")), dict)
    except BadItem as error:
        assert "damaged_sidecar.json" in error.detail
