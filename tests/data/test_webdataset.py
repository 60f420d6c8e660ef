"""Tar shards: everything once, in one order for any number of workers, and every mistake named."""

import gzip
import io
import itertools
import json
import logging
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from support.small_shards import RATE, audio_bytes, sample, write_shards, write_tar

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.sources.request import LocalWebDatasetConfig
from stable_audio_tools.data.sources.webdataset import WebDatasetDataLoader
from stable_audio_tools.data.tar_stream import BrokenShard, read_samples, split_name
from stable_audio_tools.data.transforms import remove_long_silence

SIZE = 4_000


def loader(root: Path, batch_size: int = 2, workers: int = 0, shuffle: bool = True, **options: Any) -> Any:
    run = {key: options.pop(key) for key in ("rank", "world_size", "channels") if key in options}
    config = {"dataset_type": "wds", "datasets": [{"id": "tars", "path": str(root)}], **options}
    channels = run.pop("channels", 2)
    return create_dataloader_from_config(config, batch_size, SIZE, RATE, channels, workers, shuffle, **run)


def names(batches: Iterable[Any]) -> list[str]:
    return [info["relpath"] for _, metadata in batches for info in metadata]


def fingerprints(batches: Iterable[Any]) -> list[tuple[str, float]]:
    """Which clip, and which crop of it with which polarity."""
    return [(info["relpath"], float(clip[0, :16].sum())) for audio, meta in batches for clip, info in zip(audio, meta)]


def take(batches: Any, count: int) -> list[Any]:
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


ONCE = {"resampled_shards": False, "drop_last": False}


def test_batches_look_as_those_of_other_sources(tmp_path: Path) -> None:
    audio, metadata = next(iter(loader(write_shards(tmp_path))))
    assert audio.shape == (2, 2, SIZE) and audio.dtype == torch.float32 and audio.abs().max() <= 1
    assert isinstance(metadata, tuple)
    for clip, info in zip(audio, metadata):
        shard, number = info["relpath"].removesuffix(".flac").split("/")
        assert info["path"] == f"{tmp_path}/{shard}/{number}.flac"
        assert info["prompt"] == info["text"] == f"clip {int(number[0])} {int(number[2:])}"
        assert info["bpm"] == 120 and info["sample_rate"] == RATE
        assert info["padding_mask"].shape == (SIZE,)
        assert (info["seconds_start"], info["seconds_total"]) == (0, 1)
        assert info["audio"].data_ptr() == clip.data_ptr(), "the clip in the metadata is a view, not a copy"


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_order_and_crops_are_those_of_one_process(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path, [4, 5, 3, 6])
    plain, parallel = (loader(tmp_path, workers=count, **ONCE) for count in (0, workers))
    for _ in range(2):
        expected = fingerprints(plain)
        assert fingerprints(parallel) == expected
        assert len({name for name, _ in expected}) == len(expected) == 18


def test_epochs_differ_in_order_and_crops(tmp_path: Path) -> None:
    batches = loader(write_shards(tmp_path), **ONCE)
    first, second = fingerprints(batches), fingerprints(batches)
    assert {name for name, _ in first} == {name for name, _ in second}
    assert [name for name, _ in first] != [name for name, _ in second]
    assert set(first).isdisjoint(second)


def test_two_processes_together_read_what_one_reads(tmp_path: Path) -> None:
    write_shards(tmp_path, [4, 4, 4, 4])
    whole = [set(fingerprints([batch])) for batch in loader(tmp_path, 4, **ONCE)]
    halves = [loader(tmp_path, 2, rank=rank, world_size=2, **ONCE) for rank in range(2)]
    assert [set(fingerprints(pair)) for pair in zip(*halves)] == whole


def test_every_shard_is_opened_once_in_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path)
    both = [loader(tmp_path, rank=rank, world_size=2, **ONCE) for rank in range(2)]
    opened: list[str] = []
    shelf = type(both[0].source.entries[0].shelf)
    original = shelf.open
    monkeypatch.setattr(shelf, "open", lambda self, n, at: (opened.append(self.names[n]), original(self, n, at))[1])
    assert len(names(both[0])) + len(names(both[1])) == 25
    assert sorted(opened) == [f"shard-{shard}.tar" for shard in range(5)]


def test_resampled_epochs_have_their_length_and_go_on_through_the_shards(tmp_path: Path) -> None:
    batches = loader(write_shards(tmp_path, [6, 6, 6]), epoch_steps=3)
    assert len(batches) == 3
    epochs = [names(batches) for _ in range(3)]
    assert all(len(epoch) == 6 for epoch in epochs)
    assert len(set(epochs[0] + epochs[1] + epochs[2])) == 18


def test_no_data_is_lost_where_shards_are_fewer_than_workers(tmp_path: Path) -> None:
    assert len(names(loader(write_shards(tmp_path, [3]), workers=4, **ONCE))) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [ONCE, {"epoch_steps": 9}], ids=["once", "resampled"])
@pytest.mark.parametrize("given", [1, 4, 9])
def test_a_resumed_run_gives_what_would_have_followed(
    tmp_path: Path, workers: int, options: dict[str, Any], given: int
) -> None:
    write_shards(tmp_path, [3, 4, 5, 6])
    straight = loader(tmp_path, workers=workers, **options)
    expected = [step for _ in range(2 + given // 9) for step in fingerprints(straight)]
    first = loader(tmp_path, workers=workers, **options)
    used = take(first, given)
    state = json.loads(json.dumps(first.state_dict()))
    resumed = loader(tmp_path, workers=workers, **options)
    resumed.load_state_dict(state)
    assert fingerprints(used) + fingerprints(resumed) + fingerprints(resumed) == expected


def test_resume_with_other_numbers_of_processes_reads_the_rest_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(tmp_path, [3, 4, 5, 6, 7])
    first = loader(tmp_path, **ONCE)
    used = names(take(first, 4))
    rest = []
    for rank in range(2):
        resumed = loader(tmp_path, rank=rank, world_size=2, **ONCE)
        resumed.load_state_dict(first.state_dict())
        rest += names(resumed)
    assert "another number of processes" in caplog.text
    assert sorted(used + rest) == sorted(names(loader(tmp_path, **ONCE)))


def test_validation_sees_each_sample_once_in_the_order_of_the_shards(tmp_path: Path) -> None:
    """`resampled_shards` (the default) is for training."""
    write_shards(tmp_path, [2, 2])
    batches = loader(tmp_path, shuffle=False, parallel_shards=1)
    assert names(batches) == names(batches)
    assert names(batches) == [f"shard-{s}.tar/{s}_{n:03d}.flac" for s in range(2) for n in range(2)]


def test_weights_repeat_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", [2])
    write_tar(tmp_path / "b" / "other.tar", sample(9, 0))
    entries = [{"path": str(tmp_path / "a"), "weight": 2}, {"path": str(tmp_path / "b")}]
    found = names(loader(tmp_path, datasets=entries, **ONCE))
    assert {name: found.count(name) for name in found} == {
        "shard-0.tar/0_000.flac": 2,
        "shard-0.tar/0_001.flac": 2,
        "other.tar/9_000.flac": 1,
    }


# ------------------------------------------------------------------ forms of samples


def test_names_mixed_formats_and_words(tmp_path: Path) -> None:
    long = "x" * 180
    write_tar(
        tmp_path / "a.tar",
        {
            "readme.md": b"no sample",
            "deep/er/1.left.wav": audio_bytes(1, kind="WAV"),
            "deep/er/1.txt": " a caption \n".encode("utf-8-sig"),
            f"{long}/{long}.OGG": audio_bytes(2, kind="OGG"),
            f"{long}/{long}.json": b'{"caption": "long"}',
        },
    )
    found = {info["relpath"]: info["prompt"] for _, metadata in loader(tmp_path, **ONCE) for info in metadata}
    assert found == {"a.tar/deep/er/1.left.wav": "a caption", f"a.tar/{long}/{long}.ogg": "long"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects(tmp_path: Path, form: int) -> None:
    name = "folder/" * 12 + "n" * 60
    path = write_tar(tmp_path / "a.tar", {f"{name}.wav": b"audio", f"{name}.json": b"{}", "b.wav": b"more"}, form)
    with path.open("rb") as stream:
        found = list(read_samples(stream, {"wav", "json"}, "a.tar"))
    assert [(s.key, s.files) for s in found] == [(name, {"wav": b"audio", "json": b"{}"}), ("b", {"wav": b"more"})]
    for place, later in itertools.pairwise(found):
        with path.open("rb") as stream:
            stream.seek(place.end)
            assert next(read_samples(stream, {"wav", "json"}, "a.tar", place.end)) == later


def test_gzipped_shards_resume_too(tmp_path: Path) -> None:
    plain = write_shards(tmp_path / "plain", [5])
    packed = tmp_path / "packed" / "shard-0.tar.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress((plain / "shard-0.tar").read_bytes()))
    batches = loader(packed.parent, **ONCE)
    used = names(take(batches, 1))
    rest = loader(packed.parent, **ONCE)
    rest.load_state_dict(batches.state_dict())
    assert used + names(rest) == [f"shard-0.tar.gz/0_{number:03d}.flac" for number in range(5)]


def test_split_name() -> None:
    assert split_name("a.b/c.d.FLAC") == ("a.b/c", "d.flac")
    assert split_name("a/.hidden.json")[1] == split_name("plain")[1] == ""


def test_mono_stereo_and_rates_follow_the_rule(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", {"m.wav": audio_bytes(1, 8_000, 1, 2 * RATE, "WAV"), "s.wav": audio_bytes(2, kind="WAV")}
    )
    for channels in (1, 2, 4):
        audio, metadata = next(iter(loader(tmp_path, channels=channels, **ONCE)))
        assert audio.shape == (2, channels, SIZE)
        assert {info["sample_rate"] for info in metadata} == {RATE}


def test_latents(tmp_path: Path) -> None:
    latents = np.arange(80, dtype=np.float16).reshape(2, 40)
    buffer = io.BytesIO()
    np.save(buffer, latents)
    about = {"padding_mask": [1] * 30 + [0] * 10, "prompt": "p", "seconds_total": 3}
    write_tar(tmp_path / "a.tar", {"0.npy": buffer.getvalue(), "0.json": json.dumps(about).encode()})
    whole, (info,) = next(iter(loader(tmp_path, pre_encoded=True, **ONCE)))
    assert (
        torch.equal(whole[0], torch.from_numpy(latents).float())
        and info["padding_mask"].tolist() == [1] * 30 + [0] * 10
    )
    starts = set()
    batches = loader(tmp_path, pre_encoded=True, latent_crop_length=8, **ONCE)
    for _ in range(60):
        ((crop, (info,)),) = list(batches)
        starts.add(start := info["latent_crop_start"])
        assert torch.equal(crop[0], torch.from_numpy(latents[:, start : start + 8]).float())
        assert info["padding_mask"].tolist() == [1] * 8
    assert max(starts) <= 22 and len(starts) > 10, "crops stay within what is not padding, to its very end"


def test_silence_removal_is_for_mono(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(0.1, 0.5, RATE // 2)
    wave = np.concatenate([sound, np.zeros(4 * RATE), sound])
    files = {}
    for name, channels in (("mono", 1), ("stereo", 2)):
        buffer = io.BytesIO()
        sf.write(buffer, np.tile(wave[:, None], channels), RATE, format="WAV")
        files[f"{name}.wav"] = buffer.getvalue()
    write_tar(tmp_path / "a.tar", files)
    options = {"remove_silence": True, "silence_threshold": [0.01, 0.25], "allow_silence": True, **ONCE}
    seconds = {i["relpath"]: i["seconds_total"] for _, meta in loader(tmp_path, **options) for i in meta}
    assert seconds == {"a.tar/mono.wav": 2, "a.tar/stereo.wav": 5}


def test_remove_long_silence_keeps_a_piece_of_each() -> None:
    wave = torch.cat([torch.zeros(100), torch.ones(50), torch.zeros(10), torch.ones(50), torch.zeros(300)])[None]
    made = remove_long_silence(wave, 100, 0.01, kept_seconds=0.5, longest_seconds=0.25, rng=random.Random(0))
    expected = torch.cat([torch.zeros(50), torch.ones(50), torch.zeros(10), torch.ones(50), torch.zeros(50)])[None]
    assert torch.equal(made, expected)
    assert torch.equal(remove_long_silence(wave, 100, longest_seconds=9), wave)


# ------------------------------------------------------------------ custom metadata


@pytest.fixture
def module(tmp_path: Path) -> Callable[[str], str]:
    def write(body: str) -> str:
        path = tmp_path / "module.py"
        path.write_text(f"import torch\ndef get_custom_metadata(info, audio):\n    {body}\n")
        return str(path)

    return write


def test_custom_metadata_is_honoured(tmp_path: Path, module: Callable[[str], str]) -> None:
    root = write_shards(tmp_path / "tars", [4])
    body = (
        "return {'__reject__': info['relpath'].endswith('_001.flac'), 'seen': tuple(audio.shape), "
        "'__replace__': torch.full((2, 9000), .5), '__audio__': {'stem': torch.ones(1, 6000)}}"
    )
    batches = loader(root, custom_metadata_module=module(body), **ONCE)
    items = [(clip, info) for audio, metadata in batches for clip, info in zip(audio, metadata)]
    assert len(items) == 3 and [fault.kind for fault in batches.report.epoch] == ["rejected"]
    for clip, info in items:
        assert torch.equal(clip, torch.full((2, SIZE), 0.5)) and info["seen"] == (2, SIZE)
        assert torch.equal(info["stem"], torch.ones(2, SIZE))
        assert not {"__reject__", "__replace__", "__audio__"} & set(info)


def test_the_module_of_an_entry_comes_first(tmp_path: Path, module: Callable[[str], str]) -> None:
    root = write_shards(tmp_path / "tars", [1])
    own = module("return {'who': 'entry'}")
    common = tmp_path / "common.py"
    common.write_text("def get_custom_metadata(info, audio): return {'who': 'all'}")
    entries = [{"path": str(root), "custom_metadata_module": own}, {"path": str(root)}]
    batches = loader(root, datasets=entries, custom_metadata_module=str(common), **ONCE)
    assert sorted(info["who"] for _, meta in batches for info in meta) == ["all", "entry"]


# ------------------------------------------------------------------ faults


def test_faults_are_named_and_the_rest_is_delivered(tmp_path: Path) -> None:
    files = {
        "good.flac": audio_bytes(1),
        "good.json": b"{}",
        "text.flac": b"this is no audio",
        "empty.wav": b"",
        "cut.flac": audio_bytes(2)[:5_000],
        "words.json": b'{"text": "no audio"}',
        "bad_json.flac": audio_bytes(3),
        "bad_json.json": b"{",
        "silent.flac": _silence(),
        "last.flac": audio_bytes(4),
    }
    write_tar(tmp_path / "a.tar", files)
    batches = loader(tmp_path, max_bad_fraction=1.0, **ONCE)
    assert names(batches) == ["a.tar/good.flac", "a.tar/last.flac"]
    found = {fault.path.rpartition("/")[2]: fault.kind for fault in batches.report.epoch}
    assert found == {
        "text.flac": "unreadable",
        "empty.wav": "unreadable",
        "cut.flac": "unreadable",
        "words.json": "unreadable",
        "bad_json.flac": "bad metadata",
        "silent.flac": "silent",
    }
    assert not any("/tmp/stable_audio" in str(fault) for fault in batches.report.epoch)


def _silence() -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, np.zeros((6_000, 2)), RATE, format="FLAC")
    return buffer.getvalue()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_breaks_off_gives_what_it_has(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path, [5, 5])
    path = tmp_path / "shard-0.tar"
    path.write_bytes(path.read_bytes()[:-30_000])
    batches = loader(tmp_path, workers=workers, **ONCE)
    found = names(batches)
    assert len(found) == len(set(found)) and {f"shard-1.tar/1_{n:03d}.flac" for n in range(5)} < set(found)
    (fault,) = batches.report.epoch
    assert fault.path == str(path) and "in the middle of a file" in fault.detail


def test_damage_within_a_shard_is_not_its_end(tmp_path: Path) -> None:
    path = write_shards(tmp_path, [4]) / "shard-0.tar"
    content = bytearray(path.read_bytes())
    with path.open("rb") as stream:
        second = [found.end for found in read_samples(stream, {"flac"}, "")][1]
    content[second : second + 512] = b"\xff" * 512
    path.write_bytes(content)
    with path.open("rb") as stream, pytest.raises(BrokenShard, match="damaged, at byte"):
        list(read_samples(stream, {"flac"}, ""))
    batches = loader(tmp_path, max_bad_fraction=1.0, **ONCE)
    assert len(names(batches)) == 1 and "damaged" in batches.report.epoch[0].detail


def test_a_missing_end_mark_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_shards(tmp_path, [2]) / "shard-0.tar"
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content + b"\0" * (-len(content) % 512))
    assert len(names(loader(tmp_path, **ONCE))) == 2
    assert "end mark is missing" in caplog.text


def test_only_bad_samples_end_with_one_sentence(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{n}.flac": b"no audio" for n in range(30)})
    for options in (ONCE, {"epoch_steps": 5}):
        with pytest.raises(AudioError, match=r"items are bad.*unreadable"):
            list(loader(tmp_path, **options))


def test_policy_raise_and_quarantine(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", sample(0, 0) | {"bad.flac": b"no audio"} | sample(0, 1))
    common = {"max_bad_fraction": 0.9, **ONCE}
    with pytest.raises(AudioError, match=r"a\.tar/bad\.flac: unreadable"):
        list(loader(tmp_path, on_bad_item="raise", **common))
    listed = tmp_path / "quarantine.txt"
    list(loader(tmp_path, on_bad_item="quarantine", quarantine_file=str(listed), **common))
    assert listed.read_text().startswith(f"{tmp_path}/a.tar/bad.flac\t# unreadable")
    again = loader(tmp_path, on_bad_item="raise", quarantine_file=str(listed), **common)
    assert len(names(again)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_path_lists(tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    root = write_shards(tmp_path / "tars", [2, 2, 2])
    listed = tmp_path / "list.txt"
    listed.write_text(f"shard-0.tar/0_001.flac\n{root}/shard-2.tar\nshard-9.tar/none.flac\n")
    left = loader(root, workers=workers, exclude_paths_file=str(listed), **ONCE)
    assert sorted(names(left)) == ["shard-0.tar/0_000.flac", "shard-1.tar/1_000.flac", "shard-1.tar/1_001.flac"]
    assert "1 entries match no file, such as 'shard-9.tar/none.flac'" in caplog.text
    kept = loader(root, workers=workers, include_paths_file=str(listed), **ONCE)
    assert sorted(names(kept)) == ["shard-0.tar/0_001.flac", "shard-2.tar/2_000.flac", "shard-2.tar/2_001.flac"]


def test_wrong_configs_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"datasets\[0\].*give one of path .* and s3_path"):
        loader(tmp_path, datasets=[{"id": "neither"}])
    with pytest.raises(ConfigError, match="does not exist"):
        loader(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"no usable shard in .*looked for \.tar"):
        loader(tmp_path)
    with pytest.raises(ConfigError, match="1 shards for 2 processes"):
        list(loader(write_shards(tmp_path, [2]), rank=0, world_size=2, **ONCE))
    (tmp_path / "shard-0.tar").write_bytes(b"")
    with pytest.raises(AudioError, match=r"not one batch|items are bad"):
        list(loader(tmp_path, **ONCE))


def test_the_published_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = write_shards(tmp_path, [2, 2])

    def about(info: dict[str, Any], audio: torch.Tensor) -> dict[str, Any]:
        return {"prompt": "by function"}

    made = WebDatasetDataLoader(
        [LocalWebDatasetConfig("a", str(root), about)],
        2,
        SIZE,
        RATE,
        num_workers=0,
        epoch_steps=2,
        force_channels="mono",
    )
    batches = list(made.data_loader)
    assert [audio.shape for audio, _ in batches] == [(2, 1, SIZE)] * 2
    assert batches[0][1][0]["prompt"] == "by function"


def _train(rank: int, root: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    found = [names([batch]) for batch in loader(Path(root), **{**ONCE, "drop_last": True})]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_processes_with_unequal_shards_make_equally_many_steps(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "tars", [2, 9, 2, 8])
    torch.multiprocessing.start_processes(_train, (str(root), str(tmp_path)), nprocs=2, start_method="fork")
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert len(found[0]) == len(found[1])
    counts = sorted(len({name for batch in batches for name in batch}) for batches in found)
    assert sum(counts) >= 21 - 2, "but for one item of each process (drop_last), all were seen"
