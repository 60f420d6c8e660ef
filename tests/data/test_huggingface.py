"""Hugging Face datasets on disk: the layout that `save_to_disk` writes, every row once, every mistake named."""

import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.small_arrow import row, save
from support.small_shards import RATE, audio_bytes

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.sources.huggingface import ArrowRows


def loader(folder: Path, *, entry: Mapping[str, Any] | None = None, workers: int = 0, **config: Any) -> Any:
    dataset = {"dataset_type": "huggingface", "datasets": [{"path": str(folder), **(entry or {})}], **config}
    return create_dataloader_from_config(
        dataset, batch_size=1, sample_size=4_000, sample_rate=RATE, num_workers=workers, shuffle=True
    )


def prompts(found: Any) -> list[str]:
    return [info["prompt"] for _, metadata in found for info in metadata]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_comes_once_with_its_columns(tmp_path: Path, workers: int) -> None:
    folder = save(tmp_path / "set", [row(number) for number in range(7)])
    batches = list(loader(folder, workers=workers))
    assert sorted(info["prompt"] for _, metadata in batches for info in metadata) == [f"clip {n}" for n in range(7)]
    audio, (info,) = batches[0]
    assert audio.shape == (1, 2, 4_000)
    number = int(info["prompt"].split()[1])
    assert info["bpm"] == 100 + number and info["relpath"] == f"clip_{number}.flac"


def test_order_and_crops_do_not_depend_on_workers(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", [row(number) for number in range(5)])
    alone, shared = list(loader(folder)), list(loader(folder, workers=2))
    assert all((a[0] == b[0]).all() and a[1][0]["prompt"] == b[1][0]["prompt"] for a, b in zip(alone, shared))


def test_rows_may_name_files_beside_them(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", [row(0, audio={"bytes": None, "path": "sounds/a.flac"})], files=1)
    (folder / "sounds").mkdir()
    (folder / "sounds/a.flac").write_bytes(audio_bytes(0))
    embedded = save(tmp_path / "embedded", [row(0)], files=1)
    (found, _), (expected, _) = next(iter(loader(folder))), next(iter(loader(embedded)))
    assert (found == expected).all()


def test_bad_rows_are_named_and_the_rest_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(n) for n in range(6)]
    rows[1]["audio"] = {"bytes": b"fLaC and no more", "path": "broken.flac"}
    rows[2]["audio"] = None
    with caplog.at_level(logging.WARNING):
        found = prompts(loader(save(tmp_path / "set", rows), max_bad_fraction=0.5))
    assert sorted(found) == ["clip 0", "clip 3", "clip 4", "clip 5"]
    assert "broken.flac: unreadable" in caplog.text
    assert "neither audio nor the path" in caplog.text
    with pytest.raises(AudioError, match="2 of 6 items are bad, more than max_bad_fraction"):
        prompts(loader(save(tmp_path / "again", rows)))


def test_path_lists_name_rows(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", [row(number) for number in range(4)])
    (tmp_path / "exclude.txt").write_text("clip_1.flac\nset:clip_3.flac\n")
    assert sorted(prompts(loader(folder, exclude_paths_file=str(tmp_path / "exclude.txt")))) == ["clip 0", "clip 2"]


def test_splits_are_folders(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        save(tmp_path / "dict" / split, [row(number)], files=1)
    (tmp_path / "dict/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert prompts(loader(tmp_path / "dict", entry={"split": "test"})) == ["clip 1"]
    with pytest.raises(ConfigError, match="has the splits train, test; name one"):
        loader(tmp_path / "dict")
    with pytest.raises(ConfigError, match="has no split 'val'; it has train, test"):
        loader(tmp_path / "dict", entry={"split": "val"})
    with pytest.raises(ConfigError, match="has no splits"):
        loader(tmp_path / "dict/train", entry={"split": "train"})


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        loader(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no Arrow dataset; datasets' save_to_disk writes one"):
        loader(tmp_path / "empty")
    (tmp_path / "empty/train.parquet").touch()
    with pytest.raises(ConfigError, match="its 1 parquet files become one"):
        loader(tmp_path / "empty")
    folder = save(tmp_path / "set", [row(0)], files=1)
    with pytest.raises(ConfigError, match="no column of audio named 'sound'; its columns of audio are audio"):
        loader(folder, entry={"audio_column": "sound"})
    (folder / "data-00000-of-00001.arrow").write_bytes(b"text")
    with pytest.raises(ConfigError, match="is not an Arrow stream"):
        loader(folder)
    (folder / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(ConfigError, match=r"is missing, but .*state.json names it"):
        loader(folder)
    (folder / "state.json").write_text(json.dumps({"_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(ConfigError, match="is a selection of rows"):
        loader(folder)


def test_rows_travel_to_other_processes(tmp_path: Path) -> None:
    rows = ArrowRows(save(tmp_path / "set", [row(number) for number in range(5)]))
    copy = pickle.loads(pickle.dumps(rows))
    assert [copy[n] for n in range(5)] == [rows[n] for n in range(5)]
