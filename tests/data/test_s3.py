"""Shards in S3, against a real S3 server process on this machine: listed, streamed, taken up again, explained."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.example_clips import write_example_clips
from stable_audio_tools.data.sources.request import S3DatasetConfig
from stable_audio_tools.data.sources.s3 import S3Account, S3Object, S3Stream, list_objects, parse_url
from stable_audio_tools.data.sources.webdataset import WebDatasetDataLoader

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")

RATE = 22_050
SIZE = 8_192
ONCE = {"resampled_shards": False, "drop_last": False}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the S3 server did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of clips with captions, as folders of audio are packed with `tar`."""
    root = tmp_path_factory.mktemp("s3")
    write_example_clips(root / "clips", per_class=2)
    files = sorted(path for path in (root / "clips").rglob("*.*") if path.suffix in (".flac", ".json"))
    stems = sorted({path.with_suffix("") for path in files})
    (root / "shards").mkdir()
    for number in range(3):
        chosen = [str(path) for path in files if path.with_suffix("") in stems[number::3]]
        subprocess.run(
            ["tar", "--transform", "s,.*/,,", "-cPf", root / "shards" / f"part {number}.tar", *chosen], check=True
        )
    return root / "shards"


@pytest.fixture
def bucket(server: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with the shards below `music/`, reached with the profile `studio`; -> its endpoint."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    credentials = tmp_path / "credentials"
    credentials.write_text("[studio]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    config = tmp_path / "config"
    config.write_text("[profile studio]\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = S3Account("studio", server).client()
    client.create_bucket(Bucket="sounds")
    for path in sorted(shards.iterdir()):
        client.upload_file(str(path), "sounds", f"music/sub (1)/{path.name}")
    client.put_object(Bucket="sounds", Key="music/notes.txt", Body=b"no shard")
    client.put_object(Bucket="sounds", Key="musical/other.tar", Body=b"must not be read")
    return server


def loader(endpoint: str, kind: str = "s3", batch_size: int = 3, workers: int = 0, **options: Any) -> Any:
    entry = {"id": "m", "s3_path": "s3://sounds/music/", "profile": "studio", "endpoint_url": endpoint}
    config = {"dataset_type": kind, "datasets": [{**entry, **options.pop("entry", {})}], **options}
    return create_dataloader_from_config(config, batch_size, SIZE, RATE, num_workers=workers)


def facts(batches: Any) -> list[tuple[str, float]]:
    return [(info["relpath"], float(clip.sum())) for audio, meta in batches for clip, info in zip(audio, meta)]


@pytest.mark.parametrize("kind", ["s3", "wds"])
def test_batches_from_a_bucket_are_those_from_a_folder(bucket: str, shards: Path, kind: str) -> None:
    remote = loader(bucket, kind, **ONCE)
    entry = {"id": "m", "path": str(shards)}
    local = create_dataloader_from_config(
        {"dataset_type": "wds", "datasets": [entry], **ONCE}, 3, SIZE, RATE, num_workers=0
    )
    batches = list(remote)
    assert sorted(facts(local)) != [] and len(facts(batches)) == len(facts(local))
    audio, metadata = batches[0]
    assert audio.shape == (3, 2, SIZE)
    for info in metadata:
        assert info["path"].startswith("s3://sounds/music/sub (1)/part ") and info["path"].endswith(".flac")
        assert info["relpath"].startswith("sub (1)/part ") and info["sample_rate"] == RATE
        assert info["padding_mask"].shape == (SIZE,) and info["prompt"]


def test_workers_and_resume(bucket: str) -> None:
    expected = facts(loader(bucket, **ONCE))
    assert facts(loader(bucket, workers=2, **ONCE)) == expected
    first = loader(bucket, **ONCE)
    iterator = iter(first)
    used = [next(iterator) for _ in range(2)]
    # Nobody knows the length of these shards beforehand; Lightning then holds one batch that is not used yet.
    with pytest.raises(TypeError, match="not known"):
        len(first)
    resumed = loader(bucket, **ONCE)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert facts(used[:1]) + facts(resumed) == expected


def test_resampled_epochs_from_a_bucket(bucket: str) -> None:
    batches = loader(bucket, epoch_steps=2)
    assert len(batches) == 2 and len(facts(batches)) == 6


def test_a_broken_connection_is_taken_up_again(bucket: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stable_audio_tools.data.sources.s3._PAUSE_SECONDS", 0)
    client = S3Account("studio", bucket).client()
    source = S3Object("sounds", "music/sub (1)/part 0.tar")
    stream = S3Stream(client, source)
    pieces, original, opened = [], stream._open, []

    def open_and_break() -> None:
        original()
        opened.append(stream.offset)
        body, left = stream._body, [3]

        class Breaking:
            def read(self, size: int) -> bytes:
                left[0] -= 1
                if left[0] < 0 and len(opened) < 4:
                    raise ConnectionResetError("reset by peer")
                return body.read(min(size, 50_000))

            def close(self) -> None:
                body.close()

        stream._body = Breaking()

    monkeypatch.setattr(stream, "_open", open_and_break)
    while piece := stream.read(1 << 16):
        pieces.append(piece)
    assert b"".join(pieces) == (shards / "part 0.tar").read_bytes()
    assert opened == [0, 150_000, 300_000, 450_000]


def test_a_connection_that_never_works_is_an_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stable_audio_tools.data.sources.s3._PAUSE_SECONDS", 0)
    stream = S3Stream(S3Account("studio", bucket).client(), S3Object("sounds", "music/sub (1)/part 0.tar"))

    def refuse() -> None:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(stream, "_open", refuse)
    with pytest.raises(
        AudioError, match=r"s3://sounds/music/sub \(1\)/part 0\.tar: the connection broke 5 times at byte 0"
    ):
        stream.read(1)


def test_an_object_that_changes_while_it_is_read_is_not_mixed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stable_audio_tools.data.sources.s3._PAUSE_SECONDS", 0)
    client = S3Account("studio", bucket).client()
    client.put_object(Bucket="sounds", Key="changing", Body=b"a" * 1000)
    stream = S3Stream(client, S3Object("sounds", "changing"))
    assert stream.read(10) == b"a" * 10
    client.put_object(Bucket="sounds", Key="changing", Body=b"b" * 1000)
    stream._drop()
    with pytest.raises(AudioError, match="PreconditionFailed"):
        stream.read(10)


def test_a_bad_object_is_named_and_quarantined_by_its_address(bucket: str, tmp_path: Path) -> None:
    S3Account("studio", bucket).client().put_object(Bucket="sounds", Key="music/bad.tar", Body=b"no tar" * 100)
    listed = tmp_path / "quarantine.txt"
    options = {"on_bad_item": "quarantine", "quarantine_file": str(listed), **ONCE}
    batches = loader(bucket, **options)
    found = facts(batches)
    (fault,) = batches.report.epoch
    assert fault.path == "s3://sounds/music/bad.tar" and "is not a tar archive" in fault.detail
    assert listed.read_text().startswith("s3://sounds/music/bad.tar\t# unreadable")
    again = loader(bucket, **options)
    assert len(facts(again)) == len(found) and not again.report.faults
    S3Account("studio", bucket).client().delete_object(Bucket="sounds", Key="music/bad.tar")


def test_listing_keeps_to_the_folder(bucket: str) -> None:
    client = S3Account("studio", bucket).client()
    expected = [f"music/sub (1)/part {number}.tar" for number in range(3)]
    assert [found.key for found in list_objects(client, "s3://sounds/music", (".tar",))] == expected
    (single,) = list_objects(client, f"s3://sounds/{expected[1]}", (".tar",))
    assert single.key == expected[1]


def test_mistakes_are_explained(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no usable shard in s3://sounds/empty/"):
        loader(bucket, entry={"s3_path": "s3://sounds/empty/"})
    with pytest.raises(ConfigError, match=r"s3://nowhere/x/.*NoSuchBucket"):
        loader(bucket, entry={"s3_path": "s3://nowhere/x/"})
    with pytest.raises(ConfigError, match=r"profile.*absent"):
        loader(bucket, entry={"profile": "absent"})
    with pytest.raises(ConfigError, match=r"expected an address like s3://bucket/folder/, got 'sounds/music'"):
        loader(bucket, entry={"s3_path": "sounds/music"})
    with pytest.raises(ConfigError, match="aws configure"):
        loader(bucket, entry={"profile": None, "region": "us-east-1"})
    with pytest.raises(AudioError, match="check the network and `endpoint_url`"):
        loader("http://127.0.0.1:9", **ONCE)


def test_the_environment_configures_the_service(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket)
    monkeypatch.setenv("AWS_PROFILE", "studio")
    published = {
        "dataset_type": "s3",
        "datasets": [{"id": "s3-test", "s3_path": "s3://sounds/music/"}],
        "random_crop": True,
    }
    audio, _ = next(iter(create_dataloader_from_config(published, 2, SIZE, RATE, num_workers=0)))
    assert audio.shape == (2, 2, SIZE)
    made = WebDatasetDataLoader(
        [S3DatasetConfig("s3-test", "s3://sounds/music/")], 2, SIZE, RATE, num_workers=0, epoch_steps=1
    )
    assert len(list(made.data_loader)) == 1


def test_parse_url() -> None:
    assert parse_url("s3://b/a folder/x#1?.tar") == ("b", "a folder/x#1?.tar")
    with pytest.raises(ConfigError, match="expected an address"):
        parse_url("https://b.s3.amazonaws.com/x")
