"""Folders of audio from their JSON: the guides' configs, captions, user code, and the keys that are refused."""

import json
import logging
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.audio_io import read
from stable_audio_tools.data.dataset import (
    LocalDatasetConfig,
    SampleDataset,
    check_dataset_config,
    collation_fn,
    create_dataloader_from_config,
)
from stable_audio_tools.data.draws import Draw
from stable_audio_tools.data.loader import Loader
from stable_audio_tools.data.resampling import resample


def load(tmp_path: Path, entry: dict[str, Any] | None = None, *, batch_size: int = 1, **config: Any) -> Loader:
    """A loader of the files in tmp_path/audio: 2,000 samples at 44.1 kHz, in order, without polarity flips."""
    options = {key: config.pop(key) for key in ("num_workers", "audio_channels", "shuffle") if key in config}
    options = {"num_workers": 0, "shuffle": False, **options}
    entry = {"id": "mine", "path": str(tmp_path / "audio"), **(entry or {})}
    body = {"drop_last": False, "augment_phase": False, "datasets": [entry], **config}
    loader = create_dataloader_from_config({"dataset_type": "audio_dir", **body}, batch_size, 2_000, 44_100, **options)
    assert isinstance(loader, Loader)
    return loader


def infos(loader: Loader) -> list[dict[str, Any]]:
    return [info for _, metadata in loader for info in metadata]


def prompts(loader: Loader) -> dict[str, Any]:
    return {info["relpath"]: info.get("prompt") for info in infos(loader)}


# ------------------------------------------------------------------ crops


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (48_000, 1), (22_050, 6)])
def test_a_crop_is_that_part_of_the_resampled_file(tmp_path: Path, write_clip, rate: int, channels: int) -> None:
    path = write_clip("a/b.wav", samples=30_001, rate=rate, channels=channels)
    whole = resample(read(path).samples, rate, 44_100)
    whole = whole.expand(2, -1) if channels == 1 else whole[:2]
    ((audio, (info,)),) = list(load(tmp_path))
    start = round(info["timestamps"][0] * whole.shape[1])
    assert start > 0 and audio.shape == (1, 2, 2_000)
    # the read is exact; the sums of the filter run in another order
    torch.testing.assert_close(audio[0], whole[:, start : start + 2_000], atol=1e-6, rtol=0)
    assert info["path"] == str(path) and info["relpath"] == "a/b.wav" and info["sample_rate"] == 44_100
    assert info["seconds_start"] == start // 44_100 and info["seconds_total"] == -(-whole.shape[1] // 44_100)
    assert info["timestamps"][1] == pytest.approx((start + 2_000) / whole.shape[1])
    assert info["padding_mask"].tolist() == [1.0] * 2_000 and info["load_time"] > 0


def test_short_files_are_padded(tmp_path: Path, write_clip) -> None:
    write_clip("a.wav", samples=700)
    ((audio, (info,)),) = list(load(tmp_path, random_crop=False))
    assert audio[0, :, 700:].abs().max() == 0 and audio[0, :, :700].abs().min(1).values.max() > 0
    assert info["padding_mask"].sum() == 700 and info["timestamps"] == (0, 1)


def test_no_random_crop_means_the_start(tmp_path: Path, write_clip) -> None:
    path = write_clip("a.wav")
    ((audio, (info,)),) = list(load(tmp_path, random_crop=False))
    torch.testing.assert_close(audio[0], read(path, 0, 2_000).samples)
    assert info["seconds_start"] == 0


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_as_the_model_wants(tmp_path: Path, write_clip, channels: int) -> None:
    for have in (1, 2, 6):
        write_clip(f"{have}.wav", channels=have)
    batches = list(load(tmp_path, batch_size=3, audio_channels=channels))
    assert batches[0][0].shape == (3, channels, 2_000)


def test_polarity_flips_half_of_the_items(tmp_path: Path, write_clip) -> None:
    path = write_clip("a.wav", samples=2_000)
    dataset = SampleDataset([LocalDatasetConfig("a", str(path.parent))], 2_000, 44_100)
    signs = [torch.sign((dataset.load(Draw(0, e)).audio * read(path).samples).sum()).item() for e in range(60)]
    assert 15 < signs.count(-1) < 45


def test_volume_norm(tmp_path: Path, write_clip) -> None:
    write_clip("a.wav", samples=60_000)
    config = {"dataset_type": "audio_dir", "datasets": [{"path": str(tmp_path / "audio")}]}
    config |= {"volume_norm": True, "volume_norm_param": [-30, 0]}
    ((audio, _),) = list(create_dataloader_from_config(config, 1, 44_100, 44_100, num_workers=0))
    from torchaudio.transforms import Loudness

    assert float(Loudness(44_100)(audio[0])) == pytest.approx(-30, abs=0.1)


def test_files_with_silent_parts_are_tried_at_several_places(tmp_path: Path, write_clip) -> None:
    wave = np.zeros((200_000, 1), np.float32)
    wave[100_000:] = 0.1
    write_clip("half.wav", wave=wave)
    loader = load(tmp_path, max_bad_fraction=1)
    given = 0
    for _ in range(30):
        try:
            given += len(list(loader))
        except AudioError as error:
            assert "1 silent" in str(error)  # all tries fell into the silent half
    assert given >= 24  # one in sixteen epochs misses four times


def test_silence_can_be_wanted(tmp_path: Path, write_clip) -> None:
    write_clip("a.wav", wave=np.zeros((5_000, 1), np.float32))
    with pytest.raises(AudioError, match=r"1 of 1 items are bad.*: 1 silent; first: .*a.wav: silent \(below -60 dB"):
        list(load(tmp_path))
    assert len(list(load(tmp_path, allow_silence=True))) == 1


# ------------------------------------------------------------------ the guides' configs


def test_the_config_of_the_original_guide(tmp_path: Path, write_clip) -> None:
    write_clip("x/a.wav")
    (tmp_path / "md.py").write_text('def get_custom_metadata(info, audio):\n    return {"prompt": info["relpath"]}\n')
    text = json.dumps(
        {
            "dataset_type": "audio_dir",
            "datasets": [
                {
                    "id": "my_audio",
                    "path": str(tmp_path / "audio") + "/",
                    "custom_metadata_module": str(tmp_path / "md.py"),
                }
            ],
            "random_crop": True,
        }
    )
    loader = create_dataloader_from_config(json.loads(text), 1, 2_000, 44_100, 2, 1)
    assert prompts(loader) == {"x/a.wav": "x/a.wav"}


def test_the_friendly_forks_sidecar_and_top_level_module(tmp_path: Path, write_clip) -> None:
    write_clip("a.wav", about={"prompt": "a bell", "bpm": 90})
    (tmp_path / "md.py").write_text('def get_custom_metadata(info, audio):\n    return {"seen": info["prompt"]}\n')
    (info,) = infos(load(tmp_path, custom_metadata_module=str(tmp_path / "md.py")))
    assert info["prompt"] == info["seen"] == "a bell" and info["bpm"] == 90


def test_the_open_small_guides_table(tmp_path: Path, write_clip) -> None:
    rows = []
    for i in range(3):
        write_clip(f"clips/{i}.wav")
        rows.append({"audio_path": f"clips/{i}.wav", "text": f"sound {i}", "duration": 0.45, "sample_rate": 22_050})
    table = tmp_path / "audio" / "metadata.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows))
    found = infos(load(tmp_path, {"metadata_path": str(table)}))
    assert [info["prompt"] for info in found] == ["sound 0", "sound 1", "sound 2"]
    assert found[0]["duration"] == 0.45 and found[0]["sample_rate"] == 44_100  # what the audio now has


def test_the_jamendo_forks_lists(tmp_path: Path, write_clip) -> None:
    for name in ("00/1.mp3", "00/2.mp3", "01/1.mp3", "01/3.mp3"):
        write_clip(name)
    (tmp_path / "out.txt").write_text("# duplicates\n00/1.mp3\n")
    (tmp_path / "in.txt").write_text("1\n2\n")
    assert set(prompts(load(tmp_path, exclude_paths_file=str(tmp_path / "out.txt")))) == {
        "00/2.mp3", "01/1.mp3", "01/3.mp3",
    }  # fmt: skip
    both = {"exclude_paths_file": str(tmp_path / "out.txt"), "include_paths_file": str(tmp_path / "in.txt")}
    assert set(prompts(load(tmp_path, loose_path_matching=True, **both))) == {"00/2.mp3", "01/1.mp3"}
    with pytest.raises(ConfigError, match=r"found \d+ files, and all are left out: \d+ by include_paths_file"):
        load(tmp_path, **both)


# ------------------------------------------------------------------ captions


def test_captions_from_the_dataset_json(tmp_path: Path, write_clip) -> None:
    write_clip("a.wav", about={"tags": ["x", "y", "z"], "bpm": 120})
    captions = {"templates": ["{tags} at {bpm} bpm"], "shuffle_tags": True, "uppercase": 1.0}
    loader = load(tmp_path, captions=captions)
    seen = {prompts(loader)["a.wav"] for _ in range(40)}
    assert len(seen) == 6 and all(text.endswith(" AT 120 BPM") for text in seen)


def test_only_listed_files(tmp_path: Path, write_clip, caplog: pytest.LogCaptureFixture) -> None:
    write_clip("a.wav")
    write_clip("b.wav")
    (tmp_path / "t.csv").write_text("file,caption\na.wav,first\nmissing.wav,second\n")
    entry = {"metadata_path": str(tmp_path / "t.csv")}
    assert prompts(load(tmp_path, entry)) == {"a.wav": "first", "b.wav": None}
    assert prompts(load(tmp_path, {**entry, "only_listed": True})) == {"a.wav": "first"}
    assert "1 rows match no file in use, such as 'missing.wav'" in caplog.text


# ------------------------------------------------------------------ user code


def code(tmp_path: Path, body: str) -> dict[str, str]:
    (tmp_path / "md.py").write_text(f"import random, torch\ndef get_custom_metadata(info, audio):\n    {body}\n")
    return {"custom_metadata_module": str(tmp_path / "md.py")}


def test_reject_is_counted_and_named(tmp_path: Path, write_clip) -> None:
    for i in range(4):
        write_clip(f"{i}.wav")
    entry = code(tmp_path, 'return {"__reject__": info["relpath"] != "2.wav"}')
    loader = load(tmp_path, entry)
    assert list(prompts(loader)) == ["2.wav"]
    assert loader.report.counts() == "3 rejected"


def test_replace_and_audio(tmp_path: Path, write_clip) -> None:
    path = write_clip("a.wav")
    entry = code(
        tmp_path,
        'return {"__replace__": torch.full((1, 500), 0.5), "__audio__": {"wide": torch.arange(20000.) / 20000, '
        '"same": audio * 2}}',
    )
    ((audio, (info,)),) = list(load(tmp_path, entry))
    assert audio.shape == (1, 2, 2_000) and audio[0, :, :500].eq(0.5).all() and audio[0, :, 500:].eq(0).all()
    start = round(info["timestamps"][0] * 20_000)
    torch.testing.assert_close(info["wide"], torch.arange(start, start + 2_000.0).expand(2, -1) / 20_000)
    torch.testing.assert_close(info["same"], (2 * read(path, start, 2_000).samples).clamp(-1, 1))
    assert "__audio__" not in info and "__replace__" not in info


def test_randomness_in_user_code_does_not_depend_on_workers(tmp_path: Path, write_clip) -> None:
    for i in range(6):
        write_clip(f"{i}.wav")
    entry = code(tmp_path, 'return {"prompt": str((random.random(), torch.rand(1).item()))}')
    state = random.getstate()
    first = prompts(load(tmp_path, entry))
    assert random.getstate() == state
    assert first == prompts(load(tmp_path, entry, num_workers=2, batch_size=2)) and len(set(first.values())) == 6


def test_mistakes_in_user_code_are_named(tmp_path: Path, write_clip) -> None:
    for i in range(10):
        write_clip(f"{i}.wav")
    loader = load(tmp_path, code(tmp_path, 'return {"k": {}["x"]} if info["relpath"] == "3.wav" else None'))
    assert len(infos(loader)) == 9
    (fault,) = loader.report.faults
    assert str(fault).endswith("3.wav: bad metadata (get_custom_metadata failed: KeyError: 'x')")
    with pytest.raises(AudioError, match="must return a dict, got int"):
        list(load(tmp_path, code(tmp_path, "return 3")))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "custom_metadata_module: no file .*md.py"),
        ("x = 1", r"has no function get_custom_metadata\(info, audio\)"),
        ("import nothing_of_that_name", "fails on import: ModuleNotFoundError"),
    ],
)
def test_modules_that_cannot_serve(tmp_path: Path, write_clip, text: str | None, sentence: str) -> None:
    write_clip("a.wav")
    if text is not None:
        (tmp_path / "md.py").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load(tmp_path, {"custom_metadata_module": str(tmp_path / "md.py")})


def test_spawned_workers_change_nothing(tmp_path: Path, write_clip) -> None:
    """Nothing that a worker needs must be copied by fork: user code travels as a path."""
    for i in range(4):
        write_clip(f"{i}.wav")
    entry = code(tmp_path, 'return {"prompt": str(random.random()), "f": 1}')
    expected = prompts(load(tmp_path, entry))
    loader = load(tmp_path, entry, num_workers=1)
    loader._context = "spawn"
    assert prompts(loader) == expected


# ------------------------------------------------------------------ faults


def plant(tmp_path: Path, write_clip) -> tuple[set[str], set[str]]:
    """60 files of which 6 are bad in different ways, and a folder that links to itself."""
    good = set()
    for i in range(54):
        name = f"{i % 5}/{i:02d}.{('wav', 'flac', 'mp3', 'ogg')[i % 4]}"
        write_clip(name, samples=8_000, rate=(44_100, 48_000)[i % 2])
        good.add(name)
    root = tmp_path / "audio"
    short = write_clip("bad/truncated.flac", samples=50_000)
    short.write_bytes(short.read_bytes()[:40_000])
    (root / "bad/empty.wav").write_bytes(b"")
    (root / "bad/text.wav").write_text("these are only words " * 50)
    write_clip("bad/silent.wav", wave=np.zeros((9_000, 2), np.float32))
    write_clip("bad/nan.wav", wave=np.full((9_000, 2), np.nan, np.float32), subtype="FLOAT")
    write_clip("bad/one.wav", samples=1)
    (root / "bad/loop").symlink_to(root)
    bad = {"truncated.flac", "empty.wav", "text.wav", "silent.wav", "nan.wav", "one.wav"}
    if os.geteuid() != 0:  # root may read everything
        write_clip("bad/locked.wav").chmod(0)
        bad.add("locked.wav")
    return good, bad


@pytest.mark.parametrize("workers", [0, 2])
def test_planted_faults_are_all_named_and_every_good_item_comes_once(tmp_path: Path, write_clip, workers: int) -> None:
    good, bad = plant(tmp_path, write_clip)
    loader = load(tmp_path, num_workers=workers, batch_size=4, shuffle=True)
    for _ in range(2):
        delivered = [info["relpath"] for info in infos(loader)]
        assert sorted(delivered) == sorted(good)
        assert {Path(fault.path).name for fault in loader.report.faults} == bad
    kinds = {Path(fault.path).name: fault.kind for fault in loader.report.faults}
    assert kinds["silent.wav"] == "silent" and kinds["nan.wav"] == "not finite" and kinds["one.wav"] == "short"


def test_quarantine_is_honoured_by_the_next_run(tmp_path: Path, write_clip, caplog) -> None:
    good, _ = plant(tmp_path, write_clip)
    options = {"on_bad_item": "quarantine", "quarantine_file": str(tmp_path / "bad.txt")}
    list(load(tmp_path, **options))
    caplog.clear()
    again = load(tmp_path, **options)
    assert len(infos(again)) == len(good)
    # Of a file that is longer than a crop nobody has heard all: it gets another chance.
    assert [Path(fault.path).name for fault in again.report.faults] == ["silent.wav"]


def test_raise_stops_at_once(tmp_path: Path, write_clip) -> None:
    plant(tmp_path, write_clip)
    with pytest.raises(AudioError, match=r"bad/empty.wav: unreadable \(is empty \(0 bytes\)\)"):
        load(tmp_path, on_bad_item="raise")


def test_nothing_usable_says_where_it_looked(tmp_path: Path, write_clip) -> None:
    (tmp_path / "audio").mkdir()
    with pytest.raises(
        ConfigError, match=r"no usable file in .*audio: found the folders are empty; looked for .aac, .aif"
    ):
        load(tmp_path)
    (tmp_path / "audio" / "a.doc").write_text("x")
    with pytest.raises(ConfigError, match=r"found 1 .doc; looked for"):
        load(tmp_path)
    (tmp_path / "audio" / "a.wav").write_text("x")
    with pytest.raises(AudioError, match=r"no usable file in .*audio: 1 unreadable; first: .*a.wav"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"dataset 'mine': path .*none does not exist"):
        load(tmp_path, {"path": str(tmp_path / "none")})


def test_length_limits_leave_files_out_without_calling_them_bad(tmp_path: Path, write_clip, caplog) -> None:
    write_clip("long.wav", samples=88_200)
    write_clip("short.wav", samples=4_410)
    loader = load(tmp_path, min_length_sec=1.0)
    assert list(prompts(loader)) == ["long.wav"] and loader.report.counts() == "1 filtered"
    assert "1 files are not used; first: " in caplog.text


def test_foreign_formats_without_ffmpeg_are_told(tmp_path: Path, write_clip, monkeypatch, caplog) -> None:
    write_clip("a.wav")
    (tmp_path / "audio" / "b.m4a").write_bytes(b"x" * 100)
    monkeypatch.setenv("PATH", "")
    loader = load(tmp_path)
    assert list(prompts(loader)) == ["a.wav"] and "b.m4a: filtered (needs ffmpeg" in caplog.text


# ------------------------------------------------------------------ the config itself


@pytest.mark.parametrize(
    ("config", "sentences"),
    [
        ({}, ["dataset.dataset_type: missing; it is one of audio_dir, huggingface, pre_encoded"]),
        ({"dataset_type": "audio_dirs"}, ["no dataset type named 'audio_dirs'; did you mean 'audio_dir'"]),
        (
            {"dataset_type": "audio_dir", "datasets": [{"id": "a", "pth": "x"}], "random_corp": True},
            [
                r"dataset.datasets\[0\].pth: unknown key; did you mean 'path'\?",
                r"dataset.random_corp: unknown key; did you mean 'random_crop'\?",
            ],
        ),
        ({"dataset_type": "audio_dir", "datasets": []}, ["dataset.datasets: expected at least one entry"]),
        (
            {"dataset_type": "audio_dir", "datasets": [{"path": "x"}], "on_bad_item": "quarantine"},
            ["dataset.quarantine_file: missing"],
        ),
        (
            {"dataset_type": "audio_dir", "datasets": [{"path": "x"}], "captions": {"tag": ["a"]}},
            ["dataset.captions.tag: unknown key; did you mean 'tags'"],
        ),
        (
            {"dataset_type": "audio_dir", "datasets": [{"path": "x", "weight": -1}], "max_bad_fraction": 2},
            [r"datasets\[0\].weight: expected at least 0", "max_bad_fraction: expected at most 1"],
        ),
    ],
)
def test_mistakes_are_named_before_any_file_is_looked_at(config: dict[str, Any], sentences: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_dataset_config(config)
    for sentence in sentences:
        assert any(re.search(sentence, problem) for problem in caught.value.problems), caught.value.problems


def test_keys_without_effect_are_accepted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    config = {"dataset_type": "audio_dir", "datasets": [{"path": "x"}], "resampled_shards": True}
    before = json.dumps(config)
    with caplog.at_level(logging.WARNING):
        assert check_dataset_config(config).type == "audio_dir"
    assert "dataset.resampled_shards: this key has no effect" in caplog.text and json.dumps(config) == before


def test_indexing_and_the_published_collation(tmp_path: Path, write_clip) -> None:
    path = write_clip("a.wav")
    (path.parent / "b.wav").write_bytes(path.read_bytes())
    dataset = SampleDataset([LocalDatasetConfig("a", str(path.parent))], 1_000, 44_100, force_channels="mono")
    assert len(dataset) == 2 and dataset.filenames == [str(path), str(path.parent / "b.wav")]
    audio, metadata = collation_fn([dataset[0], dataset[1]])
    assert audio.shape == (2, 1, 1_000) and isinstance(metadata, tuple) and metadata[0]["relpath"] == "a.wav"
    path.write_bytes(b"now broken")
    assert dataset[0].info["relpath"] == "b.wav"  # the next one, as the log says
    (path.parent / "b.wav").unlink()
    with pytest.raises(AudioError, match="none of 2 files can be used"):
        dataset[0]


def test_entries_have_weights(tmp_path: Path, write_clip) -> None:
    for i in range(4):
        write_clip(f"{i}.wav", root="one")
        write_clip(f"{i}.wav", root="two")
    entries = [{"path": str(tmp_path / "one"), "weight": 2}, {"path": str(tmp_path / "two"), "weight": 0.5}]
    found = infos(load(tmp_path, datasets=entries))
    roots = [Path(info["path"]).parent.name for info in found]
    assert roots.count("one") == 8 and roots.count("two") == 2
    assert len({info["timestamps"] for info in found}) == 10
