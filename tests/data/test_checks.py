"""`check-data`: every kind of finding, and the list of files that are of no use."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_arrow import row, save
from support.small_shards import audio_bytes, sample, write_tar

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.checks import check_dataset, table
from stable_audio_tools.data.path_lists import read_path_list


def config(tmp_path: Path, root: str = "audio", **more: Any) -> dict[str, Any]:
    return {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(tmp_path / root)}], **more}


def test_a_good_dataset_is_ok(tmp_path: Path, write_clip) -> None:
    for i in range(3):
        write_clip(f"{i}.flac", about={"prompt": f"clip {i}"})
    calls: list[tuple[int, int]] = []
    report = check_dataset(config(tmp_path), progress=lambda done, total: calls.append((done, total)))
    assert report.ok and report.files == 3 and report.findings == [] and calls == [(1, 3), (2, 3), (3, 3)]
    assert report.seconds == pytest.approx(3 * 20_000 / 44_100) and "no problems were found" in table(report)


def test_every_kind_of_finding(tmp_path: Path, write_clip) -> None:
    about: dict[str, object] = {"prompt": "x"}
    rng = np.random.default_rng(0)
    for i in range(6):
        write_clip(f"good{i}.wav", about=about)
    write_clip("bare.wav")
    write_clip("short.wav", samples=20, about=about)
    write_clip("silent.wav", wave=np.full((9_000, 2), 1e-4, np.float32), about=about)
    write_clip("nan.wav", wave=np.full((9_000, 2), np.inf, np.float32), subtype="FLOAT", about=about)
    write_clip("clipped.wav", wave=np.clip(rng.standard_normal((9_000, 2)).cumsum(0) / 20, -1, 1), about=about)
    write_clip("touching.wav", wave=np.where(np.arange(9_000) % 90 < 1, 1.0, 0.1)[:, None], about=about)
    write_clip("rate.wav", rate=8_000, about=about)
    write_clip("six.wav", channels=6, about=about)
    write_clip("json.wav").with_suffix(".json").write_text("{")
    write_clip("text.wav", about=about).write_text("words " * 100)
    middle = write_clip("middle.flac", samples=90_000, about=about)
    content = bytearray(middle.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40_000] = bytes(40_000)
    middle.write_bytes(content)
    copy = write_clip("zz_copy.flac", wave=_samples(tmp_path / "audio/good3.wav"), about=about)

    report = check_dataset(config(tmp_path))
    found = {(Path(f.path).name, f.kind) for f in report.findings}
    assert found == {
        ("bare.wav", "missing caption"),
        ("short.wav", "short"),
        ("silent.wav", "silent"),
        ("nan.wav", "not finite"),
        ("clipped.wav", "clipped"),
        ("rate.wav", "unusual rate"),
        ("six.wav", "unusual channels"),
        ("json.wav", "bad metadata"),
        ("text.wav", "unreadable"),
        ("middle.flac", "unreadable"),  # its header and its end are whole: only decoding shows it
        (copy.name, "duplicate"),
    }
    assert not report.ok and report.counts()["unreadable"] == 2
    text = table(report)
    assert all(Path(finding.path).name in text for finding in report.findings)
    assert json.loads(json.dumps(report.as_dict()))["ok"] is False

    assert report.write_quarantine(tmp_path / "bad.txt") == 6
    assert {Path(p).name for p in read_path_list(tmp_path / "bad.txt")} == {
        "short.wav", "silent.wav", "nan.wav", "text.wav", "middle.flac", copy.name,
    }  # fmt: skip
    again = check_dataset(config(tmp_path, exclude_paths_file=str(tmp_path / "bad.txt")))
    assert set(again.counts()) == {"missing caption", "clipped", "unusual rate", "unusual channels", "bad metadata"}


def _samples(path: Path) -> np.ndarray:
    import soundfile as sf

    return sf.read(path, dtype="float32")[0]


def test_splits_that_share_audio(tmp_path: Path, write_clip) -> None:
    about: dict[str, object] = {"prompt": "x"}
    shared = write_clip("train_a.wav", about=about)
    write_clip("train_b.wav", about=about)
    write_clip("other_name.flac", root="val", wave=_samples(shared), about=about)
    report = check_dataset(config(tmp_path), against=config(tmp_path, "val"))
    (finding,) = report.findings
    assert finding.kind == "split leak" and finding.path == str(shared) and "other_name.flac" in finding.detail
    assert not report.ok


def test_rates_below_the_models(tmp_path: Path, write_clip) -> None:
    write_clip("a.wav", rate=22_050, about={"prompt": "x"})
    report = check_dataset(config(tmp_path), sample_rate=44_100)
    assert report.counts() == {"unusual rate": 1} and report.ok  # worth knowing, nothing wrong


def test_captions_from_code_and_tables_count(tmp_path: Path, write_clip) -> None:
    write_clip("a.wav")
    (tmp_path / "t.jsonl").write_text('{"path": "audio/a.wav", "caption": "x"}')
    (tmp_path / "md.py").write_text("def get_custom_metadata(info, audio): return {}")
    with_table, with_code = config(tmp_path), config(tmp_path, custom_metadata_module=str(tmp_path / "md.py"))
    with_table["datasets"][0]["metadata_path"] = str(tmp_path / "t.jsonl")
    assert check_dataset(with_table).ok and check_dataset(with_code).ok and not check_dataset(config(tmp_path)).ok
    write_clip("b.wav")
    assert check_dataset(with_table).counts() == {"missing caption": 1}
    with_table["datasets"][0]["only_listed"] = True
    assert check_dataset(with_table).ok and check_dataset(with_table).files == 1


def test_nothing_there_is_not_ok(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    report = check_dataset(config(tmp_path))
    assert not report.ok and "no audio file was found" in table(report)
    with pytest.raises(ConfigError, match="is not a folder"):
        check_dataset(config(tmp_path, "none"))
    with pytest.raises(ConfigError, match="check-data decodes audio, but"):
        check_dataset({"dataset_type": "pre_encoded", "datasets": [{"path": "x"}]})


def test_shards_and_tables_are_listened_to_as_folders_are(tmp_path: Path) -> None:
    files = {**sample(0, 0), **sample(0, 1), "bare.flac": audio_bytes(5), "bad.flac": b"fLaC", "bad.json": b"{"}
    write_tar(tmp_path / "tars/a.tar", {**files, "copy.flac": audio_bytes(1), "copy.txt": b"x", "c.flac": b"f"})
    write_tar(tmp_path / "tars/b.tar", sample(1, 0)).write_bytes((tmp_path / "tars/b.tar").read_bytes()[:3000])
    report = check_dataset({"dataset_type": "wds", "datasets": [{"path": str(tmp_path / "tars")}]})
    found = {(finding.path.partition("/tars/")[2], finding.kind) for finding in report.findings}
    assert found == {
        ("a.tar/bare.flac", "missing caption"),
        ("a.tar/bad.flac", "bad metadata"),
        ("a.tar/copy.flac", "duplicate"),
        ("a.tar/c.flac", "missing caption"),
        ("a.tar/c.flac", "unreadable"),
        ("b.tar", "unreadable"),
    }
    assert report.files == 7 and report.rates == {16_000: 4}
    assert report.write_quarantine(tmp_path / "bad.txt") == 3

    rows = [row(0), row(1), row(2, text=None), row(3, audio=None)]
    saved = save(tmp_path / "set", rows, files=1)
    report = check_dataset({"dataset_type": "huggingface", "datasets": [{"path": str(saved)}]})
    assert [finding.kind for finding in report.findings] == ["missing caption", "unreadable"] and report.files == 4


def test_files_are_counted_as_they_are_finished(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars/a.tar", {**sample(0, 0), **sample(0, 1)})
    calls: list[tuple[int, int | None]] = []
    shards = {"dataset_type": "wds", "datasets": [{"path": str(tmp_path / "tars")}]}
    check_dataset(shards, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]


def test_folders_that_cannot_be_looked_into_are_named(
    tmp_path: Path, write_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip("good.wav", about={"prompt": "a"})
    locked = write_clip("locked/hidden.wav", about={"prompt": "b"}).parent
    scan = os.scandir

    def refuse(path: str) -> Any:
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = check_dataset(config(tmp_path))
    assert not report.ok
    assert [(finding.path, finding.kind, finding.detail) for finding in report.findings] == [
        (str(locked), "unreadable", "Permission denied")
    ]
