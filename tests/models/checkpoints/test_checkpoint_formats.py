"""Every kind of weight file is recognised, by content, and says what it is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints import describe_weights, load_into, open_weights, read_weights
from stable_audio_tools.models.utils import copy_state_dict, load_ckpt_state_dict


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    model.register_buffer("window", torch.rand(5))
    return model


def write(kind: str, folder: Path) -> Path:
    """The weights of `small_model()` in one of the formats."""
    state = {name: value.clone() for name, value in small_model().state_dict().items()}
    path = folder / "model.ckpt"
    if kind == "safetensors":
        path = folder / "model.safetensors"
        save_file(state, path, {"model_config": json.dumps({"model_type": "autoencoder"})})
    elif kind == "unwrapped":
        torch.save({"state_dict": state}, path)
    elif kind == "bare":
        torch.save(state, path)
    elif kind == "legacy":
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    elif kind == "under another key":
        torch.save({"model": state, "epoch": 3}, path)
    elif kind == "compiled":
        torch.save({f"_orig_mod.{name}": value for name, value in state.items()}, path)
    elif kind == "data parallel":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    elif kind == "sharded":
        names = sorted(state)
        halves = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
        for shard, held in halves.items():
            save_file({name: state[name] for name in held}, folder / shard)
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": {n: s for s, held in halves.items() for n in held}}))
    elif kind == "wrong suffix":
        path = folder / "weights.bin"
        save_file(state, path)
    return path


KINDS = {
    "safetensors": "a safetensors file",
    "unwrapped": "an unwrapped checkpoint",
    "bare": "a bare state dict",
    "legacy": "an unwrapped checkpoint",
    "under another key": "weights under 'model'",
    "compiled": "a bare state dict",
    "data parallel": "an unwrapped checkpoint",
    "sharded": "a safetensors file in 2 shards",
    "wrong suffix": "a safetensors file",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through_folder", [False, True])
def test_every_format_loads_and_is_named(kind: str, through_folder: bool, tmp_path: Path) -> None:
    path = write(kind, tmp_path)
    model = small_model(seed=1)
    report = load_into(model, tmp_path if through_folder else path)
    assert report.complete and report.percent == 100
    assert f"{path.name} is " in report.recognised and KINDS[kind] in report.recognised
    for name, value in small_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_the_kind_is_logged_in_one_sentence_and_the_report_in_three_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("unwrapped", tmp_path)
    with caplog.at_level("INFO", logger="stable_audio_tools"):
        load_into(small_model(1), path)
    sentence, report = (record.getMessage() for record in caplog.records)
    assert sentence == "model.ckpt is an unwrapped checkpoint"
    assert len(report.splitlines()) == 3
    assert "loaded 7 of 7 tensors, 100.0 %" in report


def test_a_folder_prefers_safetensors_and_brings_its_config(tmp_path: Path) -> None:
    write("safetensors", tmp_path)
    (tmp_path / "model.ckpt").write_bytes(b"never opened")
    (tmp_path / "model_config.json").write_text('{"model_type": "lm"}')
    stored = open_weights(tmp_path)
    assert stored.name == "model.safetensors"
    assert stored.model_config == {"model_type": "lm"}


def test_a_folder_without_a_clear_choice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights in this folder; expected model\.safetensors or"):
        open_weights(tmp_path)
    for name in ("a.ckpt", "b.ckpt"):
        torch.save({"state_dict": small_model().state_dict()}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"several weight files \(a\.ckpt, b\.ckpt\) and none named"):
        open_weights(tmp_path)


def test_shards_must_be_beside_their_index_and_hold_its_names(tmp_path: Path) -> None:
    index = write("sharded", tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["absent.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"'absent\.weight' and 0 more tensors are in none of the shards"):
        open_weights(index)
    content["weight_map"]["absent.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"shards are \.safetensors files beside their index"):
        open_weights(index)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty; the download or the copy did not finish"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"<!doctype html><title>404</title>", "a web page, not weights"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "an audio file"),
        (b'{"model_type": "autoencoder"}', "a JSON file"),
        (b"hello", "not a weight file but something else"),
    ],
)
def test_foreign_files_are_explained(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        open_weights(path)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt: no such file or folder"):
        open_weights(tmp_path / "nowhere.ckpt")


def test_torch_files_without_weights_are_explained(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list instead of named weights"):
        open_weights(tmp_path / "list.pt")
    torch.save({"steps": 3, "name": "x"}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="no weights were found in it; it holds 'steps', 'name'"):
        open_weights(tmp_path / "none.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        open_weights(tmp_path / "script.pt")


@pytest.mark.parametrize("kind", ["safetensors", "unwrapped"])
def test_writing_to_loaded_weights_never_reaches_the_file(kind: str, tmp_path: Path) -> None:
    path = write(kind, tmp_path)
    before = path.read_bytes()
    for value in open_weights(path).tensors.values():
        value.add_(1)
    assert path.read_bytes() == before


def test_published_helpers(tmp_path: Path) -> None:
    path = write("unwrapped", tmp_path)
    model = small_model(1)
    model.load_state_dict(load_ckpt_state_dict(str(path)))
    assert torch.equal(model[0].weight, small_model()[0].weight)
    other = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    report = copy_state_dict(other, load_ckpt_state_dict(str(path)))
    assert torch.equal(other[0].weight, model[0].weight)
    assert [str(wrong) for wrong in report.wrong_shape] == [
        "2.weight is [2, 6] in the file, [3, 6] in the model",
        "2.bias is [2] in the file, [3] in the model",
    ]


def test_description(tmp_path: Path) -> None:
    lines = describe_weights(write("safetensors", tmp_path)).splitlines()
    assert lines[0] == "model.safetensors is a safetensors file"
    assert lines[1].startswith("7 tensors, 61 values, 0.00 GiB, float32")
    assert "its model config is inside or beside it: autoencoder" in lines


def test_a_state_dict_in_memory_is_a_source() -> None:
    assert set(read_weights({"a": torch.zeros(2)}).tensors) == {"a"}


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    """640 and 896 bytes are 80 02 and 80 03 in the file, as pickles begin."""
    seen = set()
    for padding in range(500, 900):
        save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors", {"note": "x" * padding})
        length = int.from_bytes((tmp_path / "m.safetensors").read_bytes()[:8], "little")
        if length in (640, 896):
            seen.add(length)
            assert torch.equal(open_weights(tmp_path / "m.safetensors").tensors["w"], torch.ones(2))
    assert seen == {640, 896}
