"""Damaged, forged and malicious files: one kind of error, no code run, no memory for what is not there."""

import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints import load_into, open_weights, save_weights

STATE = {
    "encoder.weight": torch.arange(24.0).reshape(4, 6),
    "encoder.bias": torch.arange(4.0).half(),
    "steps": torch.tensor(3),
}
CONFIG = {"model_type": "autoencoder", "sample_rate": 44100}


@cache
def intact(kind: str) -> bytes:
    with TemporaryDirectory() as folder:
        if kind == "legacy":
            path = Path(folder) / "model.pt"
            torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=False)
        else:
            path = save_weights(STATE, Path(folder) / f"model.{kind}", model_config=CONFIG)
        return path.read_bytes()


def outcome(content: bytes, suffix: str) -> dict[str, Tensor] | str:
    """What was read, or the message."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"model.{suffix}"
        path.write_bytes(content)
        try:
            return {name: value.clone() for name, value in open_weights(path).tensors.items()}
        except CheckpointError as error:
            return str(error)


def same(read: dict[str, Tensor]) -> bool:
    return set(read) == set(STATE) and all(
        torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in STATE.items()
    )


MUTATIONS = st.tuples(
    st.sampled_from(["safetensors", "ckpt", "legacy"]),
    st.sampled_from(["cut", "flip", "insert", "zeros"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 7),
    st.binary(min_size=1, max_size=40),
)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(MUTATIONS)
def test_damaged_files_end_in_one_kind_of_error(case: tuple[str, str, float, int, bytes]) -> None:
    """Or the damage hit padding and every value is as it was. The legacy format has no checksums: values may differ."""
    kind, how, where, bit, noise = case
    content = bytearray(intact(kind))
    place = int(where * len(content))
    if how == "cut":
        del content[place:]
    elif how == "flip":
        content[place] ^= 1 << bit
    elif how == "insert":
        content[place:place] = noise
    else:
        content[place : place + len(noise)] = bytes(len(noise))
    read = outcome(bytes(content), kind)
    if isinstance(read, str):
        assert "model." in read and len(read) < 600
    elif kind == "legacy":
        assert sum(value.numel() for value in read.values()) * 8 <= len(content)
    else:
        assert same(read), "damage went unnoticed"


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(
        [
            b"",
            b"PK\x03\x04",
            b"\x80\x02",
            b"\x80\x04\x95",
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
            b"\x10" + b"\0" * 7 + b"{",
        ]
    ),
    st.binary(max_size=300),
    st.sampled_from(["safetensors", "ckpt", "pt", "index.json"]),
)
def test_foreign_files_end_in_one_kind_of_error(magic: bytes, noise: bytes, suffix: str) -> None:
    assert isinstance(outcome(magic + noise, suffix), str)


class RunsCode:
    """What an attacker would pickle."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def zipped(evil: object, path: Path) -> None:
    torch.save({"state_dict": STATE, "x": evil}, path)


def legacy(evil: object, path: Path) -> None:
    torch.save({"state_dict": STATE, "x": evil}, path, _use_new_zipfile_serialization=False)


def plain(evil: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(evil, protocol=2))


@pytest.mark.parametrize("write", [zipped, legacy, plain])
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model.bin"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    write: Callable[[object, Path], None], name: str, tmp_path: Path
) -> None:
    marker = tmp_path / "it-ran"
    write(RunsCode(marker), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"refused, and nothing in it was run: the pickle names 'posix\.system'"):
        open_weights(tmp_path / name)
    assert not marker.exists()
    with pytest.raises(CheckpointError):
        load_into(torch.nn.Linear(1, 1), tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("callable_", [eval, exec, getattr, __import__, torch.load, open])
def test_other_callables_are_refused_too(callable_: Callable[..., object], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return callable_, ("1",)

    zipped(Evil(), tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="refused, and nothing in it was run"):
        open_weights(tmp_path / "model.ckpt")


def absurd_safetensors_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")


def absurd_safetensors_shape(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


def forged(edit: Callable[[bytes], bytes], path: Path, **options: object) -> None:
    """A torch archive whose pickle was edited, its checksums made right again."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, edit(data) if entry.filename.endswith("data.pkl") else data)


BINT = struct.pack("<i", 2**31 - 1)


def absurd_storage(path: Path) -> None:
    forged(lambda data: data.replace(b"M\xe8\x03", b"J" + BINT), path)


def absurd_view(path: Path) -> None:
    """A stride of zero makes any shape legal over a little memory."""
    torch.save({"state_dict": {"a": torch.zeros(1).expand(2**20, 2**20)}}, path)


def absurd_legacy(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(buffer.getvalue().replace(b"M\xe8\x03", b"J" + BINT))


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(2**26))


@pytest.mark.parametrize(
    "forge",
    [
        absurd_safetensors_header,
        absurd_safetensors_shape,
        absurd_storage,
        absurd_view,
        absurd_legacy,
        compressed,
    ],
)
def test_forged_sizes_allocate_nothing(forge: Callable[[Path], None], tmp_path: Path) -> None:
    """The claims are 4 GiB to 4 TiB; a tenth of the smallest is far above what reading costs."""
    path = tmp_path / "model.safetensors"
    forge(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        open_weights(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.eye(3).to_sparse()}}, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="only dense ones load"):
        open_weights(tmp_path / "model.ckpt")


def test_large_files_are_verified_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("safetensors", "ckpt"):
        content = bytearray(intact(suffix))
        place = content.rindex(struct.pack("<f", 23.0))
        content[place] ^= 1
        path = tmp_path / f"model.{suffix}"
        path.write_bytes(content)
        for module in ("formats", "pickles"):
            monkeypatch.setattr(f"stable_audio_tools.models.checkpoints.{module}.VERIFY_BELOW", 0)
        open_weights(path)
        with pytest.raises(CheckpointError, match=r"does not match its checksum|do not match its checksum"):
            open_weights(path, verify=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(
    bad: float, dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    state = {name: value.clone().to(dtype) for name, value in model.state_dict().items()}
    path = save_weights(state, tmp_path / "model.safetensors", model_config=CONFIG)
    load_into(model, path)
    assert "NaN" not in caplog.text
    state["1.weight"][0, 1] = bad
    load_into(model, save_weights(state, tmp_path / "bad.safetensors", model_config=CONFIG))
    assert "bad.safetensors: 1 tensors hold NaN or infinite values, so outputs will too: 1.weight" in caplog.text
