"""Encodings from the data or from a file by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.models.conditioners.precomputed import PrecomputedConditioner


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"rain": torch.ones(4), "slow drums": torch.arange(8.0).reshape(2, 4)}, tmp_path / "e.safetensors")
    return tmp_path / "e.safetensors"


def test_names_and_tensors(file: Path) -> None:
    conditioner = PrecomputedConditioner(4, 4, str(file), max_length=3)
    tokens, mask = conditioner(["rain", "slow drums", torch.full((4,), 2.0), np.full((2, 4), 3.0)])
    assert tokens.shape == (4, 3, 4)
    assert mask.sum(1).tolist() == [1, 2, 1, 2]
    assert tokens[0].tolist() == [[1] * 4, [0] * 4, [0] * 4]
    assert tokens[1, 1].tolist() == [4, 5, 6, 7]
    assert tokens[3, 1].tolist() == [3] * 4


def test_a_projection_leaves_nothing_behind_the_mask(file: Path) -> None:
    conditioner = PrecomputedConditioner(4, 6, str(file), max_length=2)
    tokens, mask = conditioner(["rain"])
    assert tokens.shape == (1, 2, 6)
    assert not tokens[~mask].any()
    assert not any(name.startswith("_") or "rain" in name for name in conditioner.state_dict())


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", rain=np.ones(4, dtype=np.float32))
    assert PrecomputedConditioner(4, 4, str(tmp_path / "e.npz"))(["rain"]).tensor.sum() == 4


def test_what_is_wrong_is_said(file: Path, tmp_path: Path) -> None:
    conditioner = PrecomputedConditioner(4, 4, str(file))
    with pytest.raises(ValueError, match="holds no encoding of 'rian'; did you mean 'rain'"):
        conditioner(["rian"])
    with pytest.raises(ValueError, match=r"is shaped \(1, 3\), and the conditioner takes \(4,\) or \(tokens, 4\)"):
        conditioner([torch.ones(3)])
    with pytest.raises(ValueError, match="'slow drums' has 2 tokens, and max_length of the conditioner is 1"):
        conditioner(["slow drums"])
    with pytest.raises(ValueError, match="the name 'rain', and the conditioner has no path"):
        PrecomputedConditioner(4, 4)(["rain"])
    with pytest.raises(UserError, match="no such file of encodings"):
        PrecomputedConditioner(4, 4, str(tmp_path / "no.npz"))(["rain"])
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match=r"bad.safetensors: cannot be read"):
        PrecomputedConditioner(4, 4, str(tmp_path / "bad.safetensors"))(["rain"])
