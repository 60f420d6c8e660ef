"""Folders of latents: the published layout, crops that keep their times, and what is broken."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.dataset import LocalDatasetConfig, PreEncodedDataset, create_dataloader_from_config
from stable_audio_tools.data.draws import Draw

RATIO, RATE, FRAMES = 1_000, 10_000, 64  # a latent frame lasts 0.1 s


def put(
    root: Path, name: str = "0/000000000000.npy", real: int = FRAMES, dtype: Any = np.float32, **about: Any
) -> Path:
    """One item as pre-encoding writes it: frame t holds the number t in each of 4 channels."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.broadcast_to(np.arange(FRAMES), (4, FRAMES)).astype(dtype))
    info = {
        "prompt": name,
        "path": f"/data/{Path(name).stem}.wav",
        "relpath": f"{Path(name).stem}.wav",
        "timestamps": [0.2, 0.6],
        "seconds_start": 7,
        "seconds_total": 30,
        "sample_rate": RATE,
        "padding_mask": [1] * real + [0] * (FRAMES - real),
        **about,
    }
    path.with_suffix(".json").write_text(json.dumps(info))
    (root / "details.json").write_text(json.dumps({"sample_size": FRAMES * RATIO, "args": {}}))
    return path


def dataset(root: Path, **options: Any) -> PreEncodedDataset:
    return PreEncodedDataset([LocalDatasetConfig("latents", str(root))], **options)


def test_whole_latents_come_as_they_are(tmp_path: Path) -> None:
    path = put(tmp_path, real=40)
    latents, info = dataset(tmp_path)[0]
    torch.testing.assert_close(latents, torch.arange(64.0).expand(4, -1))
    assert info["padding_mask"].shape == (64,) and info["padding_mask"].sum() == 40
    assert info["audio"] is latents and info["latent_filename"] == str(path)
    assert info["seconds_start"] == 7 and "latent_crop_start" not in info


def test_crops_stay_within_the_real_part_and_reach_its_end(tmp_path: Path) -> None:
    put(tmp_path, real=40)
    source = dataset(tmp_path, latent_crop_length=30, random_crop=True)
    starts = set()
    for epoch in range(200):
        latents, info = source.load(Draw(0, epoch))
        start = info["latent_crop_start"]
        torch.testing.assert_close(latents, torch.arange(start, start + 30.0).expand(4, -1))
        assert info["padding_mask"].sum() == 30 and info["latent_crop_length"] == 30
        assert info["seconds_start"] == 7 + start // 10
        starts.add(start)
    assert starts == set(range(11))


def test_crops_from_the_start_and_longer_than_the_latents(tmp_path: Path) -> None:
    put(tmp_path, real=40)
    latents, info = dataset(tmp_path, latent_crop_length=50)[0]
    assert info["latent_crop_start"] == 0 and info["padding_mask"].sum() == 40 and latents.shape == (4, 50)
    latents, info = dataset(tmp_path, latent_crop_length=80, random_crop=True)[0]
    assert latents.shape == (4, 80) and latents[:, 64:].eq(0).all() and info["padding_mask"].sum() == 40


def test_times_without_the_encoders_notes(tmp_path: Path) -> None:
    put(tmp_path, timestamps=[0, 1], seconds_start=0, seconds_total=6, real=60)
    (tmp_path / "details.json").unlink()
    source = dataset(tmp_path, latent_crop_length=20, random_crop=True)
    for epoch in range(20):
        info = source.load(Draw(0, epoch)).info
        assert info["seconds_start"] == info["latent_crop_start"] // 10


def test_half_precision_becomes_float32_and_tokens_stay_whole(tmp_path: Path) -> None:
    put(tmp_path, "a.npy", dtype=np.float16)
    put(tmp_path, "b.npy", dtype=np.int64)
    assert [item.audio.dtype for item in dataset(tmp_path)] == [torch.float32, torch.int64]


def test_a_file_list_chooses_and_misses_are_named(tmp_path: Path) -> None:
    for i in range(6):
        put(tmp_path, f"{i}.npy")
    (tmp_path / "filelist.txt").write_text("1.npy\n./4.npy\ngone.npy\n")
    source = dataset(tmp_path)
    assert [Path(name).name for name in source.filenames] == ["1.npy", "4.npy"]
    assert [Path(fault.path).name for fault in source.known_faults] == ["gone.npy"]


def test_path_lists_know_the_audio_that_was_encoded(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / "latents", f"{i}.npy")
    (tmp_path / "out.txt").write_text("/data/1.wav\n")
    (tmp_path / "in.txt").write_text("0.wav\n1.wav\n")
    loader = create_dataloader_from_config(
        {
            "dataset_type": "pre_encoded",
            "datasets": [{"id": "l", "path": str(tmp_path / "latents")}],
            "exclude_paths_file": str(tmp_path / "out.txt"),
            "include_paths_file": str(tmp_path / "in.txt"),
        },
        1, 0, RATE, num_workers=0,
    )  # fmt: skip
    assert [Path(name).name for name in loader.dataset.filenames] == ["0.npy"]


def test_the_config_of_the_original_guide(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / "latents", f"0/{i:012d}.npy")
    (tmp_path / "md.py").write_text(
        "def get_custom_metadata(info, audio):\n"
        "    assert audio is None\n"
        "    return {'__reject__': info['relpath'].endswith('2.wav'), 'extra': 1}\n"
    )
    config = {
        "dataset_type": "pre_encoded",
        "datasets": [
            {
                "id": "my_pre_encoded_audio",
                "path": str(tmp_path / "latents"),
                "latent_crop_length": 16,
                "custom_metadata_module": str(tmp_path / "md.py"),
            }
        ],
        "random_crop": True,
    }
    loader = create_dataloader_from_config(config, 3, 65_536, RATE, num_workers=1)
    ((latents, metadata),) = list(loader)
    assert latents.shape == (3, 4, 16) and isinstance(metadata, tuple)
    assert all(info["extra"] == 1 and info["audio"].shape == (4, 16) for info in metadata)
    assert loader.report.counts() == "1 rejected"


def test_replaced_latents(tmp_path: Path) -> None:
    put(tmp_path, "a.npy")
    config = LocalDatasetConfig("l", str(tmp_path), lambda info, audio: {"__replace__": torch.ones(4, 2)})
    latents, info = PreEncodedDataset([config])[0]
    assert latents.eq(1).all() and info["audio"] is latents and "__replace__" not in info


def test_length_limits(tmp_path: Path) -> None:
    for seconds in (3, 30, 300):
        put(tmp_path, f"{seconds}.npy", seconds_total=seconds)
    source = dataset(tmp_path, min_length_sec=10, max_length_sec=100)
    assert [Path(name).name for name in source.filenames] == ["30.npy"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda p: p.write_bytes(b""), "no readable latents"),
        (lambda p: p.write_bytes(p.read_bytes()[:300]), "no readable latents"),
        (lambda p: np.save(p, np.zeros((2, 3, 4))), r"expected latents of shape \(channels, frames\), got \(2, 3, 4\)"),
        (lambda p: np.save(p, np.array(["a"])), "holds no array of numbers"),
        (lambda p: np.save(p, np.array([{}]), allow_pickle=True), "no readable latents"),
        (lambda p: np.save(p, np.full((4, FRAMES), np.nan, np.float32)), "NaN or infinite latents"),
        (lambda p: np.save(p, np.zeros((4, 5), np.float32)), "padding_mask has 64 entries for 5 latent frames"),
        (lambda p: p.with_suffix(".json").unlink(), "json is missing"),
        (lambda p: p.with_suffix(".json").write_text("{"), "json cannot be read"),
        (lambda p: p.with_suffix(".json").write_text("[]"), "holds no JSON object, but list"),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, spoil: Any, sentence: str) -> None:
    path = put(tmp_path, "a.npy")
    spoil(path)
    with pytest.raises(AudioError, match=sentence):
        dataset(tmp_path)[0]


def test_one_batch_needs_one_length(tmp_path: Path) -> None:
    entries = [{"path": "a", "latent_crop_length": 5}, {"path": "b"}]
    with pytest.raises(ConfigError, match=r"latent_crop_length: all items of a batch need one length.*\['5', 'None'\]"):
        create_dataloader_from_config({"dataset_type": "pre_encoded", "datasets": entries}, 1, 1, 1)
