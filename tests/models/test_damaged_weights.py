"""Damaged weight files: each is read, or refused with a CheckpointError that names the file; no code in it runs."""

import random
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.damage import damaged_bytes

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.utils import load_ckpt_state_dict

WEIGHTS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.bias": torch.ones(3, dtype=torch.float16)}


@cache
def stored(suffix: str, folder: Path) -> bytes:
    path = folder / f"whole{suffix}"
    if suffix == ".safetensors":
        save_file(WEIGHTS, path, metadata={"format": "pt"})
    else:
        torch.save({"state_dict": WEIGHTS}, path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused(suffix: str, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"damaged{suffix}"
    path.write_bytes(damaged_bytes(stored(suffix, folder), random.Random(seed)))
    try:
        weights = load_ckpt_state_dict(str(path))
        assert all(isinstance(value, torch.Tensor) for value in weights.values())
    except CheckpointError as error:
        assert path.name in str(error)
