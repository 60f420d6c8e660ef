"""One way out: whole or not at all, with config and provenance."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from stable_audio_tools import __version__
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints import load_into, open_weights, save_weights

CONFIG = {"model_type": "autoencoder", "model": {"latent_dim": 4}}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_round_trip_with_config_and_provenance(suffix: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    path = save_weights(model, tmp_path / f"model{suffix}", model_config=CONFIG, provenance={"step": 12})
    stored = open_weights(path)
    assert stored.model_config == CONFIG
    assert stored.provenance == {"stable_audio_tools": __version__, "step": 12}
    assert all(torch.equal(stored.tensors[name], value) for name, value in model.state_dict().items())
    assert {name: value.dtype for name, value in stored.tensors.items()} == {
        name: value.dtype for name, value in model.state_dict().items()
    }
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files_are_what_the_world_expects(tmp_path: Path) -> None:
    save_weights(nn.Linear(2, 2), tmp_path / "a.ckpt", model_config=CONFIG)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert set(content["state_dict"]) == {"weight", "bias"} and content["model_config"] == CONFIG
    save_weights(nn.Linear(2, 2), tmp_path / "a.safetensors", model_config=CONFIG)
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        assert json.loads(file.metadata()["model_config"]) == CONFIG
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_shared_and_strided_tensors_are_written_under_every_name(suffix: str, tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    state = {"a": table, "b": table, "row": table[1], "transposed": table.T, "empty": torch.zeros(0, 3)}
    stored = open_weights(save_weights(state, tmp_path / f"model{suffix}")).tensors
    assert all(torch.equal(stored[name], value) for name, value in state.items())
    assert load_into(Tied(), save_weights(Tied(), tmp_path / f"tied{suffix}")).complete


def test_a_slice_of_a_large_tensor_writes_only_itself(tmp_path: Path) -> None:
    path = save_weights({"a": torch.zeros(10**6)[:10]}, tmp_path / "model.ckpt")
    assert path.stat().st_size < 10_000


def test_conversion_spares_whole_numbers(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "n": torch.tensor(3)}
    stored = open_weights(save_weights(state, tmp_path / "m.safetensors", dtype=torch.float16)).tensors
    assert stored["a"].dtype == torch.float16 and stored["n"].dtype == torch.int64


def test_a_mapped_file_can_be_written_over_itself(tmp_path: Path) -> None:
    path = save_weights({"a": torch.arange(1000.0)}, tmp_path / "m.safetensors")
    save_weights(open_weights(path).tensors, path, model_config=CONFIG)
    assert torch.equal(open_weights(path).tensors["a"], torch.arange(1000.0))


def test_what_cannot_be_saved_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"unknown suffix '\.npz'; weights are written as \.safetensors or"):
        save_weights({}, tmp_path / "m.npz")
    with pytest.raises(CheckpointError, match=r"weight has no values yet \(meta device\)"):
        save_weights(nn.Linear(2, 2, device="meta"), tmp_path / "m.ckpt")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_full_disk_leaves_the_old_file_whole(suffix: str, tmp_path: Path) -> None:
    """The limit on file size makes a write fail half way, as a full disk does."""
    path = save_weights({"a": torch.ones(10)}, tmp_path / f"model{suffix}")
    old = path.read_bytes()
    script = f"""
        import resource, signal, sys, torch
        from stable_audio_tools.core.errors import CheckpointError
        from stable_audio_tools.models.checkpoints import save_weights
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        try:
            save_weights({{"a": torch.ones(10**6)}}, {str(path)!r})
        except CheckpointError as error:
            sys.exit(0 if "the old file is unchanged" in str(error) else 3)
        sys.exit(4)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == 0
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_kill_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = save_weights({"a": torch.ones(10)}, tmp_path / "model.safetensors")
    old = path.read_bytes()
    script = f"""
        import torch
        from stable_audio_tools.models.checkpoints import save_weights
        print("ready", flush=True)
        while True:
            save_weights({{"a": torch.ones(10**7)}}, {str(tmp_path / "other.safetensors")!r})
            save_weights({{"a": torch.ones(10**7)}}, {str(path)!r})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    content = path.read_bytes()
    assert content == old or open_weights(path, verify=True).tensors["a"].shape == (10**7,)
