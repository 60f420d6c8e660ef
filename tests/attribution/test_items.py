"""Items, and what they are known by: changes are seen, draws follow the item, odd manifests end in a sentence."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from stable_audio_tools.attribution.items import AudioShape, DatasetItems, GeneratedItems, read_items, read_manifest
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.path_lists import PathFilter

SHAPE = AudioShape(2000, 22050, 2, latent_channels=3)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three files, longer than a crop."""
    (tmp_path / "clips").mkdir()
    for number, name in enumerate("abc"):
        rng = np.random.default_rng(number)
        sf.write(tmp_path / "clips" / f"{name}.wav", 0.2 * rng.standard_normal((9000, 2)), 22050)
    return tmp_path / "clips"


def dataset(clips: Path, limit: int | None = None, **settings: Any) -> DatasetItems:
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": str(clips)}], "augment_phase": False}
    return DatasetItems({**config, **settings}, SHAPE, seed=0, limit=limit)


def test_a_crop_follows_its_item(clips: Path, tmp_path: Path) -> None:
    """Leaving a file out changes no other one."""
    whole = {items.key(n): items.load(n).audio for items in [dataset(clips)] for n in range(3)}
    (tmp_path / "without.txt").write_text(f"{clips}/a.wav\n")
    fewer = dataset(clips, exclude_paths_file=str(tmp_path / "without.txt"))
    assert [fewer.key(n) for n in range(2)] == ["clips/b.wav", "clips/c.wav"]
    assert all(torch.equal(fewer.load(n).audio, whole[fewer.key(n)]) for n in range(2))
    assert not torch.equal(dataset(clips, random_crop=False).load(1).audio, whole["clips/b.wav"])


def test_what_the_key_of_a_dataset_sees(clips: Path, tmp_path: Path) -> None:
    """Captions beside files, in tables and by settings; not how the files were chosen."""
    keys = [dataset(clips).data_key]
    (clips / "a.txt").write_text("a drum")
    keys.append(dataset(clips).data_key)
    (clips / "b.json").write_text('{"prompt": "a bass"}')
    keys.append(dataset(clips).data_key)
    keys.append(dataset(clips, captions={"prompt_dropout": 0.5}).data_key)
    table = tmp_path / "table.jsonl"
    for prompt in ("one", "two"):
        table.write_text(json.dumps({"file": "a.wav", "prompt": prompt}) + "\n")
        told = [{"id": "clips", "path": str(clips), "metadata_path": str(table)}]
        keys.append(dataset(clips, datasets=told).data_key)
    keys.append(dataset(clips, limit=2).data_key)
    assert len(set(keys)) == len(keys)
    (tmp_path / "only.txt").write_text("a.wav\nb.wav\n")
    chosen = dataset(clips, include_paths_file=str(tmp_path / "only.txt"), max_bad_fraction=0.5)
    assert chosen.data_key == dataset(clips, limit=2).data_key


# ------------------------------------------------------------------ generated files


@pytest.fixture
def generated(clips: Path) -> Path:
    records = [{"file": f"{name}.wav", "conditions": {"prompt": name}, "seed": 1} for name in "abc"]
    (clips / "manifest.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return clips


def test_a_file_made_anew_is_another(generated: Path) -> None:
    """Of the same size and, on a coarse clock, of the same time; and one that was only touched is the same."""
    before = GeneratedItems(generated, SHAPE).data_key
    os.utime(generated / "a.wav", ns=(0, 0))
    assert GeneratedItems(generated, SHAPE).data_key == before
    size = (generated / "a.wav").stat().st_size
    sf.write(generated / "a.wav", 0.2 * np.random.default_rng(9).standard_normal((9000, 2)), 22050)
    assert (generated / "a.wav").stat().st_size == size
    assert GeneratedItems(generated, SHAPE).data_key != before


@pytest.mark.parametrize(
    ("latents", "told"),
    [
        (np.zeros((4, 5), "f4"), r"a\.npy: expected latents of shape \(3, frames\), got \(4, 5\)"),
        (np.zeros((3, 0), "f4"), r"got \(3, 0\)"),
        (np.zeros(3, "f4"), r"got \(3,\)"),
        (np.array(["x"]), "holds no array of numbers"),
        (np.full((3, 5), np.nan, "f4"), r"not finite \(a\.npy holds NaN or infinite latents"),
        (np.full((3, 5), 1e300), "not finite"),
    ],
    ids=["channels", "no frames", "one axis", "text", "NaN", "too large"],
)
def test_latents_that_cannot_be_used_are_left_out(latents: Any, told: str, generated: Path) -> None:
    np.save(generated / "a.npy", latents)
    found = list(read_items(GeneratedItems(generated, SHAPE), [0, 1]))
    assert found[0].item is None and found[1].item is not None
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(found[0].fault)


def test_latents_of_any_length_and_of_a_batch_of_one(generated: Path) -> None:
    np.save(generated / "a.npy", np.ones((3, 7), "f2"))
    np.save(generated / "b.npy", np.ones((1, 3, 4), "i4"))
    items = [found.item for found in read_items(GeneratedItems(generated, SHAPE), [0, 1])]
    assert [(item.audio.shape, item.audio.dtype) for item in items if item] == [
        ((3, 7), torch.float32),
        ((3, 4), torch.float32),
    ]


def test_audio_that_is_not_finite_is_left_out(generated: Path) -> None:
    sf.write(generated / "a.wav", np.full((9000, 2), np.nan), 22050, "FLOAT")
    assert "not finite" in str(next(read_items(GeneratedItems(generated, SHAPE), [0])).fault)


def test_path_lists_choose_generated_files(generated: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a.wav\n")
    (tmp_path / "whole.txt").write_text(f"{generated}/b.wav\n")
    lists = {"exclude": tmp_path / "a.txt", "include": tmp_path / "whole.txt"}
    assert [r["file"] for r in GeneratedItems(generated, SHAPE, paths=PathFilter(**lists)).records] == ["b.wav"]
    without = GeneratedItems(generated, SHAPE, 1, PathFilter(exclude=tmp_path / "a.txt"))
    assert [record["file"] for record in without.records] == ["b.wav"]
    (tmp_path / "a.txt").write_text("b.wav\n")
    with pytest.raises(ConfigError, match="--include-paths-file and --exclude-paths-file exclude all of its files"):
        GeneratedItems(generated, SHAPE, paths=PathFilter(**lists))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("manifest.jsonl", b'["a"]\n', "entry 1: expected an object with file and conditions, got list"),
        ("manifest.jsonl", b'{"file": "a.wav"}\n{"file": 3}', 'entry 2: has no "file"'),
        ("manifest.jsonl", b'{"file": "a.wav", "conditions": "foo"}', "conditions must be an object, got str"),
        ("manifest.jsonl", b'{"file": "a\xff.wav"}', r"manifest\.jsonl: cannot be read as text"),
        ("manifest.jsonl", b"[" * 100000, "a line is not valid JSON"),
        ("manifest.jsonl", b"", "names no files"),
        ("prompt_manifest.json", b'{"items": ["a.wav"]}', '"items" must be a list of objects'),
        ("prompt_manifest.json", b'{"items": {"a": 1}}', '"items" must be a list of objects'),
        ("prompt_manifest.json", b'{"items": [{"prompt": "a"}]}', 'entry 1: has no "file"'),
        ("prompt_manifest.json", b"\xff", "cannot be read as text"),
    ],
)
def test_manifests_of_other_shapes(name: str, text: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ConfigError, match=told):
        read_manifest(tmp_path)


def test_a_line_of_a_manifest_ends_at_its_line_feed(tmp_path: Path) -> None:
    record = {"file": "a.wav", "conditions": {"prompt": "one\u2028two"}}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_manifest(tmp_path) == [record]
